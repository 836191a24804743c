"""Score a model on everything that there is data for, beside what was published of OpenAI's GPT-2.

HellaSwag (both protocols), LAMBADA, WikiText-2 and -103 from the files that prepare/eval_sets.py brings, and the loss
on shards that `--shards` names: a table as text, as JSON with every setting, and as a picture, which shows HellaSwag
over tokens too where the model is a run that measured it.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import os
from collections.abc import Iterator
from functools import partial
from typing import Any

from eval.common.curves import plot_report, read_metrics
from eval.common.options import add_model_options, opened
from eval.common.published import NOTES, PUBLISHED, SIZES
from eval.scoring.detokenize import load_wikitext
from eval.scoring.evaluate import evaluate_hellaswag, evaluate_lambada, evaluate_shards, evaluate_wikitext
from eval.scoring.tasks import FORMATS, Format, load_hellaswag, load_lambada
from prepare.common.cli import DATA, Parser, UserError, nonempty_path, positive, run_script
from prepare.common.files import atomic_write_json, atomic_write_text
from prepare.sources.published import HELLASWAG, LAMBADA, WIKITEXT2, WIKITEXT103
from prepare.tokens.shards import find_shards
from train.config.pretrain import EvalConfig
from train.parallel.world import World
from train.run.metrics_log import METRICS
from train.weights.load_model import LoadedModel, newest_run


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on all published sets that are there, beside OpenAI's GPT-2.",
        "python eval/report.py --model runs/quickstart --output report",
    )
    add_model_options(parser)
    parser.add_argument(
        "--data", type=nonempty_path, default=DATA, metavar="DIR", help="where eval_sets.py has put them"
    )
    parser.add_argument("--shards", nargs="+", metavar="GLOB", help="token shards for a validation loss")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks and passages")
    parser.add_argument("--output", type=nonempty_path, default="report", metavar="DIR", help="report.{txt,json,png}")
    args = parser.parse_args(argv)
    model = args.model or str(newest_run())
    output = args.output.absolute()
    there = next(path for path in (output, *output.parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK):
        wrong = "cannot be written to" if there.is_dir() else "is a file"
        raise UserError(f"--output {args.output}: {there} {wrong}; name another folder")
    shards = find_shards(args.shards) if args.shards else []

    with opened(model, args.device) as (loaded, world):
        metrics = read_metrics(loaded.run) if loaded.run and (loaded.run / METRICS).is_file() else []
        found = dict(measures(loaded, world, args.data, shards, args.limit))
    if not world.is_main:
        return
    if not found:
        raise UserError(
            f"nothing to measure in {args.data}, as the lines above say: fetch the sets (python prepare/eval_sets.py), "
            "or give --shards"
        )
    rows = table(found)
    cells = [["", loaded.name, *SIZES, "published by"], *map(in_words, rows)]
    text = render(cells, found)
    print(text)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {
        name: {key: value for key, value in scores.items() if key != "examples"} for name, scores in found.items()
    }
    atomic_write_json(
        args.output / "report.json", {"model": loaded.name, "step": loaded.step, "sets": settings, "rows": rows}
    )
    atomic_write_text(args.output / "report.txt", text)
    plot_report(f"{loaded.name} beside OpenAI's GPT-2", cells, metrics, args.output / "report.png")
    print(f"{args.output}/report.txt report.json report.png")


def measures(
    loaded: LoadedModel, world: World, data: Path, shards: list[Path], limit: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each measurement that there is data for, by name; what is missing is said."""
    if shards:  # first: what is wrong with them is said before minutes are spent on the rest
        yield "shards", evaluate_shards(loaded, world, shards, EvalConfig().val_tokens)

    def hellaswag(path: Path, style: Format) -> dict[str, Any]:
        return evaluate_hellaswag(loaded, world, load_hellaswag(path, limit), style)

    def lambada(path: Path) -> dict[str, Any]:
        return evaluate_lambada(loaded, world, load_lambada(path, limit))

    def wikitext(path: Path) -> dict[str, Any]:
        return evaluate_wikitext(loaded, world, load_wikitext(path))

    sets = [(f"hellaswag {style}", HELLASWAG, partial(hellaswag, style=style)) for style in FORMATS]
    sets += [("lambada", LAMBADA, lambada), ("wikitext2", WIKITEXT2, wikitext), ("wikitext103", WIKITEXT103, wikitext)]
    for name, file, measure in sets:
        try:
            yield name, measure(data / file.path.name)
        except UserError as reason:  # it is not there or damaged, or a character vocabulary cannot read it
            world.print(f"{name} is not measured: {reason}")


def table(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a number: measure, value, stderr (None where there is none), published scores by size, their source."""
    rows = []
    for name, scores in found.items():
        for key in ("acc", "acc_norm", "accuracy", "loss", "perplexity", "bits_per_byte"):
            if key in scores:
                source, published = PUBLISHED.get(f"{name} {key}", ("", {}))
                row = {"measure": f"{name} {key}", "value": scores[key], "stderr": scores.get(f"{key}_stderr")}
                rows.append({**row, "published": published, "source": source})
    return rows


def in_words(row: dict[str, Any]) -> list[str]:
    """A row of the table as it is shown: perplexities with two decimals, everything else with four."""
    form = ",.2f" if row["measure"].endswith("perplexity") else ".4f"
    value = f"{row['value']:{form}}" + (f" +- {row['stderr']:{form}}" if row["stderr"] is not None else "")
    published = [f"{row['published'][size]:{form}}" if size in row["published"] else "" for size in SIZES]
    return [row["measure"].replace("_per_", " per "), value, *published, row["source"]]


def render(cells: list[list[str]], found: dict[str, dict[str, Any]]) -> str:
    """The table, what it was measured on, and notes, as text."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    lines = []
    for first, *numbers, last in cells:
        middle = "  ".join(f"{cell:>{width}}" for cell, width in zip(numbers, widths[1:-1], strict=True))
        lines.append(f"{first:{widths[0]}}  {middle}  {last}".rstrip())
    lines.append("")
    for name, scores in found.items():
        sizes = ("tasks", "passages", "words", "tokens", "window", "stride", "truncated")
        lines.append(f"{name}: " + ", ".join(f"{key} {scores[key]:,}" for key in sizes if key in scores))
    return "\n".join([*lines, *NOTES]) + "\n"


if __name__ == "__main__":
    run_script(main)
