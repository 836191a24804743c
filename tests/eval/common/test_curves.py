"""Metrics read, smoothed and drawn."""

import json
import math

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from eval.common import curves
from eval.common.curves import plot_runs, read_metrics, series, smooth, tokens_a_step
from prepare.common.cli import UserError


def _run(folder, steps=40, tokens_a_step=4096, torn=False):
    """A run directory with all kinds of rows."""
    rows = [{"step": 0, "kind": "val", "loss": 11.0, "tokens": 999}]
    for step in range(1, steps + 1):
        row = {"loss": 3 + 8 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": step * tokens_a_step, "tokens_per_s": 1e4}
        rows.append({"step": step, "kind": "train", **row, "mfu": None})
    rows += [
        {"step": steps, "kind": "val", "loss": 3.5, "tokens": 999},
        {"step": steps, "kind": "hellaswag", "acc": 0.26, "acc_norm": 0.27, "tasks": 100},
        {"step": steps, "kind": "sample", "text": "hello"},
        {"step": steps, "kind": "event", "event": "stopped"},
    ]
    folder.mkdir(parents=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "metrics.jsonl").write_text(text + ('{"step": 41, "kind": "tra' if torn else ""))
    return folder


def _picture(path):
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 500
    assert image.shape[1] > 800
    return image[..., :3]


def test_torn_last_line_is_left_out(tmp_path):
    assert read_metrics(_run(tmp_path / "torn", torn=True)) == read_metrics(_run(tmp_path / "whole"))


def test_a_folder_without_metrics_is_an_error(tmp_path):
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_series_are_of_one_kind_and_null_is_nan(tmp_path):
    rows = [*read_metrics(_run(tmp_path / "run")), {"step": 41, "kind": "val", "loss": None}]
    steps, values = series(rows, "val", "loss")
    assert steps.tolist() == [0, 40, 41]
    assert values[:2].tolist() == [11.0, 3.5]
    assert math.isnan(values[2])
    assert all(len(array) == 0 for array in series(rows, "none", "loss"))
    assert tokens_a_step(rows) == 4096
    assert tokens_a_step(rows[:1]) is None


def test_smoothing_is_a_centred_mean_that_skips_nan():
    values = np.random.default_rng(0).normal(size=450)
    values[30] = np.nan
    smoothed = smooth(values)
    for place in (0, 3, 30, 200, 449):  # half a window is 450 // 100 = 4
        assert smoothed[place] == pytest.approx(np.nanmean(values[max(0, place - 4) : place + 5]))
    few = values[:99]
    assert smooth(few) is few


def test_pictures_show_every_run_and_panel(tmp_path):
    one = plot_runs([_run(tmp_path / "a")], tmp_path / "one.png")
    assert one == tmp_path / "one.png"
    first = _picture(one)
    height, width = first.shape[0] // 2, first.shape[1] // 2
    blue = np.array([31, 119, 180]) / 255
    for panel in (first[:height, :width], first[:height, width:], first[height:, :width], first[height:, width:]):
        assert (np.abs(panel - blue).max(-1) < 0.05).sum() > 30  # something is drawn in the first run's colour
    both = _picture(plot_runs([tmp_path / "a", _run(tmp_path / "b", steps=90)], tmp_path / "both.png"))
    orange = np.array([255, 127, 14]) / 255
    assert (np.abs(both - orange).max(-1) < 0.05).sum() > 200
    assert (np.abs(first - orange).max(-1) < 0.05).sum() == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a", "b", "both.png", "one.png"]  # nothing half-written


@pytest.mark.parametrize(
    ("row", "title", "values"),
    [
        ({"kind": "val", "loss": 0.3, "accuracy": 0.75}, "Accuracy", [0.75]),
        ({"kind": "hellaswag", "acc": 0.3, "acc_norm": 0.27}, "HellaSwag", [0.27]),
        ({"kind": "val", "loss": 0.3}, None, None),
    ],
)
def test_the_last_panel_is_the_score_that_a_run_has(tmp_path, monkeypatch, row, title, values):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, output: figures.append(figure) or output)
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 0, **row}) + "\n")
    plot_runs([tmp_path], tmp_path / "out.png")
    loss, _, _, *rest = figures[0].axes
    assert [panel.get_title(loc="left") for panel in rest] == ([title] if title else [])
    assert all(panel.get_lines()[0].get_ydata().tolist() == values for panel in rest)
    assert loss.get_ylabel() == ("nats per text" if title == "Accuracy" else "nats per token")
    plt.close(figures[0])


def test_tokens_and_steps_are_different_axes(tmp_path):
    run = _run(tmp_path / "a$^$b")  # no formula
    tokens = _picture(plot_runs([run], tmp_path / "tokens.png"))
    steps = _picture(plot_runs([run], tmp_path / "steps.png", over="steps"))
    assert not np.array_equal(tokens, steps)


def test_a_spike_of_one_step_may_leave_the_picture(tmp_path, monkeypatch):
    figures = []
    monkeypatch.setattr(curves, "save", lambda figure, output: figures.append(figure) or output)
    rows = [{"step": step, "kind": "train", "loss": 900.0 if step == 150 else 3.0} for step in range(1, 301)]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    plot_runs([tmp_path], tmp_path / "out.png")
    assert 100 < figures[0].axes[0].get_ylim()[1] < 500  # the smoothed line's 3 + 897 / 7 are in it
    plt.close(figures[0])


def test_a_picture_that_fails_leaves_the_one_before_it(tmp_path, monkeypatch):
    def broken(_figure, file, **_options):
        file.write(b"half")
        raise OSError("no space left")

    (tmp_path / "out.png").write_bytes(b"whole")
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="no space left"):
        curves.save(plt.figure(), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"whole"


@pytest.mark.filterwarnings("error")
def test_runs_that_have_barely_begun_are_drawn_too(tmp_path):
    only_val, empty, bad = tmp_path / "val", tmp_path / "empty", tmp_path / "nan"
    for folder, text in (
        (only_val, '{"step": 0, "kind": "val", "loss": 11.0, "tokens": 9}\n'),
        (empty, ""),
        (bad, '{"step": 1, "kind": "train", "loss": null, "lr": 0.1, "tokens": 8, "tokens_per_s": 2.0, "mfu": null}\n'),
    ):
        folder.mkdir()
        (folder / "metrics.jsonl").write_text(text)
        _picture(plot_runs([folder], tmp_path / "out.png"))


def test_an_unknown_suffix_is_an_error_and_leaves_nothing(tmp_path):
    run = _run(tmp_path / "run")
    for name in ("curves", "curves.docx"):
        with pytest.raises(UserError, match=r"choose another name"):
            plot_runs([run], tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
