"""Pictures: metrics.jsonl as curves of loss, learning rate, throughput and a score; a report; a classifier's errors."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import matplotlib

matplotlib.use("Agg")  # no display is needed

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter

from eval.common.published import PUBLISHED
from eval.scoring.classification import Tally
from prepare.common.cli import UserError
from prepare.common.files import atomic_write
from train.run.metrics_log import METRICS, read_rows

Over = Literal["tokens", "steps"]
CHANCE = 0.25  # HellaSwag by guessing
OPENAI_124M = PUBLISHED["hellaswag plain acc_norm"][1]["124M"]
HELLASWAG, ACCURACY = ("hellaswag", "acc_norm"), ("val", "accuracy")  # scores: kind of row, and key
THIN = "every step"  # marks the lines of single steps, where a smoothed one is over them
STYLE = {
    "font.size": 10,
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.labelcolor": "#555555",
    "axes.edgecolor": "#bbbbbb",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e8e8e8",
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "legend.frameon": False,
    "legend.fontsize": 9,
}


def read_metrics(run_dir: Path | str) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl; a last line that a kill cut off is left out.

    Raises:
        UserError: there is none, or it is damaged.
    """
    path = Path(run_dir) / METRICS
    if not path.is_file():
        raise UserError(f"{run_dir} has no {METRICS}: give the directory of a run, such as runs/quickstart")
    return read_rows(path)


def series(rows: Sequence[dict[str, Any]], kind: str, key: str) -> tuple[np.ndarray, np.ndarray]:
    """Steps and values of one kind of row that has this key, float64 (n,) each; a null (it was not finite) is nan."""
    pairs = [(row["step"], row[key]) for row in rows if row["kind"] == kind and key in row]
    steps, values = zip(*pairs, strict=True) if pairs else ((), ())
    return np.array(steps, dtype=float), np.array(values, dtype=float)  # float64(None) is nan


def smooth(values: np.ndarray) -> np.ndarray:
    """A centred mean over about a fiftieth of the values, (n,); nan does not count."""
    half = len(values) // 100
    if half == 0:
        return values
    known = np.isfinite(values)
    window = np.ones(2 * half + 1)
    sums = np.convolve(np.where(known, values, 0), window, "same")
    counts = np.convolve(known.astype(float), window, "same")
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


def tokens_a_step(rows: Sequence[dict[str, Any]]) -> float | None:
    """Tokens in a step of the run; None before its first train row."""
    trained = (row for row in reversed(rows) if row["kind"] == "train" and row["step"] and row.get("tokens"))
    return next((row["tokens"] / row["step"] for row in trained), None)


def plot_runs(run_dirs: Sequence[Path | str], output: Path | str, over: Over = "tokens") -> Path:
    """Draw the runs into one PNG (or whatever the suffix says) and return its path.

    The last panel is HellaSwag, or a classifier's accuracy; without either there is none.

    Args:
        over: the horizontal axis; steps where a run has no train row yet.

    Raises:
        UserError: a directory that is no run's, or a suffix that is no picture's.
    """
    runs = [(_label(run, run_dirs), read_metrics(run)) for run in run_dirs]
    scales = [tokens_a_step(rows) for _, rows in runs]
    if over == "steps" or None in scales:
        over, scales = "steps", [1.0] * len(runs)
    score = next((each for each in (HELLASWAG, ACCURACY) if any(len(series(rows, *each)[0]) for _, rows in runs)), None)
    grid, size = ((2, 2), (11, 7)) if score else ((1, 3), (14, 4))
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(*grid, figsize=size, layout="constrained")
        figure.get_layout_engine().set(w_pad=0.12, h_pad=0.12)  # inches
        panels: list[Axes] = list(axes.flat)
        colors = matplotlib.colormaps["tab10"].colors
        for number, ((name, rows), scale) in enumerate(zip(runs, scales, strict=True)):
            _draw(panels, rows, scale, name, colors[number % len(colors)], score)
        _dress(panels, over, score)
        return save(figure, Path(output))


def plot_report(title: str, cells: Sequence[Sequence[str]], metrics: Sequence[dict[str, Any]], output: Path) -> Path:
    """Draw report.py's table, its header first, and beside it HellaSwag over tokens of a run that measured it."""
    steps, values = series(metrics, *HELLASWAG)
    curve, height = bool(len(values)), 0.4 + 0.3 * len(cells)  # inches
    with plt.rc_context(STYLE):
        size = (10 + 5 * curve, max(height, 3.8 * curve))
        figure, panels = plt.subplots(1, 1 + curve, figsize=size, squeeze=False, width_ratios=[2, 1][: 1 + curve])
        figure.set_layout_engine("constrained")
        panel = panels[0, 0]
        panel.axis("off")
        panel.set_title(plain(title))
        lengths = [max(map(len, column)) + 2 for column in zip(*cells, strict=True)]
        drawn = panel.table(
            [[plain(cell) for cell in row] for row in cells],
            colWidths=[length / sum(lengths) for length in lengths],
            bbox=(0, 0, 1, 1),  # of the panel
            edges="horizontal",
        )
        drawn.auto_set_font_size(False)
        for (row, column), cell in drawn.get_celld().items():
            cell.set(edgecolor="#cccccc", linewidth=0.6)
            side = "left" if column in (0, len(lengths) - 1) else "right"
            cell.set_text_props(horizontalalignment=side, color="#555555" if row == 0 else "black")
        if curve:
            scale, panel = tokens_a_step(metrics), panels[0, 1]
            panel.plot(steps * (scale or 1), values, marker="o", markersize=4)
            for score, name, style in ((CHANCE, "chance", ":"), (OPENAI_124M, "OpenAI's 124M", "--")):
                panel.axhline(score, color="#999999", linewidth=1, linestyle=style, label=name)
            panel.set(title="HellaSwag while training", ylabel="acc_norm, plain", xlabel="tokens" if scale else "steps")
            panel.xaxis.set_major_formatter(FuncFormatter(_short))
            panel.yaxis.set_major_formatter("{x:.1%}")
            panel.legend(loc="best")
        return save(figure, output)


def save(figure: Figure, output: Path) -> Path:
    """Write a picture atomically, and close it; its path.

    Raises:
        UserError: a suffix that is no picture's.
    """
    kind = output.suffix.removeprefix(".").lower()
    try:
        if kind not in figure.canvas.get_supported_filetypes():
            raise UserError(f"{output}: pictures are .png, .pdf, .svg or .jpg; choose another name")
        with warnings.catch_warnings(), atomic_write(output) as file:
            warnings.filterwarnings("ignore", "Glyph .* missing from", UserWarning)  # it is drawn as a box
            figure.savefig(file, format=kind, dpi=150)
    finally:
        plt.close(figure)
    return output


def _label(run: Path | str, all_runs: Sequence[Path | str]) -> str:
    """The run's name, or its path where names alone would not tell runs apart."""
    name = Path(run).resolve().name
    return plain(name if [Path(other).resolve().name for other in all_runs].count(name) == 1 else str(run))


def plain(text: str) -> str:
    """Text that matplotlib shows as it is, where two dollar signs would begin and end a formula."""
    return text.replace("$", r"\$")


def _draw(
    panels: Sequence[Axes],
    rows: Sequence[dict[str, Any]],
    scale: float,
    name: str,
    color: Any,
    score: tuple[str, str] | None,
) -> None:
    """One run: every value thin, a smoothed line over it, measurements as dots."""
    for panel, key in zip(panels, ("loss", "lr", "tokens_per_s"), strict=False):
        steps, values = series(rows, "train", key)
        smoothed = values if key == "lr" else smooth(values)
        if smoothed is not values:
            panel.plot(steps * scale, values, color=color, linewidth=0.6, alpha=0.35, gid=THIN)
        panel.plot(steps * scale, smoothed, color=color, linewidth=1.4)
    loss = panels[0]
    steps, values = series(rows, "val", "loss")
    label = name + (f" (val {values[-1]:.3f})" if len(values) else "")
    dots = {"color": color, "marker": "o", "markersize": 5 if len(values) < 60 else 3.5, "markeredgecolor": "white"}
    whole = {"clip_on": False, "in_layout": False, "zorder": 3}  # a dot on the edge of the panel is not cut in two
    loss.plot(steps * scale, values, **dots, **whole, markeredgewidth=0.6, linestyle="")
    loss.plot([], [], color=color, linewidth=4, label=label)
    if score:
        steps, values = series(rows, *score)
        label = f"{values[-1]:.2%}" if len(values) else None
        panels[-1].plot(steps * scale, values, **dots, markeredgewidth=0.6, linewidth=1.4, label=label)


def _dress(panels: Sequence[Axes], over: Over, score: tuple[str, str] | None) -> None:
    """Titles, units and legends, once everything is drawn."""
    loss, rate, speed = panels[:3]
    unit = "nats per text" if score == ACCURACY else "nats per token"
    loss.set(title="Loss", ylabel=unit, ylim=_loss_limits(loss))
    rate.set(title="Learning rate")
    speed.set(title="Throughput", ylabel="tokens per second")
    rate.yaxis.set_major_formatter("{x:g}")
    speed.yaxis.set_major_formatter(FuncFormatter(_short))
    right = max((x for panel in panels for line in panel.get_lines() for x in line.get_xdata()), default=0) or 1
    for panel in panels:
        panel.set_xlim(0, 1.02 * right)
        panel.set_xlabel(over)
        panel.xaxis.set_major_formatter(FuncFormatter(_short))
    for panel in (rate, speed):
        panel.set_ylim(bottom=0)
    loss.plot([], [], color="#777777", linewidth=1.4, label="train")
    loss.plot([], [], color="#777777", marker="o", markersize=5, linestyle="", label="validation")
    loss.legend(loc="upper right")
    if score:
        panel = panels[-1]
        panel.set(title="HellaSwag" if score == HELLASWAG else "Accuracy", ylabel=score[1])
        panel.yaxis.set_major_formatter("{x:.1%}")
        if score == HELLASWAG:
            panel.axhline(CHANCE, color="#999999", linewidth=1, linestyle=":", label="chance")
        panel.legend(loc="best")


def _loss_limits(panel: Axes) -> tuple[float, float]:
    """Room for the smoothed lines and the dots; a spike of one step may leave the picture."""
    values = np.concatenate([line.get_ydata() for line in panel.get_lines() if line.get_gid() != THIN])
    values = values[np.isfinite(values)]
    if not len(values):
        return 0.0, 1.0
    low, high = float(values.min()), float(values.max())
    margin = max(0.05 * (high - low), 0.05)
    return low - margin, high + margin


def _short(value: float, _position: int | None = None) -> str:
    """10k, 500M, 1.5B."""
    for size, letter in ((1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


def plot_confusion(tally: Tally, labels: Sequence[str], path: Path) -> None:
    """Draw the confusion matrix and the reliability diagram as a PNG."""
    metrics = tally.metrics()
    with plt.rc_context(STYLE | {"axes.grid": False}):
        figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
        names = [plain(label) for label in labels]
        share = tally.confusion / np.maximum(tally.confusion.sum(1, keepdims=True), 1)
        left.imshow(share, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(tally.confusion):
            color = "white" if share[row, column] > 0.5 else "#333333"
            left.text(column, row, f"{count:.0f}", ha="center", va="center", color=color)
        left.set_xticks(range(len(names)), names, rotation=0 if len(names) < 5 else 90)
        left.set_yticks(range(len(names)), names)
        title = f"accuracy {metrics['accuracy']:.2%}, macro F1 {metrics['macro_f1']:.3f}"
        left.set(xlabel="predicted", ylabel="true", title=title)
        known = tally.bins[:, 0] > 0
        count, confidence, correct = tally.bins[known].T
        right.plot([0, 1], [0, 1], color="#999999", linewidth=1, linestyle=":")
        right.plot(confidence / count, correct / count, marker="o", linewidth=1.4)
        for x, y, n in zip(confidence / count, correct / count, count, strict=True):
            right.annotate(f"{n:.0f}", (x, y), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8)
        right.set(xlabel="confidence", ylabel="accuracy", title=f"calibration: ECE {metrics['ece']:.3f}")
        right.set(xlim=(0, 1.03), ylim=(0, 1.08))
        save(figure, path)
