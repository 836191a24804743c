"""Pictures: the curves of runs, from their metrics.jsonl, and a classifier's confusion matrix."""

from collections.abc import Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # needs no display

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from eval.common.score_table import PUBLISHED
from prepare.common.cli import UserError
from prepare.common.files import atomic_write
from train.run.metrics_log import METRICS, read_rows

Over = Literal["tokens", "steps"]
Row = dict[str, Any]  # of metrics.jsonl
HELLASWAG, ACCURACY = ("hellaswag", "acc_norm"), ("val", "accuracy")  # scores: the kind of row and its key
REFERENCES = {"chance": (0.25, ":"), "OpenAI's 124M": (PUBLISHED["hellaswag plain acc_norm"][1]["124M"], "--")}
EVERY_STEP = "every step"  # marks the thin lines of single steps, below a smoothed one
GREY = "#777777"
STYLE = {
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "legend.frameon": False,
    "legend.fontsize": 9,
    "text.parse_math": False,  # dollar signs in a label do not start a formula
}


def read_metrics(run_dir: Path | str) -> list[Row]:
    """Read the rows of a run's metrics.jsonl. UserError if it is missing or corrupt."""
    path = Path(run_dir) / METRICS
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS}: give the directory of a run, such as runs/quickstart")
    return read_rows(path)


def series(rows: Sequence[Row], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values, float64 (n,) each, of the rows of one kind that have this key; null (not finite) is nan."""
    pairs = [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)  # float64(None) is nan


def smooth(values: np.ndarray) -> np.ndarray:
    """Centred mean over about a fiftieth of the values, (n,), leaving out nan."""
    half = len(values) // 100
    if half == 0:
        return values
    finite = np.isfinite(values)
    window = np.ones(2 * half + 1)
    sums = np.convolve(np.where(finite, values, 0), window, "same")
    counts = np.convolve(finite.astype(float), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def tokens_per_step(rows: Sequence[Row]) -> float | None:
    """Tokens in a step of the run; None before its first train row."""
    trained = (row for row in reversed(rows) if row["kind"] == "train" and row["step"])
    return next((row["tokens"] / row["step"] for row in trained), None)


def plot_runs(run_dirs: Sequence[Path | str], output: Path | str, over: Over = "tokens") -> Path:
    """Draw loss, learning rate and throughput of runs, and HellaSwag or a classifier's accuracy if there is one.

    Args:
        output: picture; its suffix gives the format.
        over: the horizontal axis; steps if a run has no train row yet.

    Raises:
        UserError: a directory without metrics.jsonl, or a suffix that is not a picture's.
    """
    runs = [read_metrics(run) for run in run_dirs]
    names = [str(run) for run in run_dirs] if len(runs) > 1 else [Path(run).resolve().name for run in run_dirs]
    scales = [scale for rows in runs if (scale := tokens_per_step(rows))]
    if over == "steps" or len(scales) < len(runs):
        over, scales = "steps", [1.0] * len(runs)
    score = next((each for each in (HELLASWAG, ACCURACY) if any(len(series(rows, *each)[0]) for rows in runs)), None)
    grid, size = ((2, 2), (11, 7)) if score else ((1, 3), (14, 4))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
        panels: list[Axes] = list(axes.flat)
        for number, (name, rows, scale) in enumerate(zip(names, runs, scales, strict=True)):
            _draw_run(panels, rows, scale, name, f"C{number % 10}", score)
        _label_panels(panels, over, score)
        return save_figure(figure, Path(output))


def _draw_run(
    panels: Sequence[Axes], rows: Sequence[Row], scale: float, name: str, color: str, score: tuple[str, str] | None
) -> None:
    """Draw one run: every step as a thin line, a smoothed line over it, evaluations as dots; those of named validation
    sources are joined."""
    for panel, key in zip(panels, ("loss", "lr", "tokens_per_s"), strict=False):
        steps, values = series(rows, "train", key)
        if key != "lr":
            panel.plot(steps * scale, values, color=color, linewidth=0.6, alpha=0.35, gid=EVERY_STEP)
        panel.plot(steps * scale, values if key == "lr" else smooth(values), color=color)
    loss, dots = panels[0], {"color": color, "marker": "o", "markersize": 5, "markeredgecolor": "white"}
    steps, values = series(rows, "val", "loss")
    loss.plot(steps * scale, values, **dots, linestyle="", clip_on=False, zorder=3)
    loss.plot([], [], color=color, linewidth=4, label=name + (f" (val {values[-1]:.3f})" if len(values) else ""))
    sources = {key: None for row in rows if row["kind"] == "val" for key in row if key.startswith("loss/")}
    for key, marker in zip(sources, cycle("s^vD"), strict=False):
        steps, values = series(rows, "val", key)
        style = dots | {"marker": marker, "markerfacecolor": "white", "markeredgecolor": color, "linewidth": 1}
        loss.plot(steps * scale, values, ":", **style, label=f"{key[len('loss/') :]} (val {values[-1]:.3f})")
    if score:
        steps, values = series(rows, *score)
        panels[-1].plot(steps * scale, values, **dots, label=f"{values[-1]:.2%}" if len(values) else None)


def _label_panels(panels: Sequence[Axes], over: Over, score: tuple[str, str] | None) -> None:
    """Add titles, units, limits and legends, once everything is drawn."""
    loss, rate, speed = panels[:3]
    unit = "nats per text" if score == ACCURACY else "nats per token"
    loss.set(title="Loss", ylabel=unit, ylim=_loss_limits(loss))
    rate.set(title="Learning rate")
    speed.set(title="Throughput", ylabel="tokens per second")
    rate.yaxis.set_major_formatter("{x:g}")
    speed.yaxis.set_major_formatter(short_number)
    right = max((x for panel in panels for line in panel.get_lines() for x in line.get_xdata()), default=0) or 1
    for panel in panels:
        panel.set(xlabel=over, xlim=(0, 1.02 * right))
        panel.xaxis.set_major_formatter(short_number)
    for panel in (rate, speed):
        panel.set_ylim(bottom=0)
    loss.plot([], [], color=GREY, label="train")
    loss.plot([], [], color=GREY, marker="o", markersize=5, linestyle="", label="validation")
    loss.legend(loc="upper right")
    if score:
        panel = panels[-1]
        panel.set(title="HellaSwag" if score == HELLASWAG else "Accuracy", ylabel=score[1])
        panel.yaxis.set_major_formatter("{x:.1%}")
        for name, (value, style) in REFERENCES.items() if score == HELLASWAG else ():
            panel.axhline(value, color=GREY, linewidth=1, linestyle=style, label=name)
        panel.legend(loc="best")


def _loss_limits(panel: Axes) -> tuple[float, float]:
    """Limits that fit the smoothed lines and the dots; a spike of a single step may be cut off."""
    values = np.concatenate([line.get_ydata() for line in panel.get_lines() if line.get_gid() != EVERY_STEP])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    margin = max(0.05 * np.ptp(values), 0.05)
    return values.min() - margin, values.max() + margin


def short_number(value: float, _position: int) -> str:
    """10k, 500M, 1.5B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def plot_confusion(
    metrics: Mapping[str, float], confusion: np.ndarray, bins: np.ndarray, labels: Sequence[str], output: Path
) -> Path:
    """Draw a classifier's confusion matrix and reliability diagram, from its eval.scoring.classification.Tally."""
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
        left.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(confusion):
            color = "white" if share[row, column] > 0.5 else "black"
            left.text(column, row, f"{count:.0f}", ha="center", va="center", color=color)
        left.set_xticks(range(len(labels)), labels, rotation=0 if len(labels) < 5 else 90)
        left.set_yticks(range(len(labels)), labels)
        title = f"accuracy {metrics['accuracy']:.2%}, macro F1 {metrics['macro_f1']:.3f}"
        left.set(xlabel="predicted", ylabel="true", title=title)
        count, confidence, correct = bins[bins[:, 0] > 0].T
        right.plot([0, 1], [0, 1], color=GREY, linewidth=1, linestyle=":")
        right.plot(confidence / count, correct / count, marker="o")
        for x, y, n in zip(confidence / count, correct / count, count, strict=True):
            right.annotate(f"{n:.0f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
        right.set(xlabel="confidence", ylabel="accuracy", title=f"calibration: ECE {metrics['ece']:.3f}")
        right.set(xlim=(0, 1.03), ylim=(0, 1.08))
        return save_figure(figure, output)


def save_figure(figure: Figure, output: Path) -> Path:
    """Write a picture atomically, close it, and return its path. UserError if the suffix is not a picture's."""
    suffix = output.suffix.removeprefix(".").lower()
    try:
        if suffix not in figure.canvas.get_supported_filetypes():
            raise UserError(f"{output}: pictures are .png, .pdf, .svg or .jpg; choose another name")
        with atomic_write(output) as file:
            figure.savefig(file, format=suffix, dpi=150)
    finally:
        plt.close(figure)
    return output
