"""The loss of a model on token shards, beside that of the best predictor that looks at no context.

The tokens are the first ones of the shards, in windows of the model's block size: the same that training validates on.
The unigram entropy is that of these very targets: what a model gains from context is the difference.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from eval.common.options import add_model_options, opened
from eval.scoring.evaluate import evaluate_shards
from prepare.common.cli import Parser, positive, run_script
from prepare.tokens.shards import find_shards
from train.config.pretrain import EvalConfig


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Measure a model's loss and bits per byte on token shards, beside their unigram entropy.",
        "python eval/val_loss.py --model runs/quickstart --data 'data/shakespeare_bpe/*_val_*.bin'",
    )
    add_model_options(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="GLOB", help="token shards")
    parser.add_argument("--tokens", type=positive, default=EvalConfig().val_tokens, metavar="N", help="the first N")
    args = parser.parse_args(argv)

    paths = find_shards(args.data)
    with opened(args.model, args.device) as (loaded, world):
        found = evaluate_shards(loaded, world, paths, args.tokens)
    if world.is_main:
        print(
            f"model:   {loaded.name}\n"
            f"data:    {found['tokens']:,} tokens of {', '.join(args.data)}\n"
            f"loss:    {found['loss']:.4f} nats per token (perplexity {found['perplexity']:,.2f})\n"
            + (f"bits:    {found['bits_per_byte']:.4f} per byte of text\n" if "bits_per_byte" in found else "")
            + f"unigram: {found['unigram']:.4f} nats per token, the best that ignores all context can do"
        )


if __name__ == "__main__":
    run_script(main)
