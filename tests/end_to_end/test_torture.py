"""Six kills, each in another set-up (make torture does 200), torchrun's restarts, workers that outlive it."""

import shutil
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.helpers.commands import ROOT, free_port
from tests.programs import torture
from tests.programs.torture import SETUPS, Difference, Start, checkpoints, compare, write_data

TWO = next(setup for setup in SETUPS if setup.processes == 2 and not setup.compiled)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_data(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="module")
def reference(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted run of two processes, with dropout and accumulation."""
    folder = tmp_path_factory.mktemp("reference")
    assert Start(TWO.command(data, folder / "run"), folder / "console", folder).exit_status() == 0
    return folder / "run"


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_kills_lose_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    """Each of the six set-ups trains its reference and is killed once. Minutes on two cores, most of it compilation."""
    monkeypatch.setattr("sys.argv", ["torture", "6", "--seed", "9"])
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    before = signal.getsignal(signal.SIGTERM)
    status = torture.main()
    signal.signal(signal.SIGTERM, before)
    output = capsys.readouterr().out
    print(output)
    assert status == 0
    last = output.splitlines()[-1]
    assert last.startswith("6 kills, ")
    assert last.endswith("all runs identical to their references")
    assert not list(tmp_path.glob("torture_*"))  # killed compilers and torchruns leave files of their own there


@pytest.mark.slow
@pytest.mark.parametrize("rank", [0, 1])
def test_torchrun_restarts_the_run(data: Path, reference: Path, tmp_path: Path, rank: int) -> None:
    """About 15 s on two cores."""
    run = tmp_path / "run"
    start = Start(TWO.command(data, run, "--max-restarts=3"), tmp_path / "console", tmp_path)
    try:
        assert start.wait(lambda: start.step() >= 40)
        assert start.kill(f"rank {rank}")
        assert start.exit_status() == 0, start.output()
    finally:
        start.kill_all()
    assert "resumed at step " in start.output()
    assert (run / "DONE").exists()
    compare(run, reference)


LATE = """
import os, sys, time
if os.environ["RANK"] == "1":
    time.sleep(4)
os.environ["LOCAL_WORLD_SIZE"] = "2"  # as many threads as on one node
sys.path[0] = sys.argv.pop(1)
from prepare.common.cli import run_script
from train import train_gpt2
run_script(train_gpt2.main)
"""


@pytest.mark.slow
def test_torchruns_of_two_nodes_restart_the_run(data: Path, reference: Path, tmp_path: Path) -> None:
    """About 40 s on two cores. Rank 1 starts later than rank 0 each time, which must not wait for the dead one."""
    run, script, consoles = tmp_path / "run", tmp_path / "late.py", [tmp_path / "console 0", tmp_path / "console 1"]
    script.write_text(LATE)
    launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--max-restarts=3"]
    launcher += ["--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{free_port()}"]
    words = TWO.command(data, run)
    words = [sys.executable, *launcher, str(script), str(ROOT), *words[words.index("--model.n_layer") :]]
    nodes = [Start(words, console, tmp_path) for console in consoles]
    try:
        assert nodes[0].wait(lambda: any(node.worker(1) for node in nodes))
        first, killed = sorted(nodes, key=lambda node: node.worker(1) is not None)
        for step in (30, 60):  # by chance the dead one's address is waited for, refused or overlooked
            assert first.wait(lambda step=step: first.step() >= step)
            assert killed.kill("rank 1")
        assert [node.exit_status() for node in nodes] == [0, 0], first.output() + killed.output()
    finally:
        for node in nodes:
            node.kill_all()
    assert first.output().count("resumed at step ") == first.output().count("model: ") - 1 == 2, first.output()
    compare(run, reference)


@pytest.mark.slow
def test_workers_end_after_their_torchrun_and_the_same_command_resumes(
    data: Path, reference: Path, tmp_path: Path
) -> None:
    """torchrun holds the store that they communicate through. About 15 s on two cores."""
    run = tmp_path / "run"
    orphans = Start(TWO.command(data, run), tmp_path / "orphans", tmp_path)
    again = None
    try:
        assert orphans.wait(lambda: orphans.step() >= 40)
        assert orphans.kill("torchrun")
        until = time.monotonic() + 60
        while orphans.processes() and time.monotonic() < until:
            time.sleep(0.05)
        assert not orphans.processes()
        again = Start(TWO.command(data, run), tmp_path / "again", tmp_path)
        assert again.exit_status() == 0, again.output()
    finally:
        orphans.kill_all()
        if again:
            again.kill_all()
    compare(run, reference)


def flip_a_bit(run: Path) -> None:
    path = checkpoints(run)[-1] / "model.safetensors"
    weights = load_file(path)
    next(iter(weights.values())).view(torch.int32).view(-1)[7] ^= 1
    save_file(weights, path)


def change_row(run: Path, old: str, new: str) -> None:
    log = run / "metrics.jsonl"
    text = log.read_text()
    assert old in text
    log.write_text(text.replace(old, new, 1))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (flip_a_bit, "differs by .* in the final weights"),
        (lambda run: change_row(run, '{"step": 100, "kind": "train"', '{"step": 99, "kind": "train"'), "99, 99"),
        (lambda run: change_row(run, '"kind": "val", "loss": 2.', '"kind": "val", "loss": 2.0'), "the reference has"),
        (lambda run: change_row(run, '"kind": "sample"', '"kind": "event"'), "sample rows at steps"),
        (lambda run: shutil.rmtree(checkpoints(run)[-1]), "last checkpoint is of step 99"),
        (lambda run: (run / "checkpoints" / ".step_00000003.tmp").mkdir(), "in the run's directory"),
        (lambda run: (run / "metrics.jsonl.tmp").touch(), "in the run's directory"),
        (lambda run: (run / "DONE").unlink(), "in the run's directory"),
    ],
)
def test_the_smallest_difference_is_found(
    reference: Path, tmp_path: Path, damage: Callable[[Path], None], message: str
) -> None:
    run = tmp_path / "run"
    shutil.copytree(reference, run)
    compare(run, reference)
    damage(run)
    with pytest.raises(Difference, match=message):
        compare(run, reference)
