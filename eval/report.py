"""Score a model on every dataset that is there, next to the scores that were published for OpenAI's GPT-2.

HellaSwag (both formats), LAMBADA, WikiText-2 and -103 from the files of prepare/eval_sets.py, and the loss on the
shards of `--shards`, as a table (report.txt) and as JSON with all counts (report.json).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from eval.common.open_model import open_model
from eval.common.options import add_model_options
from eval.common.score_table import render_table, table_rows
from eval.scoring.detokenize import load_wikitext
from eval.scoring.evaluation import evaluate_hellaswag, evaluate_lambada, evaluate_shards, evaluate_wikitext
from eval.scoring.tasks import FORMATS, load_hellaswag, load_lambada
from prepare.common.cli import DATA, ArgumentError, Parser, UserError, nonempty_path, positive
from prepare.common.files import atomic_write_json, atomic_write_text
from prepare.sources.published import HELLASWAG, LAMBADA, WIKITEXT2, WIKITEXT103, PublishedFile, PublishedText
from prepare.tokens.shards import find_shards
from train.config.pretrain import EvalConfig
from train.parallel.world import World
from train.weights.load_model import LoadedModel


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on all published datasets that are there, next to OpenAI's GPT-2.",
        "python eval/report.py --model runs/quickstart --output report",
    )
    add_model_options(parser)
    parser.add_argument("--data", type=nonempty_path, default=DATA, metavar="DIR", help="output of eval_sets.py")
    parser.add_argument("--shards", nargs="+", metavar="GLOB", help="token shards for a validation loss")
    parser.add_argument("--limit", type=positive, metavar="N", help="only the first N tasks and passages")
    parser.add_argument("--output", type=nonempty_path, default="report", metavar="DIR", help="report.{txt,json}")
    args = parser.parse_args(argv)
    if args.output.is_file():
        raise ArgumentError(f"--output {args.output} is a file: give a folder")

    shards = find_shards(args.shards) if args.shards else []
    with open_model(args.model, args.device) as (loaded, world):
        if world.is_main:
            args.output.mkdir(parents=True, exist_ok=True)  # before the work, which may take minutes
        results = dict(evaluate_all(loaded, world, args.data, shards, args.limit))
    if not results:
        raise UserError(
            f"nothing to evaluate in {args.data}, see the lines above: fetch the datasets (python "
            "prepare/eval_sets.py), or give --shards"
        )
    if world.is_main:
        table = render_table(loaded.name, results)
        datasets = {name: {k: v for k, v in scores.items() if k != "examples"} for name, scores in results.items()}
        facts = {"model": loaded.name, "step": loaded.step, "sets": datasets, "rows": table_rows(results)}
        atomic_write_json(args.output / "report.json", facts)
        atomic_write_text(args.output / "report.txt", table)
        print(table)
        print(f"{args.output}/report.txt report.json")


def evaluate_all(
    loaded: LoadedModel, world: World, data: Path, shards: list[Path], limit: int | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield name and scores of each dataset that is there; print why others are skipped."""
    if shards:  # first: an error in them is reported before minutes are spent on the rest
        yield "shards", evaluate_shards(loaded, world, shards, EvalConfig().val_tokens)

    tasks, passages = partial(load_hellaswag, limit=limit), partial(load_lambada, limit=limit)
    datasets: list[tuple[str, PublishedFile | PublishedText, Callable, Callable]] = [
        *((f"hellaswag {style}", HELLASWAG, tasks, partial(evaluate_hellaswag, style=style)) for style in FORMATS),
        ("lambada", LAMBADA, passages, evaluate_lambada),
        ("wikitext2", WIKITEXT2, load_wikitext, evaluate_wikitext),
        ("wikitext103", WIKITEXT103, load_wikitext, evaluate_wikitext),
    ]
    for name, file, load, evaluate in datasets:
        try:
            yield name, evaluate(loaded, world, load(data / file.path.name))
        except UserError as reason:  # it was not fetched, or a character vocabulary cannot encode it
            world.print(f"{name} is skipped: {reason}")
