"""Score a model on LAMBADA: how well does it predict the last word of a passage?

As in the lm-evaluation-harness's lambada_openai, accuracy counts the words whose every token is the model's first
choice, and perplexity is exp(-mean log-likelihood of the words). Published by the harness for OpenAI's GPT-2 124M:
accuracy 0.3256, perplexity 40.06.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from eval.common.open_model import open_model
from eval.common.options import add_dataset_options, report_scores
from eval.scoring.evaluation import evaluate_lambada
from eval.scoring.tasks import load_lambada
from prepare.common.cli import Parser
from prepare.sources.published import LAMBADA


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Score a model on LAMBADA: accuracy and perplexity of each passage's last word.",
        "python eval/lambada.py --model gpt2",
    )
    add_dataset_options(parser, LAMBADA.path, "passages")
    args = parser.parse_args(argv)

    passages = load_lambada(args.data, args.limit)
    with open_model(args.model, args.device) as (loaded, world):
        scores = evaluate_lambada(loaded, world, passages)
    if world.is_main:
        n = scores["truncated"]
        lines = {
            "passages": f"{scores['passages']:,} of {args.data}",
            "truncated": f"{n:,} passages, on the left, to the block size" if n else "",
            "accuracy": f"{scores['accuracy']:.4f} +- {scores['accuracy_stderr']:.4f}",
            "perplexity": f"{scores['perplexity']:.2f} +- {scores['perplexity_stderr']:.2f}",
        }
        report_scores(loaded, lines, args.output, args.data, **scores)
