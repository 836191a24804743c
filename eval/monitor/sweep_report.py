"""The report of a sweep: a table of its settings (sweep.md and sweep.json), and a picture (sweep.png)."""

from collections.abc import Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes

from eval.common.curves import STYLE, save_figure, short_number
from eval.monitor.sweep_results import Curve, SettingResult, mean_curve, read_curve, read_results
from prepare.common.files import FileLock, atomic_write_json, atomic_write_text
from train.sweeping.power_law import describe_prediction, fit_power_law, predict_loss
from train.sweeping.runs import SweepRun

LARGER = 10  # times the largest size: where the loss is predicted
COLUMNS = {  # of the table: keys of a row, and the formats of their values
    "setting": "",
    "seeds": "",
    "parameters": ",",
    "loss": ".4f",
    "std": ".4f",
    "tokens": ",.0f",
    "seconds": ",.0f",
    "tokens_per_s": ",.0f",
    "tokens_to_reference": ",.0f",
    "tokens / reference": ".1%",
    "seconds_to_reference": ",.0f",
}


def write_report(out: Path, runs: Sequence[SweepRun], reference_names: Sequence[str]) -> None:
    """Write the report of a sweep's runs as they are now, and print its table. UserError if a reference
    is neither a setting nor a run."""
    with FileLock(out / ".lock", out, wait=True):  # tasks of an array may end together
        results = read_results(runs)
        reference = open_reference(reference_names, results)
        finished = [result for result in results if result.curves]
        fit = fit_sizes(finished)
        rows = [describe(result, reference) for result in results]
        lines = [*render_table(rows), ""]
        if finished:
            lines.append(f"best: {finished[0].name}, loss {finished[0].loss:.4f}")
        if reference:
            names = ", ".join(reference_names)
            lines.append(f"reference: {names}, loss {reference.final:.4f}, {reference.tokens[-1]:,.0f} tokens")
        if fit:
            lines += describe_fit(fit)
        lines += [problem for result in results for problem in result.problems]
        text = "".join(f"{line}\n" for line in lines)
        atomic_write_json(out / "sweep.json", {"settings": rows, "reference": reference_names, "fit": fit})
        atomic_write_text(out / "sweep.md", f"{text}\n![The curves of the sweep](sweep.png)\n")
        if finished:
            plot_sweep(finished, fit, reference, out / "sweep.png")
    print(text, end="")


def open_reference(names: Sequence[str], results: Sequence[SettingResult]) -> Curve | None:
    """The mean curve of settings and run directories; None without a finished run. UserError for another name."""
    curves = {result.name: result.curves for result in results}
    found = [curve for name in names for curve in (curves[name] if name in curves else [read_curve(Path(name))])]
    return mean_curve(found) if found else None


def fit_sizes(finished: Sequence[SettingResult]) -> dict[str, Any] | None:
    """The power law through the best setting of each size; None with fewer than three sizes."""
    best: dict[int, SettingResult] = {}
    for result in finished:  # the best first
        best.setdefault(result.hidden_parameters, result)
    points = [(size, curve) for size, result in best.items() for curve in result.curves]
    tokens = max((int(curve.tokens[-1]) for _, curve in points), default=0)
    return fit_power_law([size for size, _ in points], [curve.final for _, curve in points], tokens)


def describe(result: SettingResult, reference: Curve | None) -> dict[str, Any]:
    """A row of sweep.json and of the table."""
    row: dict[str, Any] = {
        "setting": result.name,
        "values": result.values,
        "seeds": len(result.curves),
        "parameters": result.parameters,
        "hidden_parameters": result.hidden_parameters,
        "flops_per_token": result.flops_per_token,
        "losses": result.final_losses,
        "problems": result.problems,
    }
    if not result.curves:
        return row
    mean = result.mean
    tokens, seconds = float(mean.tokens[-1]), float(mean.seconds[-1])
    row |= {"loss": result.loss, "tokens": tokens, "seconds": seconds, "tokens_per_s": tokens / seconds}
    if len(result.final_losses) > 1:
        row["std"] = stdev(result.final_losses)  # over the seeds, n - 1
    if reference and (reached := mean.tokens_to(reference.final)) is not None:
        row |= {"tokens_to_reference": reached, "tokens / reference": reached / float(reference.tokens[-1])}
        row["seconds_to_reference"] = float(np.interp(reached, mean.tokens, mean.seconds))
    return row


def render_table(rows: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of the table in Markdown, aligned; without the columns that no row has."""
    keys = [key for key in COLUMNS if any(key in row for row in rows)]
    cells = [[key.replace("_", " ") for key in keys]]
    cells += [[f"{row[key]:{COLUMNS[key]}}" if key in row else "-" for key in keys] for row in rows]
    first, *others = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for name, *numbers in cells:
        aligned = [f"{number:>{width}}" for number, width in zip(numbers, others, strict=True)]
        lines.append(f"| {' | '.join([f'{name:{first}}', *aligned])} |")
    lines.insert(1, f"| {' | '.join(['-' * first, *('-' * (width - 1) + ':' for width in others)])} |")
    return lines


def describe_fit(fit: dict[str, Any]) -> list[str]:
    """The lines about a power law: the law, and what it predicts for a larger model."""
    larger = LARGER * max(fit["sizes"])
    return [
        f"power law: loss = {fit['E']:.3f} + {fit['A']:.4g} N^-{fit['alpha']:.4f}, alpha +- "
        f"{fit['alpha_std']:.4f}, N: parameters without embeddings and head, {len(set(fit['sizes']))} sizes",
        f"predicted for N = {larger:,.0f}: {describe_prediction(fit, larger)}",
    ]


def plot_sweep(
    results: Sequence[SettingResult], fit: dict[str, Any] | None, reference: Curve | None, output: Path
) -> None:
    """Draw the settings that have a finished run, the best first: loss against tokens, FLOPs and seconds, the final
    losses by setting, and the power law."""
    colors = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(results)))  # dark for the best
    height = 1.5 + 0.3 * max(len(results), 8 if fit else 3)
    with plt.rc_context({**STYLE, "text.parse_math": True}):  # no name of a setting has a dollar sign
        figure = plt.figure(figsize=(14, 4.5 + height), layout="constrained")
        top, bottom = figure.subfigures(2, height_ratios=(4.5, height))
        curves = top.subplots(1, 3, sharey=True)
        final_losses, *law = bottom.subplots(1, 2 if fit else 1, squeeze=False)[0]
        draw_curves(curves, results, colors)
        draw_final_losses(final_losses, results, colors)
        if fit:
            draw_law(law[0], fit)
        if reference:
            for panel in curves:
                panel.axhline(reference.final, color="black", linestyle=":", label="final loss of the reference")
            curves[0].legend()
        save_figure(figure, output)


def draw_curves(panels: Sequence[Axes], results: Sequence[SettingResult], colors: np.ndarray) -> None:
    """Draw the mean loss of each setting, and a band from its lowest to its highest seed, against tokens, FLOPs and
    seconds."""
    for result, color in zip(results, colors, strict=True):
        mean = result.mean
        losses = [np.interp(mean.tokens, curve.tokens, curve.losses) for curve in result.curves]
        xs = (mean.tokens, mean.tokens * result.flops_per_token, mean.seconds)
        for panel, x in zip(panels, xs, strict=True):
            panel.plot(x, mean.losses, color=color)
            panel.fill_between(x, np.min(losses, axis=0), np.max(losses, axis=0), color=color, alpha=0.25, linewidth=0)
    # from the lowest loss to a usual one after a quarter of the tokens: worse ones lie above
    means = [result.mean for result in results]
    low = min(mean.losses.min() for mean in means)
    high = np.median([np.interp(mean.tokens[-1] / 4, mean.tokens, mean.losses) for mean in means])
    for panel, label in zip(panels, ("tokens", "training FLOPs", "seconds of training"), strict=True):
        panel.set(xlabel=label, ylim=(low - 0.05 * (high - low), high))
        panel.xaxis.set_major_formatter(short_number)
    panels[0].set(title="Validation loss", ylabel="nats per token")
    panels[1].set_xscale("log")
    panels[1].xaxis.set_minor_formatter("")  # labels at powers of 10 alone


def draw_final_losses(panel: Axes, results: Sequence[SettingResult], colors: np.ndarray) -> None:
    """Draw the final loss of each setting, the best on top: a dot for each seed, a bar for the mean."""
    for rank, (result, color) in enumerate(zip(results, colors, strict=True)):
        panel.plot(result.final_losses, [rank] * len(result.final_losses), "o", color=color, alpha=0.6)
        panel.plot([result.loss], [rank], "|", color=color, markersize=16)
    panel.set_yticks(range(len(results)), [f"{result.name}  {result.loss:.4f}" for result in results])
    panel.invert_yaxis()
    panel.set(title="Final validation loss, the best on top", xlabel="nats per token")


def draw_law(panel: Axes, fit: dict[str, Any]) -> None:
    """Draw a power law with its 90% interval, the runs that were fitted, and the prediction for a larger one."""
    sizes = np.array(fit["sizes"])
    larger = LARGER * sizes.max()
    n = np.geomspace(sizes.min() / 1.5, larger * 1.5, 60)
    loss, low, high = np.array([predict_loss(fit, size) for size in n]).T
    law = f"{fit['E']:.3f} + {fit['A']:.3g} N^{{-{fit['alpha']:.3f} \\pm {fit['alpha_std']:.3f}}}"
    panel.plot(n, loss, color="C0", label=f"${law}$")
    panel.fill_between(n, low, high, color="C0", alpha=0.2, linewidth=0)
    panel.plot(sizes, fit["losses"], "o", color="black", label="runs")
    predicted = predict_loss(fit, larger)[0]
    panel.plot([larger], [predicted], "s", color="C1", label=f"{LARGER} x the largest: {predicted:.3f}")
    panel.set(title="Power law", xlabel="N: parameters without embeddings and head")
    panel.set_xscale("log")
    panel.xaxis.set_minor_formatter("")
    panel.legend()
