"""The environment that make sets up: made once, again where it is not complete, and an existing one used as it is.

A stub stands for Python: it makes environments and installs nothing, or fails to, and logs its arguments.
"""

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.commands import ROOT

STUB = """#!/bin/bash
echo "$*" >> {folder}/calls
case "$*" in
    "-c import sys"*) [ ! -e {folder}/old ] ;;
    "-m venv "*) mkdir -p "$3/bin" && cp "$0" "$3/bin/python" && touch "$3/pyvenv.cfg" ;;
    "-m pip install"*) [ ! -e {folder}/offline ] ;;
esac
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder with the Makefile, requirements and a Python that is a stub."""
    shutil.copy(ROOT / "Makefile", tmp_path)
    (tmp_path / "requirements.txt").write_text("some==1.0\n")
    (tmp_path / "stub").write_text(STUB.format(folder=tmp_path))
    (tmp_path / "stub").chmod(0o755)
    return tmp_path


def make(clone: Path, *words: str, fails: bool = False) -> str:
    command = ["make", *words, f"PYTHON={clone}/stub"]
    result = subprocess.run(command, cwd=clone, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    assert (result.returncode != 0) == fails, result.stdout
    return result.stdout


def count_calls(clone: Path, beginning: str) -> int:
    """How often Python was called with arguments that begin so."""
    return sum(line.startswith(beginning) for line in (clone / "calls").read_text().splitlines())


def test_the_environment_is_made_once_and_an_interrupted_installation_is_completed(clone: Path) -> None:
    (clone / "offline").touch()
    make(clone, "lint", fails=True)
    assert count_calls(clone, "-m ruff") == 0
    (clone / "offline").unlink()
    assert make(clone, "lint").startswith("== Environment: .venv, with the packages of requirements.txt")
    assert "Environment" not in make(clone, "lint")
    assert (count_calls(clone, "-m venv"), count_calls(clone, "-m pip install")) == (1, 2)
    (clone / "requirements.txt").write_text("some==2.0\n")
    assert "Environment" in make(clone, "lint")
    make(clone, "clean")
    assert not (clone / ".venv").exists()


def test_an_existing_environment_is_used_as_it_is(clone: Path) -> None:
    """One that sees a cluster's PyTorch, say, as docs/slurm.md makes it."""
    settings = clone / "own" / "pyvenv.cfg"
    (clone / "own" / "bin").mkdir(parents=True)
    shutil.copy(clone / "stub", clone / "own" / "bin" / "python")
    settings.write_text("include-system-site-packages = true\n")
    make(clone, "lint", "VENV=own")
    assert settings.read_text() == "include-system-site-packages = true\n"
    assert (count_calls(clone, "-m venv"), count_calls(clone, "-m pip install")) == (0, 1)


def test_an_older_python_is_refused_in_one_line(clone: Path) -> None:
    (clone / "old").touch()
    output = make(clone, "lint", fails=True)
    assert output.startswith(f"error: {clone}/stub is not Python 3.11 or newer: name another, make PYTHON=")
