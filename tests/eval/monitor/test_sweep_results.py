"""Curves read from runs, and what becomes of failed and diverged ones."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from eval.monitor.sweep_results import Curve, mean_curve, read_curve, read_results
from tests.helpers.sweeps import planned_run, write_run


def test_tokens_to_a_loss_are_linear_between_evaluations() -> None:
    curve = Curve(np.array([0.0, 100, 200, 300]), np.zeros(4), np.array([8.0, 4, 5, 3]))
    assert [curve.tokens_to(loss) for loss in (9, 6, 4, 3.5, 2.9)] == [0, 50, 100, 275, None]


def test_seconds_are_those_of_training_and_a_mean_is_after_the_tokens_of_the_first(tmp_path: Path) -> None:
    """100 tokens a step, at 50 and then at 200 tokens a second; rows every second step, evaluations every third."""
    curve = read_curve(write_run(planned_run(tmp_path), [8.0, 6.0, 5.0], speeds=[50, 50, 200]).path)
    assert [array.tolist() for array in (curve.tokens, curve.seconds)] == [[0, 300, 600], [0, 6, 9]]
    mean = mean_curve([curve, Curve(np.array([0.0, 600]), np.array([0.0, 12]), np.array([6.0, 4]))])
    assert [array.tolist() for array in (mean.tokens, mean.seconds)] == [[0, 300, 600], [0, 6, 10.5]]
    assert mean.losses.tolist() == [7, 5.5, 4.5]


def test_a_setting_counts_its_finished_runs_and_names_the_others(tmp_path: Path) -> None:
    good = [write_run(planned_run(tmp_path, "good", seed), [8.0, 6.0, loss]) for seed, loss in ((1, 3.0), (2, 3.2))]
    bad = [planned_run(tmp_path, "bad", seed) for seed in range(1, 6)]
    write_run(bad[0], [8.0, 6.0, 9.0])
    for run, output in ((bad[1], "step 3\n"), (bad[2], "error: out of memory\ntorchrun's\n"), (bad[3], "")):
        (write_run(run, [8.0, 6.0], done=False).path / "train.log").write_text(output)
    with (bad[3].path / "metrics.jsonl").open("a") as file:
        for event, values in (("skipped: ...", {"in_a_row": 5}), ("checkpoint", {"pause_seconds": 0.1})):
            file.write(json.dumps({"step": 5, "kind": "event", "event": event, **values}) + "\n")
    with (bad[2].path / "metrics.jsonl").open("a") as file:
        row = {"step": 5, "kind": "event", "event": "the checkpoint could not be written", "in_a_row": 5}
        file.write(json.dumps(row) + "\n")
    assert [run.is_finished for run in bad] == [True, False, False, True, False]
    first, last = read_results([*bad, *good])
    assert (first.name, first.final_losses, first.loss) == ("good", [3.0, 3.2], pytest.approx(3.1))
    assert (last.name, last.curves) == ("bad", [])
    assert last.problems == [
        "bad_1 diverged: its loss rose from 8.0000 to 9.0000",
        "bad_2 is not finished: step 3",
        "bad_3 is not finished: error: out of memory",
        "bad_4 diverged: too many steps in a row had a non-finite loss or gradient",
        "bad_5 is not started",
    ]


def test_the_vocabulary_of_a_model_is_that_of_its_run(tmp_path: Path) -> None:
    """A configuration may leave it to the data."""
    run = planned_run(tmp_path)
    from_data = replace(run, config=replace(run.config, model=replace(run.config.model, vocab_size=0)))
    write_run(run, [8.0, 6.0])
    [result] = read_results([from_data])
    assert result.parameters == result.hidden_parameters + 64 * 8 + 8 * 8 + 2 * 8
