"""What a pretraining run checks before it evaluates; complete runs are in tests/train/test_train_gpt2.py."""

from pathlib import Path

import pytest

from eval.monitor.pretraining import PretrainEvaluator
from prepare.common.cli import UserError
from tests.helpers.tiny import rows, tiny_trainer
from train.config.pretrain import EvalConfig
from train.parallel.world import World


def test_evaluations_that_cannot_run_are_turned_off_and_ranks_that_differ_in_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    trainer = tiny_trainer(tmp_path, eval=EvalConfig(every=0))
    evaluator = PretrainEvaluator(trainer, {}, 2)
    assert evaluator.intervals == {"val": 0, "hellaswag": 0, "sample": 0}  # the shards have no manifest
    assert "no hellaswag while training" in capsys.readouterr().out
    monkeypatch.setattr(World, "all_equal", lambda _world, *values: values != (0,))  # another rank has the file
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl"):
        PretrainEvaluator(trainer, {}, 2)


def test_each_named_source_has_a_validation_loss_and_the_loss_is_their_mean(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    trainer = tiny_trainer(tmp_path, eval=EvalConfig(every=1, val_tokens=400, hellaswag_every=0, sample_every=0))
    shards = {name: [tmp_path / "shards" / f"tiny_{name}.bin"] for name in ("val_000000", "train_000001")}
    alone = [PretrainEvaluator(trainer, {"": paths}, 4)._validate() for paths in shards.values()]
    assert alone[0].keys() == {"loss", "tokens"}
    PretrainEvaluator(trainer, dict(zip(("web", "code"), shards.values(), strict=True)), 4).run(0)
    (row,) = rows(tmp_path, "val")
    web, code = (each["loss"] for each in alone)
    assert web != code
    assert (row["loss/web"], row["loss/code"], row["tokens"]) == (web, code, 800)
    assert row["loss"] == pytest.approx((web + code) / 2)
    assert f"| loss/web {web:.4f} | loss/code {code:.4f}" in capsys.readouterr().out
