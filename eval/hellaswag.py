"""Score a model on HellaSwag: which of four endings does it find likeliest?

plain    build-nanogpt's and llm.c's: the context, then " " + ending.
         acc: the highest log-likelihood; acc_norm: the highest mean per token.
lm-eval  the lm-evaluation-harness's: "activity: context" with WikiHow's [tags] cleaned away.
         acc: the highest log-likelihood; acc_norm: the highest mean per character.

Published for OpenAI's GPT-2 on the original file (10,042 tasks):

                plain acc   plain acc_norm   lm-eval acc   lm-eval acc_norm
    124M           0.2859           0.2955        0.2892             0.3114
    1558M          0.3842           0.4893        0.4004             0.5089

build-nanogpt's hellaswag.py states all of them. Its plain scores are of the original texts, tags and all: copies that
have been cleaned give slightly others. A copy without ctx_a and ctx_b is divided as eval/scoring/tasks.py says.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.common.options import add_set_options, opened, report
from eval.scoring.evaluate import evaluate_hellaswag
from eval.scoring.tasks import FORMATS, load_hellaswag
from prepare.common.cli import Parser, run_script
from prepare.sources.published import HELLASWAG


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on HellaSwag, as build-nanogpt and llm.c do (plain) or as the lm-evaluation-harness does.",
        "python eval/hellaswag.py --model gpt2",
    )
    add_set_options(parser, HELLASWAG.path, "tasks")
    parser.add_argument("--format", choices=FORMATS, default="plain", help="prompt and normalization")
    args = parser.parse_args(argv)

    tasks = load_hellaswag(args.data, args.limit)
    with opened(args.model, args.device, precision=args.precision) as (loaded, world):
        scores = evaluate_hellaswag(loaded, world, tasks, args.format, args.batch_tokens)
    if world.is_main:
        cut = scores["truncated"]
        lines = {
            "tasks": f"{scores['tasks']:,} of {args.data}, {args.format} format",
            "cut": f"{cut:,} tasks longer than the block size lost tokens on the left" if cut else "",
            "acc": f"{scores['acc']:.4f} +- {scores['acc_stderr']:.4f}",
            "acc_norm": f"{scores['acc_norm']:.4f} +- {scores['acc_norm_stderr']:.4f}",
        }
        report(loaded, lines, args.output, args.data, scores)


if __name__ == "__main__":
    run_script(main)
