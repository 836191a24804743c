"""Evaluate a model's loss on token shards, next to the loss of the best predictor without context.

The tokens are the first ones of the shards, in windows of the model's block size, as in the validation during training.
The unigram entropy is that of the same targets: the difference is what the model gains from context.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

from eval.common.open_model import open_model
from eval.common.options import add_model_options, report_scores
from eval.scoring.evaluation import evaluate_shards
from prepare.common.cli import Parser, positive
from prepare.tokens.shards import find_shards
from train.config.pretrain import EvalConfig


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Evaluate a model's loss and bits per byte on token shards, next to their unigram entropy.",
        "python eval/val_loss.py --model runs/quickstart --data 'data/plays/*_val_*.bin'",
    )
    add_model_options(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="GLOB", help="token shards")
    parser.add_argument(
        "--tokens", type=positive, default=EvalConfig().val_tokens, metavar="N", help="evaluate the first N"
    )
    args = parser.parse_args(argv)

    paths = find_shards(args.data)
    with open_model(args.model, args.device) as (loaded, world):
        scores = evaluate_shards(loaded, world, paths, args.tokens)
    if world.is_main:
        lines = {
            "data": f"{scores['tokens']:,} tokens of {', '.join(args.data)}",
            "loss": f"{scores['loss']:.4f} nats per token (perplexity {scores['perplexity']:,.2f})",
            "bits": f"{scores['bits_per_byte']:.4f} per byte of text" if "bits_per_byte" in scores else "",
            "unigram": f"{scores['unigram']:.4f} nats per token, the best possible without context",
        }
        report_scores(loaded, lines)
