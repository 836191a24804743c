"""Write a page that shows what a model computes: one HTML file, which any browser opens without a network or a server.

Its views are listed in eval/views/page.py. Of a run it shows the checkpoints that were kept (checkpoint.keep_every and
keep_steps).
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import math
import time
from collections.abc import Iterator, Sequence

import torch

from eval.common.open_model import open_model
from eval.common.options import add_model_options, output_file
from eval.views.page import describe_page, encode_prompt, render_page
from eval.views.subject import Subject
from prepare.common.cli import Parser
from prepare.common.files import atomic_write_text
from train.run.checkpoint import all_checkpoints, step_of
from train.weights.load_model import LoadedModel, load_model

MAX_CHECKPOINTS = 8


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Write one HTML page that shows how a model reads a prompt, layer by layer, and how it learned to.",
        'python eval/explain.py --model runs/quickstart --prompt "ROMEO:" --output explain.html',
    )
    add_model_options(parser)
    parser.add_argument("--prompt", required=True, metavar="P", help="the text that the model reads")
    parser.add_argument("--output", type=output_file, required=True, metavar="FILE", help="the page")
    held_out = "held-out token shards, for a model that is not a run, whose own are known"
    parser.add_argument("--data", nargs="+", default=[], metavar="GLOB", help=held_out)
    args, start = parser.parse_args(argv), time.perf_counter()

    with open_model(args.model, args.device) as (loaded, world):
        ids = encode_prompt(args.prompt, loaded)
        models = open_checkpoints(args.model, loaded, world.device)
        data = describe_page(args.prompt, (Subject(model, ids, tuple(args.data)) for model in models))
        html = render_page(data)
    atomic_write_text(args.output, html)
    print(
        f"{args.output}: {loaded.name}, {len(ids)} tokens, checkpoints: {len(data['checkpoints'])}, "
        f"{args.output.stat().st_size / 1e6:.1f} MB, {time.perf_counter() - start:.0f} s"
    )


def open_checkpoints(spec: str | None, latest: LoadedModel, device: torch.device) -> Iterator[LoadedModel]:
    """Yield the model at a run's checkpoints, oldest first, or the one model that is not a run.

    Of more than MAX_CHECKPOINTS, take those whose steps are spread evenly over the logarithm, the latest among them.
    """
    newest = latest.checkpoint
    if newest is None or (spec is not None and not (Path(spec) / "checkpoints").is_dir()):
        yield latest
        return
    older = [path for path in all_checkpoints(newest.parents[1]) if step_of(path) < step_of(newest)]
    for checkpoint in spread([*older, newest]):
        if checkpoint == newest:
            yield latest
        elif checkpoint.is_dir():  # a run that is still training prunes meanwhile
            yield load_model(str(checkpoint), device)


def spread(checkpoints: Sequence[Path]) -> list[Path]:
    """MAX_CHECKPOINTS of more: the latest, and those nearest to steps in geometric progression."""
    chosen, rest = [], list(checkpoints)
    first, last = (math.log(step_of(checkpoints[end])) for end in (0, -1))
    for number in reversed(range(min(MAX_CHECKPOINTS, len(checkpoints)))):
        wanted = first + (last - first) * number / (MAX_CHECKPOINTS - 1)
        chosen.append(min(rest, key=lambda path: abs(math.log(step_of(path)) - wanted)))
        rest.remove(chosen[-1])
    return sorted(chosen, key=step_of)
