"""Score a model on HellaSwag: which of four endings does it find most likely?

plain    build-nanogpt's and llm.c's: the context, then " " + ending.
         acc: the highest log-likelihood; acc_norm: the highest mean per token.
lm-eval  the lm-evaluation-harness's: "activity: context" with WikiHow's [tags] cleaned away.
         acc: the highest log-likelihood; acc_norm: the highest mean per character.

Published for OpenAI's GPT-2 on the original file (10,042 tasks):

                plain acc   plain acc_norm   lm-eval acc   lm-eval acc_norm
    124M           0.2859           0.2955        0.2892             0.3114
    1558M          0.3842           0.4893        0.4004             0.5089

The numbers are from build-nanogpt's hellaswag.py. Its plain scores are of the original texts, tags included: cleaned
copies score slightly differently. A copy without ctx_a and ctx_b is split as eval/scoring/tasks.py says. Other tasks
in this format, such as prepare/eval_sets.py's continuation tasks, have scores that cannot be compared with these.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from eval.common.open_model import open_model
from eval.common.options import add_dataset_options, report_scores
from eval.scoring.evaluation import evaluate_hellaswag
from eval.scoring.tasks import FORMATS, load_hellaswag
from prepare.common.cli import Parser
from prepare.sources.published import HELLASWAG


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on HellaSwag, as build-nanogpt and llm.c do (plain) or as the lm-evaluation-harness does.",
        "python eval/hellaswag.py --model gpt2",
    )
    add_dataset_options(parser, HELLASWAG.path, "tasks")
    parser.add_argument("--format", choices=FORMATS, default="plain", help="prompt and normalization")
    args = parser.parse_args(argv)

    tasks = load_hellaswag(args.data, args.limit)
    with open_model(args.model, args.device) as (loaded, world):
        scores = evaluate_hellaswag(loaded, world, tasks, args.format)
    if world.is_main:
        n = scores["truncated"]
        lines = {
            "tasks": f"{scores['tasks']:,} of {args.data}, {args.format} format",
            "truncated": f"{n:,} tasks, on the left, to the block size" if n else "",
            "acc": f"{scores['acc']:.4f} +- {scores['acc_stderr']:.4f}",
            "acc_norm": f"{scores['acc_norm']:.4f} +- {scores['acc_norm_stderr']:.4f}",
        }
        report_scores(loaded, lines, args.output, args.data, **scores)
