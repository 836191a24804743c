"""Curves read from runs, and what becomes of failed and diverged ones."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from prepare.common.cli import UserError
from tests.helpers.sweeps import planned_run, write_run
from train.sweeping.results import Curve, mean_curve, read_curve, read_results


def test_tokens_to_a_loss_are_linear_between_evaluations() -> None:
    curve = Curve(np.array([0.0, 100, 200, 300]), np.array([8.0, 4, 5, 3]), np.array([0.0, 10, 20, 40]))
    assert curve.tokens_to(6) == 50
    assert curve.tokens_to(4) == 100
    assert curve.tokens_to(3.5) == 275
    assert curve.tokens_to(9) == 0
    assert curve.tokens_to(2.9) is None
    assert curve.seconds_to(250) == 30


def test_seconds_are_those_of_training_without_evaluations_and_gaps(tmp_path: Path) -> None:
    """100 tokens a step, at 50 and then at 200 tokens a second; rows every second step, evaluations every third."""
    run = write_run(planned_run(tmp_path), [8.0, 6.0, 5.0], speeds=[50, 50, 200])
    assert read_curve(run.path).tokens.tolist() == [0, 300, 600]
    assert read_curve(run.path).seconds.tolist() == [0, 6, 9]


def test_runs_evaluated_after_other_tokens_have_no_mean() -> None:
    one, other = (Curve(np.array(tokens), np.ones(2), np.ones(2)) for tokens in ([0, 1], [0, 2]))
    assert mean_curve([one, one]).tokens.tolist() == [0, 1]
    with pytest.raises(UserError, match="same tokens"):
        mean_curve([one, other])


def test_a_setting_counts_its_finished_runs_and_names_the_others(tmp_path: Path) -> None:
    good = [write_run(planned_run(tmp_path, "good", seed), [8.0, 6.0, loss]) for seed, loss in ((1, 3.0), (2, 3.2))]
    bad = [planned_run(tmp_path, "bad", seed) for seed in range(1, 6)]
    write_run(bad[0], [8.0, 6.0, 9.0])
    write_run(bad[1], [8.0, 6.0], done=False)
    (write_run(bad[2], [8.0, 6.0], done=False).path / "FAILED").write_text("out of memory\n")
    write_run(bad[3], [8.0], done=False)
    (bad[3].path / "FAILED").write_text("its last error\n")
    with (bad[3].path / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 5, "kind": "event", "event": "skipped", "in_a_row": 5}) + "\n")
    first, last = read_results([*bad, *good])
    assert (first.name, first.finals, first.loss) == ("good", [3.0, 3.2], pytest.approx(3.1))
    assert first.deviation == pytest.approx(math.sqrt(0.02))
    assert (last.name, last.curves, last.planned) == ("bad", [], 5)
    assert last.problems == [
        "bad,seed=1 diverged: its loss rose from 8.0000 to 9.0000",
        "bad,seed=2 is not finished",
        "bad,seed=3 failed: out of memory",
        "bad,seed=4 diverged: 5 steps in a row had a non-finite loss or gradient",
        "bad,seed=5 is not started",
    ]
    assert math.isnan(last.loss)
    assert last.deviation is None


def test_the_vocabulary_of_a_model_is_that_of_its_run(tmp_path: Path) -> None:
    """A configuration may leave it to the data."""
    run = planned_run(tmp_path)
    open_vocabulary = replace(run, config=replace(run.config, model=replace(run.config.model, vocab_size=0)))
    write_run(run, [8.0, 6.0])
    [result] = read_results([open_vocabulary])
    assert result.model.vocab_size == 64
    assert result.parameters == result.hidden_parameters + 64 * 8 + 8 * 8 + 2 * 8
