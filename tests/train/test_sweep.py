"""A sweep of real runs: stopped, killed, resumed, skipped, and its report."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prepare.common.cli import ArgumentError, UserError
from prepare.common.files import FileLock
from tests.helpers.fork_server import SUPPORTED, ForkedPopen
from tests.helpers.tiny import rows, write_shards
from train import sweep
from train.run.stop_request import SIGNALS
from train.sweeping import runs

CONFIG = """
model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 32, vocab_size: 64}}
data: {{train: "{data}/*_train_*.bin", val: "{data}/*_val_*.bin", batch_tokens: 256, micro_batch_size: 8}}
optim: {{max_lr: 0.01, warmup_steps: 2}}
train: {{max_steps: 150, device: cpu, precision: fp32, compile: false}}
eval: {{every: 50, val_tokens: 256, hellaswag_every: 0, sample_every: 0}}
checkpoint: {{every: 20, keep: 1}}
log: {{every: 5, wandb: disabled}}
"""


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A tiny configuration; the runs are forked, and the signals' handlers restored."""
    if SUPPORTED:
        monkeypatch.setattr(runs, "Popen", ForkedPopen)
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    write_shards(tmp_path / "data")
    (tmp_path / "tiny.yaml").write_text(CONFIG.format(data=tmp_path / "data"))
    yield tmp_path / "tiny.yaml"
    for number, handler in handlers.items():
        signal.signal(number, handler)


def during(run: Path, step: int, act: Callable[[], None]) -> threading.Thread:
    """Act once the run has a row after this step."""

    def wait() -> None:
        while not ((run / "metrics.jsonl").exists() and max((row["step"] for row in rows(run)), default=0) >= step):
            time.sleep(0.01)
        act()

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    return thread


@pytest.mark.timeout(300)
def test_a_sweep_is_stopped_killed_resumed_and_finished(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["--config", str(config), "--grid", "optim.max_lr=1e-2", "--seeds", "2", "--out", str(out)]
    first, second = (out / f"max_lr=0.01,seed={seed}" for seed in (1, 2))

    # SIGTERM: the run saves, and the sweep ends
    during(first, 5, lambda: os.kill(os.getpid(), signal.SIGTERM))
    sweep.main(words)
    printed = capsys.readouterr().out
    assert f"train/train_gpt2.py --config {config} --run.dir {first} --optim.max_lr=1e-2 --train.seed=1" in printed
    assert "the same command resumes the sweep" in printed
    assert list((first / "checkpoints").iterdir())
    assert not any(path.exists() for path in (first / "DONE", first / "STOP", second))

    # kill -9 of a run: the sweep goes to the next run, and names it
    stopped = max(row["step"] for row in rows(first))
    during(first, stopped + 5, lambda: os.kill(int((first / ".lock").read_text().split()[0]), signal.SIGKILL))
    with pytest.raises(UserError, match=r"1 of 2 runs failed.*seed=1"):
        sweep.main(words)
    assert (second / "DONE").exists()
    assert "seed=1 is not finished: step " in (out / "sweep.md").read_text()

    # another process trains the run that is left: it is skipped
    with FileLock(first / ".lock", first):
        sweep.main(words)
    assert not (first / "DONE").exists()
    finished = (second / "metrics.jsonl").stat().st_mtime_ns
    sweep.main([*words, "--reference", str(second)])
    assert (second / "metrics.jsonl").stat().st_mtime_ns == finished  # not trained again
    for run in (first, second):
        assert (run / "DONE").read_text() == "150\n"
        assert [row["step"] for row in rows(run, "train")] == list(range(5, 151, 5))
    table = (out / "sweep.md").read_text()
    assert "max_lr=0.01 |     2 |" in table
    assert "not finished" not in table
    assert (out / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_mistake_ends_the_sweep_before_the_first_run(config: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--config", str(config), "--out", str(out), "--grid"]
    with pytest.raises(ArgumentError, match=r"optim\.max_lrr"):
        sweep.main([*words, "optim.max_lr=1", "optim.max_lrr=1"])
    with pytest.raises(UserError, match="nothing has no metrics"):
        sweep.main([*words, "optim.max_lr=1", "--reference", "nothing"])
    assert not list(out.glob("*"))
