"""Score a model on everything that there is data for, beside what was published of OpenAI's GPT-2.

HellaSwag (both protocols), LAMBADA, WikiText-2 and -103 from the files that prepare/eval_sets.py brings, and the loss
on shards that `--shards` names: a table as text, as JSON with every setting, and as a picture, which shows HellaSwag
over tokens too where the model is a run that measured it.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

from collections.abc import Iterator
from typing import Any

from eval.curves import plot_report
from eval.detokenize import load_wikitext
from eval.measures import measure_hellaswag, measure_lambada, measure_shards, measure_wikitext
from eval.model_option import add_model_options, opened
from eval.published import NOTES, PUBLISHED, SIZES
from eval.tasks import FORMATS, load_hellaswag, load_lambada
from prepare.cli import DATA, Parser, UserError, positive, run_script, write_whole
from prepare.known_files import HELLASWAG, LAMBADA, WIKITEXT2, WIKITEXT103
from prepare.shards import find_shards, write_json
from train.checkpoint import LoadedModel, newest_run
from train.config import EvalConfig
from train.distributed import World
from train.run_log import METRICS


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on all published sets that are there, beside OpenAI's GPT-2.",
        "python eval/report.py --model gpt2 --output report_gpt2",
    )
    add_model_options(parser)
    parser.add_argument("--data", type=Path, default=DATA, metavar="DIR", help="where prepare/eval_sets.py put them")
    parser.add_argument("--shards", nargs="+", metavar="GLOB", help="token shards for a validation loss")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks and passages")
    parser.add_argument("--output", type=Path, default=Path("report"), metavar="DIR", help="report.{txt,json,png}")
    args = parser.parse_args(argv)
    model = args.model or str(newest_run())
    if args.output.exists() and not args.output.is_dir():
        raise UserError(f"--output {args.output} is a file: name a folder")
    shards = find_shards(args.shards) if args.shards else []

    with opened(model, args.device) as (loaded, world):
        found = dict(measures(loaded, world, args.data, shards, args.limit))
    if not world.is_main:
        return
    if not found:
        raise UserError(f"nothing to measure in {args.data}: fetch the sets (python prepare/eval_sets.py)")
    rows = table(found)
    text = render(loaded.name, found, rows)
    args.output.mkdir(parents=True, exist_ok=True)
    settings = {
        name: {key: value for key, value in scores.items() if key != "examples"} for name, scores in found.items()
    }
    write_json(args.output / "report.json", {"model": loaded.name, "step": loaded.step, "sets": settings, "rows": rows})
    write_whole(args.output / "report.txt", text)
    folder = next((path for path in (Path(model), *Path(model).parents[:2]) if (path / METRICS).is_file()), None)
    plot_report(f"{loaded.name} beside OpenAI's GPT-2", rows, folder, args.output / "report.png")
    print(text + f"\n{args.output}/report.txt report.json report.png")


def measures(
    loaded: LoadedModel, world: World, data: Path, shards: list[Path], limit: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each measurement that there is data for, by name; what is missing is said."""
    there = {file: data / file.path.name for file in (HELLASWAG, LAMBADA, WIKITEXT2, WIKITEXT103)}
    for path in there.values():
        if not path.exists():
            world.say(f"not measured: {path} is not there (python prepare/eval_sets.py)")
    try:
        if there[HELLASWAG].exists():
            tasks = load_hellaswag(there[HELLASWAG], limit)
            for style in FORMATS:
                yield f"hellaswag {style}", measure_hellaswag(loaded, world, tasks, style)
        if there[LAMBADA].exists():
            yield "lambada", measure_lambada(loaded, world, load_lambada(there[LAMBADA], limit))
        for name, file in (("wikitext2", WIKITEXT2), ("wikitext103", WIKITEXT103)):
            if there[file].exists():
                yield name, measure_wikitext(loaded, world, load_wikitext(there[file]))
    except UserError as reason:  # a character vocabulary cannot read them
        world.say(f"not measured: {reason}")
    if shards:
        yield "shards", measure_shards(loaded, world, shards, EvalConfig().val_tokens)


def table(found: dict[str, dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a number: measure, value, stderr (None where there is none), published scores by size, their source."""
    rows = []
    for name, scores in found.items():
        for key in ("acc", "acc_norm", "accuracy", "perplexity", "loss", "bits_per_byte"):
            if key in scores:
                source, published = PUBLISHED.get(f"{name} {key}", ("", {}))
                row = {"measure": f"{name} {key}", "value": scores[key], "stderr": scores.get(f"{key}_stderr")}
                rows.append({**row, "published": published, "source": source})
    return rows


def render(model: str, found: dict[str, dict[str, Any]], rows: list[dict[str, Any]]) -> str:
    """The table, what it was measured on, and notes, as text."""
    lines = [f"{'':28}{model:>22}" + "".join(f"{size:>9}" for size in SIZES) + "  published by"]
    for row in rows:
        value = f"{row['value']:.4f}" + (f" +- {row['stderr']:.4f}" if row["stderr"] is not None else "")
        others = "".join(f"{row['published'].get(size, ''):>9}" for size in SIZES)
        lines.append(f"{row['measure']:28}{value:>22}{others}  {row['source']}".rstrip())
    lines.append("")
    for name, scores in found.items():
        sizes = ("tasks", "passages", "words", "tokens", "window", "stride", "truncated")
        lines.append(f"{name}: " + ", ".join(f"{key} {scores[key]:,}" for key in sizes if key in scores))
    return "\n".join([*lines, *NOTES]) + "\n"


if __name__ == "__main__":
    run_script(main)
