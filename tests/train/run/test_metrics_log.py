"""What a run writes down: rows that survive a kill, each step once, and the console line."""

import json
import math
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.common.cli import UserError
from tests.helpers.event_files import assert_events_equal_metrics
from tests.helpers.tiny import rows
from train.config.pretrain import Config, LogConfig, TrainConfig
from train.parallel.world import World
from train.run import metrics_log as run_log
from train.run.metrics_log import MetricsLog, duration, read_rows

CONFIG = Config(train=TrainConfig(max_steps=100), log=LogConfig(wandb="disabled", tensorboard=False))
MAIN = World(0, 1, torch.device("cpu"))


def open_log(folder: Path, step: int = 0, config: Config = CONFIG, world: World = MAIN) -> MetricsLog:
    return MetricsLog(folder, config, step, flops_per_token=600, world=world, tokens_read=lambda steps: 1000 * steps)


def test_train_rows_carry_what_is_promised(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = open_log(tmp_path)
    log.train_row(7, loss=3.25, lr=1e-4, grad_norm=0.5, seconds=0.25)
    assert rows(tmp_path) == [
        {
            "step": 7,
            "kind": "train",
            "loss": 3.25,
            "lr": 1e-4,
            "grad_norm": 0.5,
            "tokens": 7000,
            "tokens_per_s": 4000.0,
            "mfu": None,
        }
    ]
    line = capsys.readouterr().out
    assert "step   7/100 | loss 3.2500 | lr 1.00e-04 | grad norm 0.50 | 4,000 tok/s | 23s left" in line
    assert "mfu" not in line


def test_mfu_divides_by_the_peak_of_all_gpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_log, "peak_flops", lambda _device: 1e6)
    log = open_log(tmp_path, world=World(0, 4, torch.device("cpu")))
    log.train_row(1, loss=1.0, lr=1.0, grad_norm=1.0, seconds=2.0)
    assert rows(tmp_path)[0]["mfu"] == pytest.approx(600 * (1000 / 2.0) / 4e6)


def test_the_interval_averages_its_steps(tmp_path: Path) -> None:
    log = open_log(tmp_path, config=replace(CONFIG, log=LogConfig(every=4, wandb="disabled")))
    for step in range(1, 9):
        log.train_row(step, loss=float(step), lr=1.0, grad_norm=1.0, seconds=0.1 if step <= 4 else 0.2 * (step % 2))
    written = rows(tmp_path)
    assert [row["step"] for row in written] == [4, 8]
    assert [row["tokens_per_s"] for row in written] == pytest.approx([10_000, 10_000])


def test_an_interval_of_0_leaves_the_train_rows_out(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    log = open_log(tmp_path, config=replace(CONFIG, log=replace(CONFIG.log, every=0)))
    for step in range(1, 101):
        log.train_row(step, loss=3.0, lr=1e-4, grad_norm=0.5, seconds=0.25)
    assert (rows(tmp_path), capsys.readouterr().out, log.seconds) == ([], "", [])


def test_after_a_resume_no_step_appears_twice(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for step in range(1, 8):
        log.train_row(step, loss=float(step), lr=1.0, grad_norm=1.0, seconds=1.0)
    log.write(4, "val", loss=2.0)
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "kind": "tra')  # killed in the middle of a line
    log = open_log(tmp_path, step=4)
    assert log.has(4, "val")
    assert log.has(4, "train")
    assert not log.has(5, "train")
    log.train_row(5, loss=50.0, lr=1.0, grad_norm=1.0, seconds=1.0)
    assert [(row["step"], row["loss"]) for row in rows(tmp_path)] == [(1, 1), (2, 2), (3, 3), (4, 4), (4, 2), (5, 50)]


@pytest.mark.parametrize("line", ["nonsense", "\0" * 4096, '{"step": 3, "kind": "tra', "7"])
def test_a_line_that_a_power_failure_corrupted_after_the_checkpoints_rows_is_dropped(tmp_path: Path, line: str) -> None:
    path = tmp_path / "metrics.jsonl"
    before, after = '{"step": 2, "kind": "val", "loss": 1.0}\n', f'{line}\n{line}\n{{"step": 3, "kind": "train"}}\n'
    path.write_text(before + after)
    open_log(tmp_path, step=2)
    assert path.read_text() == before
    path.write_text(before + after)
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is not a row"):
        open_log(tmp_path, step=3)
    with pytest.raises(UserError, match=r"metrics.jsonl:2 is not a row"):
        read_rows(path)


@pytest.mark.parametrize("line", ['{"step": null, "kind": "val"}', '{"step": 1.5, "kind": "val"}', '{"step": 1}', "[]"])
def test_a_line_without_a_step_and_a_kind_is_not_a_row(tmp_path: Path, line: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(line + '\n{"step": 2, "kind": "val"}\n')
    with pytest.raises(UserError, match=r"metrics.jsonl:1 is not a row"):
        open_log(tmp_path, step=2)


def test_rows_are_json_even_when_the_loss_is_not_a_number(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.train_row(1, loss=math.nan, lr=1.0, grad_norm=math.inf, seconds=1.0)
    row = json.loads((tmp_path / "metrics.jsonl").read_text(), parse_constant=pytest.fail)
    assert row["loss"] is None
    assert row["grad_norm"] is None


def test_other_ranks_write_nothing(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    config = replace(CONFIG, log=replace(CONFIG.log, tensorboard=True))
    log = open_log(tmp_path, config=config, world=World(1, 1, torch.device("cpu")))
    log.train_row(1, loss=1.0, lr=1.0, grad_norm=1.0, seconds=1.0)
    log.event(1, "something")
    log.sync()
    log.close()
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr().out == ""


def test_events_are_rows_and_lines(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    open_log(tmp_path).event(12, "the next epoch begins", epoch=2)
    assert rows(tmp_path) == [{"step": 12, "kind": "event", "event": "the next epoch begins", "epoch": 2}]
    assert capsys.readouterr().out == "step 12: the next epoch begins, epoch 2\n"


def test_an_event_that_is_there_already_is_not_repeated(tmp_path: Path) -> None:
    open_log(tmp_path).event(12, "the next epoch begins")
    log = open_log(tmp_path, step=12)  # killed before the next checkpoint, and started again
    log.event(12, "the next epoch begins")
    log.event(12, "stopped by SIGTERM")
    assert len(rows(tmp_path)) == 2


def test_each_start_logs_its_own_changes(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    log.event(4, "changed: optim.max_lr 1 (now 2)")
    log.event(12, "stopped by SIGTERM")
    log.event(12, "changed: optim.max_lr 2 (now 3)")
    open_log(tmp_path, step=12)  # the value is taken back
    assert [row["event"] for row in rows(tmp_path)] == ["changed: optim.max_lr 1 (now 2)", "stopped by SIGTERM"]


def test_validation_losses_are_known_by_step_after_a_resume_too(tmp_path: Path) -> None:
    log = open_log(tmp_path)
    for step, loss in ((0, 4.0), (5, math.nan), (10, 3.0), (15, 2.0)):
        log.write(step, "val", loss=loss, tokens=100)
    assert log.val_losses == {0: 4.0, 10: 3.0, 15: 2.0}
    assert open_log(tmp_path, step=10).val_losses == {0: 4.0, 10: 3.0}


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk: mounting a small one takes root")
def test_rows_wait_in_memory_while_the_disk_is_full(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a full disk: this root may not mount")
    try:
        log = open_log(small, config=replace(CONFIG, log=replace(CONFIG.log, tensorboard=True)))
        (small / "other").write_bytes(bytes(56_000))
        for step in range(1, 101):
            log.write(step, "val", loss=1.0, text="x" * 60)
        with pytest.raises(OSError, match="No space left"):
            log.sync()  # no checkpoint without its rows
        assert capsys.readouterr().out.count("its rows are kept in memory") == 2  # and TensorBoard's
        (small / "other").unlink()
        log.sync()
        log.write(101, "val", loss=1.0)
        assert [row["step"] for row in rows(small)] == list(range(1, 102))
        assert_events_equal_metrics(small, lambda step: 1000 * step)
    finally:
        log.close()
        subprocess.run(["umount", "--lazy", small], check=True)


def test_durations() -> None:
    assert [duration(s) for s in (0.4, 59, 61, 3599.6, 12_345)] == ["0s", "59s", "1m01s", "1h00m", "3h25m"]
