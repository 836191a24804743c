"""The compiler's atomic writes and errors, and the check that all replicas hold the same parameters."""

import copy
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch
from torch._inductor import config, cpp_builder

from prepare.common.cli import UserError
from tests.helpers.commands import one_line_error, run_command
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.parallel import compile_ddp
from train.parallel.compile_ddp import ATOMIC_COMPILER, check_replicas, parameter_hash, prepare_compiler
from train.parallel.world import World


def test_a_killed_compiler_leaves_no_partial_file_under_the_final_name(tmp_path: Path) -> None:
    source, output, slow = tmp_path / "a.cpp", tmp_path / "a.so", tmp_path / "slow"
    source.write_text('extern "C" int answer() { return 42; }\n')
    slow.write_text('#!/bin/sh\nfor word; do last=$word; done\necho half > "$last"\nsleep 100\n')
    slow.chmod(0o755)
    command = [ATOMIC_COMPILER, "-shared", "-fPIC", source, "-o", output]
    process = subprocess.Popen(command, env={**os.environ, "CXX": str(slow)}, start_new_session=True)
    deadline = time.monotonic() + 30
    while not (partial := [*tmp_path.glob("a.so.*")]) or not partial[0].stat().st_size:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not output.exists()
    subprocess.run(command, check=True)
    assert output.read_bytes()[:4] == b"\x7fELF"
    assert [*tmp_path.glob("a.so.*")] == partial  # which does no harm


def test_its_failures_and_output_are_the_compilers(tmp_path: Path) -> None:
    version = subprocess.run([ATOMIC_COMPILER, "--version"], capture_output=True, text=True, check=True)
    assert version.stdout == subprocess.run(["g++", "--version"], capture_output=True, text=True, check=True).stdout
    broken = tmp_path / "broken file.cpp"
    broken.write_text("int")
    failed = subprocess.run([ATOMIC_COMPILER, "-c", broken, "-o", tmp_path / "b.o"], capture_output=True, text=True)
    assert failed.returncode == 1
    assert "error:" in failed.stderr
    assert [*tmp_path.iterdir()] == [broken]


def test_inductor_takes_it_for_gcc_except_where_it_cannot(monkeypatch: pytest.MonkeyPatch) -> None:
    def compiler_after(before: str) -> str:
        with config.patch("cpp.cxx", (None, before)):
            prepare_compiler()
            if config.cpp.cxx[1] == str(ATOMIC_COMPILER):
                assert cpp_builder.get_cpp_compiler() == str(ATOMIC_COMPILER)
                assert cpp_builder.is_gcc()
            return config.cpp.cxx[1]

    assert compiler_after("g++") == str(ATOMIC_COMPILER)
    assert compiler_after("clang++") == "clang++"
    monkeypatch.setattr(compile_ddp, "ATOMIC_COMPILER", Path("/a checkout/atomic_g++"))  # a space in its path
    assert compiler_after("g++") == "g++"
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CXX", "c++")
    with pytest.raises(UserError, match=r"^train\.compile needs a C\+\+ compiler, .* g\+\+, or set it false$"):
        prepare_compiler()


COMPILE = """
import torch
from prepare.common.cli import run_script
from train.parallel.compile_ddp import compiler_errors, prepare_compiler
def main():
    with compiler_errors():
        prepare_compiler()
        torch.compile(lambda x: torch.relu(x) + 1)(torch.ones(100))
run_script(main)
"""


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("exit 1", "InvalidCxxCompiler: No working C++ compiler found"),
        ('case "$*" in *--version*) echo g++ 12;; *) echo "a.cpp:1:10: fatal error: Python.h: gone" >&2; exit 1;; esac',
         "a.cpp:1:10: fatal error: Python.h: gone: fix that, or set train.compile false"),
    ],
)  # fmt: skip
def test_a_compiler_that_does_not_work_is_one_line(tmp_path: Path, script: str, reason: str) -> None:
    (tmp_path / "g++").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "g++").chmod(0o755)
    places = {"CXX": str(tmp_path / "g++"), "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache")}
    result = run_command("python", "-c", COMPILE, timeout=120, **places)
    assert "train.compile needs a C++ compiler that works" in one_line_error(result)
    assert reason in result.stderr


MODEL = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=27)


def test_one_bit_or_two_parameters_swapped_change_the_hash() -> None:
    torch.manual_seed(0)
    model = GPT(MODEL)
    before = parameter_hash(model)
    assert 0 <= before < 2**52
    assert parameter_hash(copy.deepcopy(model)) == before
    for parameter in model.parameters():
        with torch.no_grad():
            flat = parameter.view(-1)
            was = flat[-1].clone()
            flat[-1] = torch.nextafter(was, torch.tensor(9.0))
            assert parameter_hash(model) != before
            flat[-1] = was
    assert parameter_hash(model) == before
    first, second = model.h[0].mlp, model.h[1].mlp
    model.h[0].mlp, model.h[1].mlp = second, first
    assert parameter_hash(model) != before


def test_the_ranks_that_have_drifted_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def check(*hashes: int | None) -> None:
        """On ranks with these hashes; None is the model's own."""
        monkeypatch.setattr(World, "gather", lambda _, value: [value if h is None else h for h in hashes])
        check_replicas(model, 5, World(0, len(hashes), torch.device("cpu")))

    model = GPT(MODEL)
    check(None, None, None, None)
    with pytest.raises(UserError, match=r"after step 5 the parameters of rank 2 have drifted from the others'"):
        check(None, None, 7, None)
    with pytest.raises(UserError, match=r"of ranks 0, 3 have drifted"):
        check(8, None, None, 7, None)
    with pytest.raises(UserError, match=r"the parameters differ: rank 1 against the others"):
        check(None, 7)
