"""The environment that make sets up: made once, by one make at a time, and no folder of somebody else's is touched.

A stub stands for Python: it makes environments and installs nothing, or fails to, and writes down what it was told.
"""

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

STUB = """#!/bin/bash
echo "$*" >> {told}
case "$*" in
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && echo home > "$3/pyvenv.cfg" ;;
    "-m pip install"*) sleep 0.3; [ ! -e {folder}/offline ] ;;
    --version) echo Python 3.12 ;;
esac
"""


class Clone:
    """A folder with the Makefile, requirements and a Python that is a stub."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.told = folder, folder / "told"
        shutil.copy(ROOT / "Makefile", folder)
        (folder / "requirements.txt").write_text("some==1.0\n")
        self.stub(folder / "stub")

    def stub(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(STUB.format(told=self.told, folder=self.folder))
        path.chmod(0o755)

    def begin(self, *words: str) -> subprocess.Popen:
        command = ["make", *words, f"PYTHON={self.folder}/stub"]
        return subprocess.Popen(
            command, cwd=self.folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=os.environ
        )

    def make(self, *words: str, fails: bool = False) -> str:
        """What a make printed, which succeeded or, where it should, failed."""
        process = self.begin(*words)
        output = process.communicate(timeout=60)[0]
        assert (process.returncode != 0) == fails, output
        return output

    def calls(self, beginning: str) -> int:
        """How often Python was called with arguments that begin so."""
        return sum(line.startswith(beginning) for line in self.told.read_text().splitlines())


@pytest.fixture
def clone(tmp_path: Path) -> Clone:
    return Clone(tmp_path)


def test_the_environment_is_made_once_and_again_where_its_making_was_interrupted(clone: Clone):
    (clone.folder / "offline").touch()
    clone.make("lint", fails=True)
    (clone.folder / ".venv" / "half").touch()
    (clone.folder / "offline").unlink()
    assert clone.make("lint").startswith("== Environment: .venv from Python 3.12, packages of requirements.txt")
    assert sorted(path.name for path in (clone.folder / ".venv").iterdir()) == ["bin", "pyvenv.cfg", "requirements.txt"]
    assert "Environment" not in clone.make("lint")
    assert (clone.calls("-m venv"), clone.calls("-m pip install"), clone.calls("-m ruff")) == (2, 2, 2)


def test_a_folder_that_is_no_environment_is_refused_and_kept(clone: Clone):
    kept = clone.folder / "papers" / "thesis.tex"
    kept.parent.mkdir()
    kept.write_text("years of work")
    (clone.folder / "offline").touch()
    for _ in range(2):
        output = clone.make("lint", "VENV=papers", fails=True)
        assert "error: papers holds something, but no Python environment" in output
    clone.make("clean", "VENV=papers")
    assert [path.name for path in kept.parent.iterdir()] == ["thesis.tex"]


def test_an_environment_that_is_there_is_used_as_it_is(clone: Clone):
    own = clone.folder / "own"
    clone.stub(own / "bin" / "python")
    (own / "pyvenv.cfg").write_text("include-system-site-packages = true\n")
    (clone.folder / "offline").touch()
    for _ in range(2):
        clone.make("lint", "VENV=own", fails=True)
    (clone.folder / "offline").unlink()
    clone.make("lint", "VENV=own")
    assert (own / "pyvenv.cfg").read_text() == "include-system-site-packages = true\n"
    assert (clone.calls("-m venv"), clone.calls("-m pip install")) == (0, 3)
    clone.make("clean", "VENV=own")
    assert not own.exists()


@pytest.mark.skipif(not shutil.which("flock"), reason="no flock: makes do not wait for each other")
def test_two_makes_at_once_make_one_environment(clone: Clone):
    makes = [clone.begin("lint"), clone.begin("lint")]
    outputs = [process.communicate(timeout=60)[0] for process in makes]
    assert [process.returncode for process in makes] == [0, 0], outputs
    assert (clone.calls("-m venv"), clone.calls("-m pip install"), clone.calls("-m ruff")) == (1, 1, 2)
