"""Metrics read, smoothed and drawn."""

import json
import math

import matplotlib.image
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from eval.common import curves
from eval.common.curves import plot_confusion, plot_runs, read_metrics, series, smooth, tokens_per_step
from eval.scoring.classification import Tally
from prepare.common.cli import UserError


def _write(folder, rows, torn=""):
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows) + torn)
    return folder


def _run(folder, steps=40, torn=""):
    """A run directory with all kinds of rows."""
    rows = [{"step": 0, "kind": "val", "loss": 11.0, "tokens": 999}]
    for step in range(1, steps + 1):
        row = {"loss": 3 + 8 / step, "lr": 1e-3, "grad_norm": 1.0, "tokens": step * 4096, "tokens_per_s": 1e4}
        rows.append({"step": step, "kind": "train", **row, "mfu": None})
    rows += [
        {"step": steps, "kind": "val", "loss": 3.5, "tokens": 999},
        {"step": steps, "kind": "hellaswag", "acc": 0.26, "acc_norm": 0.27, "tasks": 100},
        {"step": steps, "kind": "sample", "text": "hello"},
        {"step": steps, "kind": "event", "event": "stopped"},
    ]
    return _write(folder, rows, torn)


def _picture(path):
    image = matplotlib.image.imread(path)
    assert image.shape[0] > 500
    assert image.shape[1] > 800
    return image[..., :3]


@pytest.fixture
def figures(monkeypatch):
    """The figures that are drawn, which are not written."""
    figures = []
    monkeypatch.setattr(curves, "save_figure", lambda figure, output: figures.append(figure) or output)
    yield figures
    plt.close("all")


def test_metrics_are_read_without_a_torn_last_line(tmp_path):
    torn = _run(tmp_path / "torn", torn='{"step": 41, "kind": "tra')
    assert read_metrics(torn) == read_metrics(_run(tmp_path / "complete"))
    with pytest.raises(UserError, match=r"no metrics\.jsonl"):
        read_metrics(tmp_path)


def test_series_are_of_one_kind_and_null_is_nan(tmp_path):
    rows = [*read_metrics(_run(tmp_path / "run")), {"step": 41, "kind": "val", "loss": None}]
    steps, values = series(rows, "val", "loss")
    assert steps.tolist() == [0, 40, 41]
    assert values[:2].tolist() == [11.0, 3.5]
    assert math.isnan(values[2])
    assert all(len(array) == 0 for array in series(rows, "none", "loss"))
    assert tokens_per_step(rows) == 4096
    assert tokens_per_step(rows[:1]) is None


def test_smoothing_is_a_centred_mean_that_skips_nan():
    values = np.random.default_rng(0).normal(size=450)
    values[30] = np.nan
    smoothed = smooth(values)
    for place in (0, 3, 30, 200, 449):  # half a window is 450 // 100 = 4
        assert smoothed[place] == pytest.approx(np.nanmean(values[max(0, place - 4) : place + 5]))
    few = values[:99]
    assert smooth(few) is few


def test_pictures_show_every_run_over_tokens_or_steps(tmp_path):
    runs = [_run(tmp_path / "a"), _run(tmp_path / "b", steps=90)]
    assert plot_runs(runs[:1], tmp_path / "one.png") == tmp_path / "one.png"
    one, both = _picture(tmp_path / "one.png"), _picture(plot_runs(runs, tmp_path / "both.png"))
    orange = np.array([255, 127, 14]) / 255  # the second run's
    assert (np.abs(both - orange).max(-1) < 0.05).sum() > 200
    assert (np.abs(one - orange).max(-1) < 0.05).sum() == 0
    assert not np.array_equal(one, _picture(plot_runs(runs[:1], tmp_path / "steps.png", over="steps")))


@pytest.mark.parametrize(
    ("row", "title", "lines"),
    [
        ({"kind": "val", "loss": 0.3, "accuracy": 0.75}, "Accuracy", [0.75]),
        ({"kind": "hellaswag", "acc": 0.3, "acc_norm": 0.27}, "HellaSwag", [0.27, 0.25, 0.2955]),
        ({"kind": "val", "loss": 0.3}, None, None),
    ],
)
def test_the_last_panel_is_the_score_that_a_run_has(tmp_path, figures, row, title, lines):
    plot_runs([_write(tmp_path, [{"step": 0, **row}])], tmp_path / "out.png")
    loss, _, _, *rest = figures[0].axes
    assert [panel.get_title(loc="left") for panel in rest] == ([title] if title else [])
    assert all([line.get_ydata()[0] for line in panel.get_lines()] == lines for panel in rest)
    assert loss.get_ylabel() == ("nats per text" if title == "Accuracy" else "nats per token")


def test_each_named_validation_source_has_a_line(tmp_path, figures):
    rows = [{"step": step, "kind": "val", "loss": 3.0, "loss/web": 4.0 - step, "loss/code": 2.0} for step in (0, 1)]
    plot_runs([_write(tmp_path, rows)], tmp_path / "out.png")
    labels = [text.get_text() for text in figures[0].axes[0].get_legend().get_texts()]
    assert labels[1:3] == ["web (val 3.000)", "code (val 2.000)"]
    lines = {line.get_label(): line.get_ydata().tolist() for line in figures[0].axes[0].get_lines()}
    assert lines["web (val 3.000)"] == [4.0, 3.0]


def test_a_spike_of_one_step_may_leave_the_picture(tmp_path, figures):
    rows = [
        {"step": step, "kind": "train", "loss": 900.0 if step == 150 else 3.0, "tokens": 1} for step in range(1, 301)
    ]
    plot_runs([_write(tmp_path, rows)], tmp_path / "out.png")
    assert 100 < figures[0].axes[0].get_ylim()[1] < 500  # the smoothed line's 3 + 897 / 7 are in it


@pytest.mark.filterwarnings("error")
def test_runs_that_have_just_started_are_drawn_too(tmp_path):
    bad = {"step": 1, "kind": "train", "loss": None, "lr": 0.1, "tokens": 8, "tokens_per_s": 2.0, "mfu": None}
    for rows in ([{"step": 0, "kind": "val", "loss": 11.0, "tokens": 9}], [], [bad]):
        _picture(plot_runs([_write(tmp_path, rows)], tmp_path / "out.png"))


def test_a_picture_that_cannot_be_written_leaves_the_one_before_it(tmp_path, monkeypatch):
    def broken(_figure, file, **_options):
        file.write(b"half")
        raise OSError("no space left")

    run = _run(tmp_path / "run")
    (tmp_path / "out.png").write_bytes(b"complete")
    for name in ("curves", "curves.docx"):
        with pytest.raises(UserError, match=f"{name}: pictures are .png"):
            plot_runs([run], tmp_path / name)
    monkeypatch.setattr(Figure, "savefig", broken)
    with pytest.raises(OSError, match="no space left"):
        plot_runs([run], tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"complete"
    assert {path.name for path in tmp_path.iterdir()} == {"run", "out.png"}


def test_a_classifiers_picture_shows_labels_verbatim(tmp_path, request):
    tally, labels = Tally(3), ["$10_^$", "$50k-$100k", "c"]  # dollar signs begin formulas
    rng = np.random.default_rng(0)
    tally.add(rng.dirichlet([0.6, 0.4, 0.3], size=200), rng.integers(3, size=200))
    arguments = tally.metrics(), tally.confusion, tally.bins, labels, tmp_path / "report.png"
    _picture(plot_confusion(*arguments))
    figures = request.getfixturevalue("figures")
    plot_confusion(*arguments)
    matrix, reliability = figures[0].axes
    ticks = matrix.get_xticklabels()
    assert [tick.get_text() for tick in ticks] == labels
    assert not any(tick.get_parse_math() for tick in ticks)
    assert sum(int(text.get_text()) for text in matrix.texts) == 200
    assert sum(int(text.get_text()) for text in reliability.texts) == 200
