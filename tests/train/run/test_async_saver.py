"""Asynchronous checkpoints: the copied state is written, whatever training changes, and failures have a limit."""

import os
import subprocess
import threading
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prepare.common.cli import UserError
from tests.helpers.tiny import rows
from train.config.pretrain import CheckpointConfig, Config, LogConfig, ModelConfig, OptimConfig
from train.model.gpt import GPT
from train.parallel.world import World
from train.run import async_saver as saver
from train.run import checkpoint
from train.run.async_saver import AsyncSaver
from train.run.metrics_log import MetricsLog
from train.trainer.optim import build_optimizer

META = {"tokenizer": None}


def build(n_embd: int = 16) -> tuple[GPT, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=n_embd, block_size=8, vocab_size=27))
    return model, build_optimizer(model, OptimConfig())


def move(model: GPT, optimizer: torch.optim.Optimizer) -> None:
    idx = torch.randint(27, (2, 8))
    model(idx, idx).backward()
    optimizer.step()


def start(run: Path, model: GPT, optimizer: torch.optim.Optimizer, **settings: int) -> AsyncSaver:
    config = Config(log=LogConfig(tensorboard=False, wandb="disabled"))
    log = MetricsLog(run, config, 0, 1, World(0, 1, torch.device("cpu")), int)
    return AsyncSaver(run, model, optimizer, CheckpointConfig(**settings), log)


def weights(run: Path, step: int) -> torch.Tensor:
    return load_file(run / "checkpoints" / f"step_{step:08d}" / "model.safetensors")["wte.weight"]


def test_memory_is_pinned_for_what_is_saved_and_too_little_is_a_one_line_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = build()
    saver = start(tmp_path, model, optimizer)
    model.wte.weight.requires_grad_(False)  # it has no state, and a matrix of Muon's a momentum only
    saver.optimizer = build_optimizer(model, OptimConfig(optimizer="muon"))
    pinned: list[int] = []
    monkeypatch.setattr(torch, "empty", lambda shape, **_: pinned.append(shape.numel()))
    saver._pin()
    matrices = sum(parameter.numel() for parameter in model.h.parameters() if parameter.dim() == 2)
    assert sum(pinned) == 3 * model.num_parameters() - 2 * model.wte.weight.numel() - matrices

    def refuse(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch, "empty", refuse)
    with pytest.raises(UserError, match=r"machine \(not its GPU\) has no memory for a pinned copy .* 0.0 GB"):
        saver._pin()


def test_the_loop_continues_while_a_thread_writes_and_two_writes_never_overlap(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = build()
    released, writing, original = threading.Event(), [], checkpoint.write

    def slow(*arguments: object) -> Path:
        writing.append(threading.current_thread().name)
        assert len(writing) == 1
        assert released.wait(30)
        time.sleep(0.1)  # that save has to wait, once it waits
        path = original(*arguments)
        writing.clear()
        return path

    monkeypatch.setattr(saver.checkpoint, "write", slow)
    background = start(tmp_path, model, optimizer)
    move(model, optimizer)
    first = model.wte.weight.detach().clone()
    background.save(1, META)
    move(model, optimizer)  # while the write stands still
    second = model.wte.weight.detach().clone()
    background.report()
    assert not (tmp_path / "checkpoints").exists()
    assert rows(tmp_path) == []
    report = background.report
    monkeypatch.setattr(background, "report", lambda wait=False: (released.set(), report(wait)))
    background.save(2, META)  # waits for the first
    move(model, optimizer)
    background.finish()
    assert torch.equal(weights(tmp_path, 1), first)
    assert torch.equal(weights(tmp_path, 2), second)
    assert not torch.equal(first, second)
    assert [(row["step"], row["event"]) for row in rows(tmp_path)] == [(1, "checkpoint"), (2, "checkpoint")]
    assert rows(tmp_path)[1]["pause_seconds"] >= 0.1  # it had to wait
    assert background.slowest > 0.1
    state = torch.load(tmp_path / "checkpoints" / "step_00000002" / "train_state.pt", weights_only=True)
    assert {key for values in state["optimizer"].values() for key in values} == {"step", "exp_avg", "exp_avg_sq"}
    assert state["optimizer"][0]["step"] == 2


def test_a_checkpoint_is_written_when_the_rows_before_it_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, optimizer = build()
    background = start(tmp_path, model, optimizer)
    done, metrics, fsync, write = [], tmp_path / "metrics.jsonl", os.fsync, checkpoint.write

    def record(handle: int) -> None:
        if os.path.sameopenfile(handle, background.log.file.handle):
            done.append(("rows on disk", metrics.read_text().count("\n")))
        fsync(handle)

    def begin(*arguments: object) -> Path:
        done.append(("checkpoint", arguments[1]))
        return write(*arguments)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(saver.checkpoint, "write", begin)
    for step in (1, 2):
        background.log.write(step, "val", loss=1.0)
        background.save(step, META)
        background.report(wait=True)  # which adds a row
    background.finish()
    assert done == [("rows on disk", 1), ("checkpoint", 1), ("rows on disk", 3), ("checkpoint", 2)]


@pytest.mark.parametrize(("last", "kept"), [((4, float("nan")), [2, 4]), ((5, 1.0), [5])])
def test_the_best_validation_loss_is_kept(tmp_path: Path, last: tuple[int, float], kept: list[int]) -> None:
    model, optimizer = build()
    background = start(tmp_path, model, optimizer, keep=1)
    for step, loss in ((1, 3.0), (2, 2.0), (3, 4.0), last):
        background.save(step, META)
        background.log.write(step, "val", loss=loss)  # after its save, as in the last step of a run
    background.finish()
    assert [checkpoint.step_of(path) for path in checkpoint.all_checkpoints(tmp_path)] == kept


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk: mounting a small one takes root")
def test_a_full_disk_is_reported_and_ends_the_run_only_after_several_failures(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a full disk: this root may not mount")
    try:
        model, optimizer = build(n_embd=48)
        move(model, optimizer)
        background = start(small, model, optimizer, keep=1)
        background.save(5, META)
        background.report(wait=True)
        (small / "other").write_bytes(bytes(600_000))  # somebody else's file
        for step in (10, 15):
            background.save(step, META)
            background.report(wait=True)
        assert not background.gave_up
        assert [path.name for path in (small / "checkpoints").iterdir()] == ["step_00000005"]
        failures = [(row["step"], row["in_a_row"]) for row in rows(small) if "could not be written" in row["event"]]
        assert failures == [(10, 1), (15, 2)]
        (small / "other").unlink()  # room again: the count starts again at 0
        background.save(20, META)
        background.report(wait=True)
        assert background.failures == 0
        (small / "other").write_bytes(bytes(600_000))
        for step in (25, 30, 35):
            background.save(step, META)
            background.report(wait=True)
        assert background.gave_up
        with pytest.raises(UserError, match=r"the last checkpoint of .* could not be written: make room"):
            background.finish()
        assert checkpoint.step_of(checkpoint.latest_valid_checkpoint(small)[0]) == 20
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)
