"""What torch.compile's C++ compiler leaves behind: whole files, or nothing that has a name."""

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from torch._inductor import config, cpp_builder

from prepare.common.cli import UserError
from tests.helpers.commands import ROOT, one_line_error, run_command
from train.parallel import compile_ddp as wrap
from train.parallel.compile_ddp import prepare_compiler

WHOLE = ROOT / "train" / "parallel" / "whole_g++"
SOURCE = 'extern "C" int answer() { return 42; }\n'


def test_a_compiler_that_is_killed_leaves_nothing_that_has_a_name(tmp_path: Path) -> None:
    source, output, slow = tmp_path / "a.cpp", tmp_path / "a.so", tmp_path / "slow"
    source.write_text(SOURCE)
    slow.write_text('#!/bin/sh\nfor word; do last=$word; done\necho half > "$last"\nsleep 100\n')
    slow.chmod(0o755)
    command = [WHOLE, "-shared", "-fPIC", source, "-o", output]
    process = subprocess.Popen(command, env={**os.environ, "CXX": str(slow)}, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (halves := [*tmp_path.glob("a.so.*")]) or not halves[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    subprocess.run(command, check=True)
    assert output.read_bytes()[:4] == b"\x7fELF"
    assert [*tmp_path.glob("a.so.*")] == halves  # and what it left does no harm


def test_its_failures_and_answers_are_the_compilers(tmp_path: Path) -> None:
    said = subprocess.run([WHOLE, "--version"], capture_output=True, text=True, check=True)
    assert said.stdout == subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    broken = tmp_path / "broken file.cpp"
    broken.write_text("int")
    failed = subprocess.run([WHOLE, "-c", broken, "-o", tmp_path / "b.o"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "error:" in failed.stderr
    assert [*tmp_path.iterdir()] == [broken]


def test_inductor_takes_it_for_gcc_and_other_compilers_stay() -> None:
    with config.patch("cpp.cxx", (None, "g++")):
        prepare_compiler("--compile", "leave it out")
        assert config.cpp.cxx == (None, str(WHOLE))
        assert cpp_builder.get_cpp_compiler() == str(WHOLE)
        assert cpp_builder.is_gcc()
    with config.patch("cpp.cxx", (None, "clang++")):
        prepare_compiler("--compile", "leave it out")
        assert config.cpp.cxx == (None, "clang++")


def test_without_a_compiler_one_line_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(UserError, match=r"^--compile needs a C\+\+ compiler, and none .*: get g\+\+, or leave it out$"):
        prepare_compiler("--compile", "leave it out")


def test_a_checkout_whose_path_has_a_space_does_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "a b"
    folder.mkdir()
    shutil.copy(WHOLE, folder)
    monkeypatch.setattr(wrap, "__file__", str(folder / "compile_ddp.py"))
    with config.patch("cpp.cxx", (None, "g++")):
        prepare_compiler("--compile", "leave it out")
        assert config.cpp.cxx == (None, "g++")


COMPILE = """
import torch
from prepare.common.cli import run_script
from train.trainer.job import one_line_errors
from train.parallel.compile_ddp import prepare_compiler
def main():
    prepare_compiler("train.compile", "set train.compile false")
    with one_line_errors(1):
        torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(100))
run_script(main)
"""


@pytest.mark.parametrize(
    ("compiler", "said"),
    [
        ("exit 1", "InvalidCxxCompiler: No working C++ compiler found"),
        ('case "$*" in *--version*) echo g++ 12;; *) echo "a.cpp:1:10: fatal error: Python.h: gone" >&2; exit 1;; esac',
         "here: a.cpp:1:10: fatal error: Python.h: gone: mend that, or set train.compile false"),
    ],
)  # fmt: skip
def test_a_compiler_that_does_not_work_is_one_line(tmp_path: Path, compiler: str, said: str) -> None:
    (tmp_path / "g++").write_text(f"#!/bin/sh\n{compiler}\n")
    (tmp_path / "g++").chmod(0o755)
    places = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = run_command("python", "-c", COMPILE, timeout=120, **places)
    assert "train.compile needs a C++ compiler that works" in one_line_error(result)
    assert said in result.stderr
