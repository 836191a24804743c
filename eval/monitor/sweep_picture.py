"""The picture of a sweep: loss against tokens, FLOPs and seconds, against what was swept, and the power law."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.ticker import LogLocator

from eval.common.curves import GREY, STYLE, save_figure, short_number
from train.sweeping.grid import format_value, short_key
from train.sweeping.power_law import LARGER, predict_loss
from train.sweeping.results import Curve, SettingResult

# Okabe and Ito's, which colour-blind readers tell apart, without yellow, which is too light for a line
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LABELLED = 10  # curves with a colour and a label; the others are grey
LAYOUTS = {  # by the number of panels: their places, L for the legend, and the widths of the columns
    3: (("tf", "sL"), (1, 1)),
    4: (("tfL", "sxL"), (1, 1, 0.6)),
    5: (("tfs", "xyL"), (1, 1, 1)),
}
TIMES = (("hours", 3600), ("minutes", 60), ("seconds", 1))


def plot_sweep(
    results: Sequence[SettingResult], fit: dict[str, Any] | None, reference: Curve | None, output: Path
) -> Path:
    """Draw the settings that have a finished run.

    Args:
        results: the best first.
        fit: of train/sweeping/power_law.py; None draws none.
        reference: of --reference.
    """
    results = [result for result in results if result.curves]
    swept = swept_number(results)
    layout, widths = LAYOUTS[3 + bool(swept) + bool(fit)]
    with plt.rc_context(STYLE):
        figure, panels = plt.subplot_mosaic(
            [[*row] for row in layout], width_ratios=widths, figsize=(4.4 * sum(widths), 7.6), layout="constrained"
        )
        draw_curves([panels[name] for name in "tfs"], results, reference)
        if swept:
            draw_swept(panels["x"], results, swept)
        if fit:
            draw_law(panels["y" if swept else "x"], fit)
        panels["L"].axis("off")
        title = ", ".join(map(short_key, differing_keys(results)))
        curves = panels["t"].get_legend_handles_labels()
        panels["L"].legend(*curves, title=title, loc="upper left", borderaxespad=0, alignment="left")
        return save_figure(figure, output)


def draw_curves(panels: Sequence[Axes], results: Sequence[SettingResult], reference: Curve | None) -> None:
    """Draw the mean loss of each setting, and a band from its lowest to its highest seed, against tokens, FLOPs and
    seconds."""
    longest = np.nanmax([0, *(result.mean.seconds[-1] for result in results)])
    unit, seconds = next((unit for unit in TIMES if longest >= 3 * unit[1]), TIMES[-1])
    keys = differing_keys(results)
    for rank, result in enumerate(results):
        mean, losses = result.mean, np.array([curve.losses for curve in result.curves])
        spread = f" ± {result.deviation:.4f}" if result.deviation else ""
        style = {**line_style(rank), "zorder": 3 - rank / len(results)}  # the best on top
        name = values_of(result, keys)
        label = f"{name}{': ' if name else ''}{result.loss:.4f}{spread}" if rank < LABELLED else None
        xs = (mean.tokens, mean.tokens * result.flops_per_token, mean.seconds / seconds)
        for panel, x in zip(panels, xs, strict=True):
            panel.plot(x, mean.losses, label=label, **style)
            panel.fill_between(x, losses.min(0), losses.max(0), color=style["color"], alpha=0.25, linewidth=0)
    if len(results) > LABELLED:
        panels[0].plot([], [], color=GREY, linewidth=0.8, label=f"{len(results) - LABELLED} others")
    if reference:
        line = {"color": "black", "linewidth": 1, "linestyle": ":", "zorder": 4}
        for panel in panels:
            panel.axhline(reference.losses[-1], **line)
        panels[0].plot([], [], label="final loss of the reference", **line)
    low = min(min(curve.losses.min() for curve in result.curves) for result in results)
    means = [result.mean for result in results]
    quarters = [np.interp(0.25 * mean.tokens[-1], mean.tokens, mean.losses) for mean in means]
    start = np.interp(0.05 * means[0].tokens[-1], means[0].tokens, means[0].losses)
    high = min(max(quarters), start)  # a bad setting may lie above
    for panel, label in zip(panels, ("tokens", "training FLOPs", f"{unit} of training"), strict=True):
        panel.set(xlabel=label, ylim=(low - 0.03 * (high - low), high))
        panel.xaxis.set_major_formatter(short_number)
    panels[0].set(title="Validation loss", ylabel="nats per token")
    set_log_axis(panels[1])
    starts = [(result.mean.tokens_to(high) or 0) * result.flops_per_token for result in results]
    panels[1].set_xlim(left=0.9 * min((start for start in starts if start), default=1))


def draw_swept(panel: Axes, results: Sequence[SettingResult], key: str) -> None:
    """Draw the final loss against a numeric key: the seeds as dots, a line through the means of the settings that
    differ in this key alone."""
    lines = {name: line for name, line in lines_over(results, key).items() if len(line) > 1}
    for rank, (name, line) in enumerate(lines.items()):
        line.sort(key=lambda result: result.values[key])
        x = [result.values[key] for result in line]
        panel.plot(x, [result.loss for result in line], color=GREY, linewidth=1)
        for value, result in zip(x, line, strict=True):
            panel.plot([value] * len(result.finals), result.finals, "o", color=GREY, markersize=4)
        if rank < LABELLED:
            place = {"xytext": (8, 0), "textcoords": "offset points", "va": "center", "fontsize": 8}
            panel.annotate(name, (x[-1], line[-1].loss), **place)
    panel.set(title="Final validation loss", xlabel=key)
    values = sorted({result.values[key] for line in lines.values() for result in line})
    if values[0] > 0:
        panel.set(xscale="log")
    panel.set_xticks(values, [f"{value:g}" for value in values])
    panel.minorticks_off()


def draw_law(panel: Axes, fit: dict[str, Any]) -> None:
    """Draw a power law, the interval that holds 90% of runs, the runs that were fitted, and the predictions."""
    sizes = np.array(fit["sizes"])
    n = np.geomspace(sizes.min() / 1.5, sizes.max() * LARGER[-1] * 1.5, 60)
    loss, low, high = np.array([predict_loss(fit, size) for size in n]).T
    panel.plot(n, loss, color=COLORS[0])
    panel.fill_between(n, low, high, color=COLORS[0], alpha=0.2, linewidth=0)
    panel.plot(sizes, fit["losses"], "o", color="black", markersize=4, label="runs")
    for times in LARGER:
        loss, low, high = predict_loss(fit, times * sizes.max())
        error = [[loss - low], [high - loss]]
        panel.errorbar([times * sizes.max()], [loss], yerr=error, fmt="s", color=COLORS[1], markersize=4, capsize=3)
    panel.plot([], [], "s", color=COLORS[1], markersize=4, label=f"predicted, {' and '.join(f'{t} x' for t in LARGER)}")
    law = f"{fit['E']:.3f} + " if fit["E"] else ""
    title = f"loss = {law}{fit['A']:.3g} N$^{{-{fit['alpha']:.3f} ± {fit['alpha_deviation']:.3f}}}$"
    panel.set_title(title, parse_math=True, fontsize=10)
    panel.set(xlabel="N: parameters without embeddings and head")
    set_log_axis(panel)
    panel.legend()


def set_log_axis(panel: Axes) -> None:
    """Make the horizontal axis logarithmic, with ticks such as 2e13."""
    panel.set(xscale="log")
    panel.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5), numticks=8))
    panel.xaxis.set_major_formatter(lambda value, _position: f"{value:.0e}".replace("e+", "e"))
    panel.minorticks_off()


def line_style(rank: int) -> dict[str, Any]:
    """Colour and dashes of the curve that is `rank`th, from 0."""
    if rank >= LABELLED:
        return {"color": GREY, "linewidth": 0.8}
    return {"color": COLORS[rank % len(COLORS)], "linestyle": ("-", "--")[rank // len(COLORS)]}


def differing_keys(results: Sequence[SettingResult]) -> list[str]:
    """The grid's keys of which the results have several values."""
    return [key for key, value in results[0].values.items() if any(each.values[key] != value for each in results)]


def values_of(result: SettingResult, keys: Sequence[str]) -> str:
    """The values of some of the grid's keys: `3, 128`."""
    return ", ".join(format_value(result.values[key]) for key in keys)


def lines_over(results: Sequence[SettingResult], key: str) -> dict[str, list[SettingResult]]:
    """The settings that differ in this key alone, by their other values."""
    others = [name for name in differing_keys(results) if name != key]
    lines: dict[str, list[SettingResult]] = {}
    for result in results:
        lines.setdefault(values_of(result, others), []).append(result)
    return lines


def swept_number(results: Sequence[SettingResult]) -> str | None:
    """The key, outside of the model, that has three numbers or more with all else equal, of several a learning rate;
    None without one."""
    keys = [key for key, value in results[0].values.items() if type(value) in (int, float) and key[:6] != "model."]
    keys = [key for key in keys if max(map(len, lines_over(results, key).values())) > 2]
    return min(keys, key=lambda key: not key.endswith("_lr"), default=None)
