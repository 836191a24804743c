"""The loss of a model on token shards, beside that of the best predictor that looks at no context.

The tokens are the first ones of the shards, in windows of the model's block size: the same that training validates on.
The unigram entropy is that of these very targets: what a model gains from context is the difference.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import math
from collections.abc import Iterator
from contextlib import nullcontext

import numpy as np
from torch import Tensor

from eval.model_option import add_model_options, open_model
from eval.scoring import BATCH_TOKENS, sum_loss
from prepare.cli import Parser, Progress, UserError, positive, run_script
from prepare.shards import find_shards, open_shard
from prepare.tokenizer import Tokenizer
from train import distributed
from train.config import EvalConfig
from train.loader import common_tokenizer, validation_windows


def main(argv: list[str] | None = None) -> None:
    parser = Parser(
        "Measure a model's loss on token shards, beside their unigram entropy.",
        "python eval/val_loss.py --model gpt2 --data 'data/fineweb10B/fineweb_val_*.bin'",
    )
    add_model_options(parser)
    parser.add_argument("--data", nargs="+", required=True, metavar="GLOB", help="token shards")
    parser.add_argument("--tokens", type=positive, default=EvalConfig().val_tokens, metavar="N", help="the first N")
    args = parser.parse_args(argv)

    paths = find_shards(args.data)
    try:
        loaded, world = open_model(args.model, args.device)
        check_same_tokenizer(paths, loaded.tokenizer)
        config = loaded.model.config
        total = min(args.tokens, sum(len(open_shard(path)) for path in paths))
        batch_size = max(1, BATCH_TOKENS // config.block_size)
        windows = validation_windows(
            paths, config.block_size, args.tokens, batch_size, config.vocab_size, world.rank, world.size
        )
        counts = np.zeros(config.vocab_size, dtype=np.int64)
        with Progress("validation", total / world.size, "token") if world.is_main else nullcontext() as bar:
            nll, tokens = sum_loss(loaded.model, counted(windows, counts, bar), world.device)
        nll, tokens, *counts = world.sum([nll, tokens, *counts])
    finally:
        distributed.stop()
    if world.is_main:
        loss = nll / tokens
        print(
            f"model:   {loaded.name}\n"
            f"data:    {tokens:,.0f} tokens of {', '.join(args.data)}\n"
            f"loss:    {loss:.4f} nats per token (perplexity {math.exp(loss):,.2f})\n"
            f"unigram: {entropy(np.array(counts)):.4f} nats per token, the best that ignores all context can do"
        )


def check_same_tokenizer(paths: list[Path], tokenizer: Tokenizer) -> None:
    """Refuse shards whose manifest names another vocabulary than the model's."""
    theirs = common_tokenizer(paths, tokenizer.vocab_size)
    if theirs and theirs["sha256"] != tokenizer.describe()["sha256"]:
        raise UserError(
            f"{paths[0].parent} was made with the {theirs['name']} vocabulary of {theirs['vocab_size']} ids, the "
            f"model's is {tokenizer.name} with {tokenizer.vocab_size}: give --data made with that, or another --model"
        )


def counted(
    windows: Iterator[tuple[Tensor, Tensor]], counts: np.ndarray, bar: Progress | None
) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows as they are; their targets are counted, int64 (vocab_size,) in place."""
    for x, y in windows:
        counts += np.bincount(y.numpy().ravel(), minlength=len(counts))
        yield x, y
        if bar:
            bar.update(y.numel())


def entropy(counts: np.ndarray) -> float:
    """In nats, of the distribution that these counts have."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


if __name__ == "__main__":
    run_script(main)
