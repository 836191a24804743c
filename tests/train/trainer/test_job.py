"""What training scripts do before and behind the loop: failures in one line, and what a run may go on with changed."""

import errno
import os
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from prepare.common.cli import UserError
from tests.helpers.tiny import rows
from train.config.pretrain import Config, LogConfig, OptimConfig, RunConfig, TrainConfig
from train.parallel.world import World
from train.run.metrics_log import MetricsLog
from train.run.run_dir import RunDir
from train.trainer.job import changeable_settings, close, one_line_errors


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"), "out of memory with data.micro_batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "micro_batch_size 24: "),
        (MemoryError(), "out of memory with data.micro_batch_size 24: lower it"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process of this run is gone"),
    ],
)
def test_a_failure_of_the_machine_is_one_line(failure: Exception, words: str) -> None:
    with pytest.raises(UserError) as said, one_line_errors(24):
        raise failure
    assert words in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("failure", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("Timed out")])
def test_other_failures_stay_what_they_are(failure: Exception) -> None:
    with pytest.raises(type(failure)) as said, one_line_errors(24):
        raise failure
    assert said.value is failure


def test_the_values_that_may_change_are_named_by_their_keys() -> None:
    config = Config(optim=OptimConfig(max_lr=0.5), train=TrainConfig(max_steps=7))
    found = changeable_settings(config, tune__dropout=0.25)
    assert (found["optim.max_lr"], found["train.max_steps"], found["tune.dropout"]) == (0.5, 7, 0.25)
    assert found["optim.betas"] == list(config.optim.betas)  # as JSON gives them back
    assert found.keys() == changeable_settings(Config(), tune__dropout=0).keys()
    assert found == changeable_settings(replace(config, train=replace(config.train, seed=99)), tune__dropout=0.25)


def finished(run: Path) -> SimpleNamespace:
    """What `close` needs of a run that has come to its end, with its last row written."""
    world = World(0, 1, torch.device("cpu"))
    config = Config(log=LogConfig(wandb="disabled"), run=RunConfig(dir=str(run)), train=TrainConfig(max_steps=7))
    directory = RunDir(config, world)
    log = MetricsLog(run, config, 7, 1, world, lambda steps: steps)
    log.write(7, "val", loss=1.0)
    ignoring = SimpleNamespace(ignore=lambda: None)
    return SimpleNamespace(config=config, world=world, run=directory, log=log, step=7, stop=ignoring)


def test_the_last_rows_are_on_disk_before_done_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training, synced, original = finished(tmp_path), [], os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        original(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    close(training, stopped=False)
    assert synced == ["metrics.jsonl", "DONE.tmp", tmp_path.name]
    assert [row["step"] for row in rows(tmp_path)] == [7]


def test_a_run_whose_last_rows_find_no_room_is_not_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    training = finished(tmp_path)

    def full(_handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):  # one line of prepare.common.cli.run_script
        close(training, stopped=False)
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("DONE")]
