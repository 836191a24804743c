"""What a pretraining run checks before it evaluates; complete runs are in tests/train/test_train_gpt2.py."""

from pathlib import Path

import pytest

from eval.monitor.pretraining import PretrainEvaluator
from prepare.common.cli import UserError
from tests.helpers.tiny import tiny_trainer
from train.config.pretrain import EvalConfig
from train.parallel.world import World


def test_evaluations_that_cannot_run_are_turned_off_and_ranks_that_differ_in_them_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    trainer = tiny_trainer(tmp_path, eval=EvalConfig(every=0))
    evaluator = PretrainEvaluator(trainer, [], 2)
    assert evaluator.intervals == {"val": 0, "hellaswag": 0, "sample": 0}  # the shards have no manifest
    assert "no hellaswag while training" in capsys.readouterr().out
    monkeypatch.setattr(World, "all_equal", lambda _world, *values: values != (0,))  # another rank has the file
    with pytest.raises(UserError, match=r"hellaswag_val\.jsonl"):
        PretrainEvaluator(trainer, [], 2)
