"""The trainer's own behaviour; complete runs are in tests/train/test_train_gpt2.py."""

import os
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prepare.common.cli import UserError
from tests.helpers.checkpoints import corrupt_file
from tests.helpers.tiny import rows, tiny_trainer
from train.config.finetune import ClassifyConfig, TuneConfig
from train.config.pretrain import CheckpointConfig, Config, OptimConfig, TrainConfig
from train.trainer.trainer import MAX_SKIPPED, changeable_settings, one_line_errors


@pytest.fixture(autouse=True)
def no_signal_handlers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)


def test_a_run_ends_saved_and_done_and_is_resumed_where_it_was_stopped(tmp_path: Path) -> None:
    evaluated: list[int] = []

    def stop_after_3(step: int) -> bool:
        evaluated.append(step)
        trainer.stop.agreed = step == 3
        return step == 3

    trainer = tiny_trainer(tmp_path)
    trainer.train(stop_after_3)
    assert trainer.stopped
    trainer.finish()
    trainer.run.close()
    assert not (tmp_path / "DONE").exists()
    trainer = tiny_trainer(tmp_path)
    assert trainer.step == 3
    trainer.train(lambda step: evaluated.append(step) is not None)
    trainer.finish()
    assert (tmp_path / "DONE").read_text() == "7\n"
    assert evaluated == [0, 1, 2, 3, 3, 4, 5, 6, 7]
    assert [row["step"] for row in rows(tmp_path, "train")] == list(range(1, 8))


def test_the_evaluator_ends_a_run_early_and_it_is_done(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    trainer.train(lambda step: step == 2)
    trainer.finish()
    assert (trainer.step, trainer.stopped) == (2, False)
    assert (tmp_path / "DONE").read_text() == "7\n"
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000002"]


def test_a_trunk_is_lengthened_and_cooled_down_early_as_if_planned_so(tmp_path: Path) -> None:
    """With wsd, from checkpoints before the cooldown: weights, losses and learning rates to the last bit."""

    def run(name: str, steps: int, cooldown: int, stop_at: int = 0, branch: str = "") -> Path:
        trainer = tiny_trainer(
            tmp_path / name,
            branch and str(tmp_path / branch),
            train=TrainConfig(max_steps=steps, compile=False),
            optim=OptimConfig("muon", 0.01, warmup_steps=2, schedule="wsd", cooldown=cooldown / steps),
            checkpoint=CheckpointConfig(every=2, keep=1, keep_every=4, keep_steps=[1]),
        )

        def stop(step: int) -> bool:
            trainer.stop.agreed = step == stop_at
            return trainer.stop.agreed

        trainer.train(stop if stop_at else lambda _: False)
        trainer.finish()
        trainer.run.close()
        return tmp_path / name

    def outcome(path: Path) -> tuple[list, dict[str, torch.Tensor]]:
        steps = [(row["step"], row["loss"], row["lr"]) for row in rows(path, "train")]
        return steps, load_file(sorted((path / "checkpoints").iterdir())[-1] / "model.safetensors")

    def assert_same(path: Path, planned: Path) -> None:
        (steps, weights), (expected_steps, expected) = outcome(path), outcome(planned)
        assert steps == expected_steps
        assert all(torch.equal(weights[name], expected[name]) for name in expected)

    trunk = run("trunk", 12, cooldown=3, stop_at=9)
    kept = ["step_00000001", "step_00000004", "step_00000008", "step_00000009"]
    assert sorted(path.name for path in (trunk / "checkpoints").iterdir()) == kept
    for name, steps, cooldown, branch in (("short", 7, 3, kept[1]), ("middle", 10, 2, kept[2])):
        early = run(name, steps, cooldown, branch=f"trunk/checkpoints/{branch}")
        assert_same(early, run(f"{name} planned", steps, cooldown))
        assert f"branched from {trunk}/checkpoints/{branch}" in [row["event"] for row in rows(early, "event")]
    assert_same(run("trunk", 14, cooldown=4), run("longer planned", 14, cooldown=4))


def test_a_branch_from_what_is_no_valid_checkpoint_leaves_none(tmp_path: Path) -> None:
    tiny_trainer(tmp_path / "trunk").train(lambda step: step == 2)
    checkpoint = tmp_path / "trunk" / "checkpoints" / "step_00000002"
    for path in (tmp_path / "trunk", checkpoint.with_name("step_00000003")):
        with pytest.raises(UserError, match=f"run.branch {path} is not a checkpoint"):
            tiny_trainer(tmp_path / "branch", str(path))
    corrupt_file(checkpoint / "train_state.pt", "flipped")
    with pytest.raises(UserError, match="checksum mismatch"):
        tiny_trainer(tmp_path / "branch", str(checkpoint))
    assert [path.name for path in (tmp_path / "branch").iterdir()] == [".lock"]


def test_slurms_time_limit_leaves_room_for_the_slowest_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(int(time.time()) + 1000))
    trainer = tiny_trainer(tmp_path)
    trainer.save()
    assert not trainer.stop.requested()
    trainer.saver.slowest = 600.0
    trainer.save()
    assert trainer.stop.requested()  # twice 600 s is more than what is left


def test_the_last_rows_are_on_disk_before_done_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trainer, synced, original = tiny_trainer(tmp_path), [], os.fsync

    def fsync(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").resolve().name)
        original(handle)

    trainer.log.write(7, "val", loss=1.0)
    monkeypatch.setattr(os, "fsync", fsync)
    trainer.finish()
    assert synced == ["metrics.jsonl", "DONE.tmp", tmp_path.name]


def test_several_non_finite_steps_or_failed_saves_in_a_row_end_the_run(tmp_path: Path) -> None:
    trainer = tiny_trainer(tmp_path)
    for norm in (torch.nan, 1.0, *[torch.inf] * (MAX_SKIPPED - 1)):
        trainer.check_step(norm, saves_failed=False)
    with pytest.raises(UserError, match=rf"^{MAX_SKIPPED} steps in a row .* lower optim.max_lr"):
        trainer.check_step(torch.nan, saves_failed=False)
    with pytest.raises(UserError, match="saves in a row have failed"):
        trainer.check_step(1.0, saves_failed=True)


def test_the_settings_that_may_change_are_named_by_their_keys() -> None:
    config = Config(optim=OptimConfig(max_lr=0.5), train=TrainConfig(max_steps=7))
    found = changeable_settings(config)
    assert (found["optim.max_lr"], found["train.max_steps"], found["model.dropout"]) == (0.5, 7, 0.0)
    assert found["optim.betas"] == list(config.optim.betas)  # as JSON gives them back
    assert found == changeable_settings(replace(config, train=replace(config.train, seed=99)))
    classify = changeable_settings(ClassifyConfig(tune=TuneConfig(dropout=0.25)))
    assert (classify["tune.dropout"], classify["data.class_weights"]) == (0.25, "none")
    assert classify.keys() - found.keys() == {"tune.dropout", "data.class_weights"}


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"), "data.micro_batch_size 24"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "micro_batch_size 24: "),
        (MemoryError(), "data.micro_batch_size 24: give a smaller number"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process of this run is gone"),
    ],
)
def test_a_failure_of_the_machine_is_one_line(failure: Exception, words: str) -> None:
    with pytest.raises(UserError) as error, one_line_errors(24):
        raise failure
    assert words in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("failure", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("Timed out")])
def test_other_failures_stay_what_they_are(failure: Exception) -> None:
    with pytest.raises(type(failure)) as error, one_line_errors(24):
        raise failure
    assert error.value is failure
