"""The report of a sweep: a table of its settings (sweep.md and sweep.json), and a picture (sweep.png)."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from eval.monitor.sweep_picture import plot_sweep
from eval.scoring.evaluation import count_bytes, count_targets
from prepare.common.cli import UserError
from prepare.common.files import FileLock, atomic_write_json, atomic_write_text
from prepare.tokens.shards import find_shards
from train.config.pretrain import Config
from train.data.windows import Windows, common_tokenizer, validation_batches
from train.sweeping.grid import PlannedRun
from train.sweeping.power_law import LARGER, fit_power_law, predict_loss
from train.sweeping.results import Curve, SettingResult, mean_curve, read_curve, read_results
from train.weights.load_model import model_tokenizer


@dataclass(frozen=True)
class Reference:
    """What --reference names: a setting, or runs and their mean."""

    name: str
    curve: Curve


def write_report(out: Path, runs: Sequence[PlannedRun], reference: Sequence[str]) -> None:
    """Write the report of a sweep's runs as they are now, and print its table. UserError if --reference is no run."""
    with FileLock(out / ".report_lock", out, wait=True):  # two sweeps in one folder may end together
        results = read_results(runs)
        against = open_reference(reference, results)
        fit = fit_sizes(results)
        vocab_size = results[0].model.vocab_size  # 0: not known before the first run
        n_bytes = bytes_per_token(runs[0].config, vocab_size) if vocab_size else None
        rows = [describe(result, n_bytes, against) for result in results]
        text = render(rows, fit, against)
        facts = {"settings": rows, "reference": against.name if against else None, "fit": fit}
        atomic_write_json(out / "sweep.json", facts)
        atomic_write_text(out / "sweep.md", f"{text}\n![The curves of the sweep](sweep.png)\n")
        if any(result.curves for result in results):
            plot_sweep(results, fit, against.curve if against else None, out / "sweep.png")
    print(text, end="")


def open_reference(names: Sequence[str], results: Sequence[SettingResult]) -> Reference | None:
    """The setting of this name, or the mean of run directories; None if there is no name, or the setting has no
    finished run yet. UserError for what is neither a setting nor a run."""
    if not names:
        return None
    for result in results:
        if list(names) == [result.name]:
            return Reference(result.name, result.mean) if result.curves else None
    return Reference(", ".join(names), mean_curve([read_curve(Path(name)) for name in names]))


def fit_sizes(results: Sequence[SettingResult]) -> dict[str, Any] | None:
    """The power law through the best setting of each shape of the model; None with fewer than three."""
    best: dict[tuple[int, ...], SettingResult] = {}
    for result in results:  # the best first
        if result.curves:
            best.setdefault((result.model.n_layer, result.model.n_head, result.model.n_embd), result)
    points = [(result.hidden_parameters, loss) for result in best.values() for loss in result.finals]
    tokens = max((int(result.mean.tokens[-1]) for result in best.values()), default=0)
    return fit_power_law([size for size, _ in points], [loss for _, loss in points], tokens) if points else None


def bytes_per_token(config: Config, vocab_size: int) -> float | None:
    """Bytes of text in a target of the validation loss, as eval/val_loss.py counts them; None where the data is not
    here, its tokenizer is not known, or it has several sources."""
    try:
        paths = find_shards(config.data.val) if not isinstance(config.data.val, dict) else []
    except UserError:
        return None
    tokenizer = model_tokenizer(common_tokenizer(paths, vocab_size), vocab_size) if paths else None
    if not tokenizer:
        return None
    counts = np.zeros(vocab_size, dtype=np.int64)
    windows = Windows(paths, config.model.block_size, vocab_size)
    for _ in count_targets(validation_batches(windows, config.eval.val_tokens, 8, 0, 1), counts, int):
        pass
    return count_bytes(counts, tokenizer) / counts.sum()


def describe(result: SettingResult, n_bytes: float | None, against: Reference | None) -> dict[str, Any]:
    """A row of the table, JSON-able. `n_bytes`: bytes_per_token."""
    row: dict[str, Any] = {
        "setting": result.name,
        "values": result.values,
        "parameters": result.parameters,
        "hidden_parameters": result.hidden_parameters,
        "flops_per_token": result.flops_per_token,
        "seeds": len(result.curves),
        "planned": result.planned,
        "problems": result.problems,
        "losses": result.finals,
    }
    if not result.curves:
        return row
    mean = result.mean
    tokens, seconds = float(mean.tokens[-1]), float(mean.seconds[-1])
    row |= {"loss": result.loss, "deviation": result.deviation, "tokens": int(tokens)}
    if n_bytes:
        row["bits_per_byte"] = result.loss / math.log(2) / n_bytes
    if math.isfinite(seconds):
        row |= {"seconds": seconds, "tokens_per_s": tokens / seconds}
    if against and (reached := mean.tokens_to(float(against.curve.losses[-1]))) is not None:
        row |= {"tokens_to_reference": reached, "share": reached / float(against.curve.tokens[-1])}
        if math.isfinite(seconds):
            row["seconds_to_reference"] = mean.seconds_to(reached)
    return row


COLUMNS = {  # heading -> the cell of a row; `-` where the row lacks the key
    "setting": lambda row: row["setting"],
    "seeds": lambda row: f"{row['seeds']}/{row['planned']}",
    "parameters": lambda row: f"{row['parameters']:,}",
    "validation loss": lambda row: f"{row['loss']:.4f}" + (f" +- {d:.4f}" if (d := row["deviation"]) else ""),
    "bits per byte": lambda row: f"{row['bits_per_byte']:.4f}",
    "tokens": lambda row: f"{row['tokens']:,}",
    "seconds": lambda row: f"{row['seconds']:,.0f}",
    "tokens/s": lambda row: f"{row['tokens_per_s']:,.0f}",
}
TO_REFERENCE = {
    "tokens to reference": lambda row: f"{row['tokens_to_reference']:,.0f}",
    "share": lambda row: f"{row['share']:.1%}",
    "seconds to reference": lambda row: f"{row['seconds_to_reference']:,.0f}",
}


def render(rows: Sequence[dict[str, Any]], fit: dict[str, Any] | None, against: Reference | None) -> str:
    """The table in Markdown, aligned, and the lines below it."""
    columns = COLUMNS | (TO_REFERENCE if against else {})
    if not any("bits_per_byte" in row for row in rows):
        columns.pop("bits per byte")
    cells = [list(columns), *([_cell(form, row) for form in columns.values()] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for cell, *numbers in cells:
        numbers = [f"{number:>{width}}" for number, width in zip(numbers, widths[1:], strict=True)]
        lines.append(f"| {' | '.join([f'{cell:{widths[0]}}', *numbers])} |")
    lines.insert(1, "|" + "|".join(["-" * (widths[0] + 2), *("-" * (width + 1) + ":" for width in widths[1:])]) + "|")
    lines += [""]
    if rows[0]["seeds"]:
        lines.append(f"best: {rows[0]['setting']}, validation loss {_cell(COLUMNS['validation loss'], rows[0])}")
        lines += [f"the best {key} is the {end} of this sweep: widen the grid" for key, end in open_ends(rows)]
    if against:
        loss, tokens = against.curve.losses[-1], against.curve.tokens[-1]
        lines.append(f"reference: {against.name}, validation loss {loss:.4f} after {tokens:,.0f} tokens")
    if fit:
        lines += describe_fit(fit)
    lines += [line for row in rows for line in row["problems"]]
    return "".join(f"{line}\n" for line in lines)


def _cell(form: Any, row: dict[str, Any]) -> str:
    try:
        return form(row)
    except KeyError:
        return "-"


def open_ends(rows: Sequence[dict[str, Any]]) -> list[tuple[str, str]]:
    """Learning rates whose best value is the smallest or the largest of those that were tried with the other values of
    the best setting, so that a better one may lie beyond: the key, and which of both."""
    best, found = rows[0]["values"], []
    for key in (key for key in best if key.endswith("_lr")):
        tried = [row["values"][key] for row in rows if {**row["values"], key: None} == {**best, key: None}]
        if len(tried) > 1 and best[key] in (min(tried), max(tried)):
            found.append((key, "smallest" if best[key] == min(tried) else "largest"))
    return found


def describe_fit(fit: dict[str, Any]) -> list[str]:
    """The lines about a power law: the law, and what it predicts for larger models."""
    irreducible = f"{fit['E']:.3f} + " if fit["E"] else ""
    largest = max(fit["sizes"])
    lines = [
        f"power law: loss = {irreducible}{fit['A']:.4g} N^-{fit['alpha']:.4f}, alpha {fit['alpha']:.4f} +- "
        f"{fit['alpha_deviation']:.4f}, N: parameters without embeddings and head, {len(set(fit['sizes']))} sizes"
    ]
    for times in LARGER:
        loss, low, high = predict_loss(fit, times * largest)
        lines.append(f"predicted for N = {times * largest:,.0f}: {loss:.3f} ({low:.3f} to {high:.3f})")
    return lines
