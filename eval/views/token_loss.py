"""View 6: the loss of each token of a held-out passage, next to the unigram's, and the loss by position in the window.

The unigram predicts every token with its frequency in the held-out shards: the best predictor that sees no context.
"""

from collections.abc import Sequence
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.common.open_model import DIVERGED, evaluating
from eval.scoring.evaluation import check_same_tokenizer
from eval.scoring.log_likelihood import token_losses
from eval.views.subject import Subject, Unavailable, pack, pretraining_config
from prepare.common.cli import UserError
from prepare.tokens.shards import find_shards, open_shard
from train.data.windows import Windows, validation_batches
from train.model.transformer import Transformer

PASSAGE_TOKENS = 256  # shown
WINDOW_TOKENS = 8192  # whose losses are averaged
COUNTED_TOKENS = 10_000_000  # for the unigram


def token_loss(subject: Subject) -> dict[str, Any]:
    """Measure the model on the first windows of held-out shards: those of --data, or else data.val of the run.

    Returns:
        passage: of the first tokens, where a document begins, `ids` (n,), and of each but the first the model's `loss`
            and the `unigram`'s, (n - 1,) in nats.
        positions: mean losses by position in the window, for positions from `first` to `last` (the number of tokens
            that the model has read), with the standard `error` of the model's.
        tokens, loss, unigram: the number of tokens that were averaged, and the means.
        counted: the number of tokens that the unigram was counted on.
    """
    loaded, config = subject.loaded, subject.loaded.model.config
    try:
        paths = held_out_shards(subject)
        check_same_tokenizer(paths, loaded.tokenizer)
        windows = Windows(paths, config.block_size, config.vocab_size)
    except UserError as reason:
        if subject.shards:
            raise
        raise Unavailable(f"The held-out tokens of this run are not here: {reason}.") from None
    batches = list(validation_batches(windows, WINDOW_TOKENS, batch_size=max(1, 1024 // config.block_size)))
    inputs, targets = (torch.cat(tensors) for tensors in zip(*batches, strict=True))  # (n, T) each
    losses = measure_losses(loaded.model, batches)  # (n, T)
    unigram, counted = unigram_losses(tuple(paths), config.vocab_size)
    expected = unigram[targets.numpy()]  # (n, T)

    shown = min(PASSAGE_TOKENS, config.block_size)
    return {
        "passage": {
            "ids": pack(np.concatenate([inputs[0, :1], targets[0, :shown]]), "uint16"),
            "loss": pack(losses[0, :shown], "float32"),
            "unigram": pack(expected[0, :shown], "float32"),
        },
        "positions": [
            {
                "first": first + 1,
                "last": end,
                "loss": float(losses[:, first:end].mean()),
                "error": float(losses[:, first:end].mean(1).std() / len(losses) ** 0.5),
                "unigram": float(expected[:, first:end].mean()),
            }
            for first, end in octaves(config.block_size)
        ],
        "tokens": losses.size,
        "loss": float(losses.mean(dtype=np.float64)),
        "unigram": float(expected.mean(dtype=np.float64)),
        "counted": counted,
    }


def held_out_shards(subject: Subject) -> list[Path]:
    """The shards of --data, or else of data.val of the run (of several named ones, the first)."""
    if subject.shards:
        return find_shards(subject.shards)
    if subject.loaded.run is None:
        raise Unavailable("This model's held-out text is not known: name token shards by --data to see this view.")
    return find_shards(next(iter(pretraining_config(subject.loaded.run).data.val_globs.values())))


@torch.no_grad()
def measure_losses(model: Transformer, batches: Sequence[tuple[Tensor, Tensor]]) -> np.ndarray:
    """The loss of each target, float32 (n, T), of batches of inputs and targets (b, T) with n rows. UserError if one is
    not finite."""
    device = next(model.parameters()).device
    with evaluating(model):
        losses = [torch.cat(list(token_losses(model, x, y, device))).view_as(y) for x, y in batches]
    if not torch.cat(losses).isfinite().all():
        raise UserError(DIVERGED)
    return torch.cat(losses).numpy()


@lru_cache(1)  # all checkpoints of a page have the same shards
def unigram_losses(paths: tuple[Path, ...], vocab_size: int) -> tuple[np.ndarray, int]:
    """The loss of each token id under its frequency in the first tokens of the shards, float32 (V,), infinite for an id
    that is not among them; and the number of these tokens."""
    counts, left = np.zeros(vocab_size, np.int64), COUNTED_TOKENS
    for path in paths:
        tokens = open_shard(path)[:left]
        counts += np.bincount(tokens, minlength=vocab_size)
        left -= len(tokens)
    with np.errstate(divide="ignore"):
        return -np.log(counts / counts.sum()).astype(np.float32), int(counts.sum())


def octaves(size: int) -> list[tuple[int, int]]:
    """Ranges [first, end) of range(size), each twice as long as those before it together: 0, 1, 2 to 3, 4 to 7 ..."""
    ends = [0, *(2**power for power in range(size.bit_length()) if 2**power < size), size]
    return list(pairwise(ends))
