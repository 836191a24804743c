"""Evaluate an open model: the scores of hellaswag.py, lambada.py, wikitext.py, val_loss.py and report.py.

All ranks share the work, and each returns the result, a JSON-able dict.
"""

import math
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from eval.common.open_model import DIVERGED
from eval.scoring.detokenize import WikiText
from eval.scoring.log_likelihood import (
    BATCH_TOKENS,
    Score,
    count_correct,
    gather_scores,
    predictions,
    score_requests,
    standard_error,
    sum_loss,
)
from eval.scoring.tasks import (
    Format,
    HellaSwagTask,
    Request,
    encode_context,
    hellaswag_request,
    lambada_request,
    truncated,
)
from prepare.common.cli import UserError
from prepare.common.progress import Progress
from prepare.tokens.tokenizer import Tokenizer
from train.data.windows import Windows, common_tokenizer, validation_batches
from train.parallel.world import World
from train.weights.load_model import LoadedModel


def evaluate_hellaswag(
    loaded: LoadedModel, world: World, tasks: Sequence[HellaSwagTask], style: Format
) -> dict[str, Any]:
    """acc and acc_norm with standard errors, and for each task the four log-likelihoods and the predictions."""
    requests = [hellaswag_request(task, loaded.tokenizer, style) for task in tasks]
    scores = score_on_all_ranks(loaded, world, "task", requests)
    correct, correct_norm, n = count_correct(requests, dict(enumerate(scores)))
    examples = []
    for task, request, found in zip(tasks, requests, scores, strict=True):
        prediction, prediction_norm = predictions(request, found)
        examples.append(
            {
                "ind": task.ind,
                "label": task.label,
                "log_likelihoods": [score.loglik for score in found],
                "lengths": request.lengths,
                "prediction": prediction,
                "prediction_norm": prediction_norm,
            }
        )
    return {
        "format": style,
        "tasks": n,
        "truncated": truncated(requests, loaded.model.config.block_size),
        "acc": correct / n,
        "acc_stderr": standard_error(correct / n, n),
        "acc_norm": correct_norm / n,
        "acc_norm_stderr": standard_error(correct_norm / n, n),
        "examples": examples,
    }


def evaluate_lambada(loaded: LoadedModel, world: World, passages: Sequence[str]) -> dict[str, Any]:
    """Accuracy and perplexity of the last words with standard errors, and each word's log-likelihood."""
    requests = [lambada_request(passage, loaded.tokenizer) for passage in passages]
    words = [word for (word,) in score_on_all_ranks(loaded, world, "passage", requests)]
    n, logliks = len(words), [word.loglik for word in words]
    accuracy, perplexity = sum(word.greedy for word in words) / n, math.exp(-statistics.fmean(logliks))
    deviation = statistics.stdev(logliks) / math.sqrt(n) if n > 1 else 0.0  # of the mean log-likelihood
    return {
        "passages": n,
        "truncated": truncated(requests, loaded.model.config.block_size),
        "accuracy": accuracy,
        "accuracy_stderr": standard_error(accuracy, n),
        "perplexity": perplexity,
        "perplexity_stderr": perplexity * deviation,
        "examples": [{"log_likelihood": word.loglik, "greedy": word.greedy} for word in words],
    }


def score_on_all_ranks(loaded: LoadedModel, world: World, unit: str, requests: Sequence[Request]) -> list[list[Score]]:
    """Score all requests, shared by the ranks, with a progress bar on rank 0. UserError if a score is not finite."""
    with _progress("scoring", len(requests), unit, world) as update:
        share = score_requests(loaded.model, requests, world.device, None, world.rank, world.size, update)
    scores = gather_scores(share, requests, world)
    if not all(math.isfinite(score.loglik) for found in scores for score in found):
        raise UserError(DIVERGED)
    return scores


def evaluate_wikitext(loaded: LoadedModel, world: World, text: WikiText) -> dict[str, Any]:
    """Perplexity per word of the original file, of a text read by sliding windows of the block size.

    Every window but the first predicts its last half block, each token of which sees at least half a block before it.
    The first token is predicted from the end-of-text token. UserError if the vocabulary has none.
    """
    size, tokenizer = loaded.model.config.block_size, loaded.tokenizer
    stride = max(1, size // 2)
    tokens = [*encode_context(tokenizer, ""), *tokenizer.encode(text.detokenized)]
    windows = score_on_all_ranks(loaded, world, "window", sliding_windows(tokens, size, stride))
    nll = -math.fsum(score.loglik for (score,) in windows)
    return {
        "tokens": len(tokens) - 1,
        "words": text.words,
        "stride": stride,
        "window": size,
        "perplexity": math.exp(nll / text.words),
        "bits_per_byte": nll / math.log(2) / len(text.detokenized.encode()),
    }


def sliding_windows(tokens: list[int], size: int, stride: int) -> list[Request]:
    """Windows of at most `size` inputs that together predict each of tokens[1:] once."""
    windows, predicted, last = [], 0, len(tokens) - 1  # predicted: the last token predicted so far
    for start in range(0, last, stride):
        end = min(start + size, last)
        windows.append(Request(tokens[start : predicted + 1], [tokens[predicted + 1 : end + 1]], [1], 0))
        predicted = end
        if end == last:
            break
    return windows


def evaluate_shards(loaded: LoadedModel, world: World, paths: Sequence[Path], tokens: int) -> dict[str, Any]:
    """Loss, perplexity and bits per byte on the first tokens of shards, and the unigram entropy of the same targets.

    Bytes are those of the targets' text: an end-of-text token has none, but its loss counts. bits_per_byte is left out
    if the tokenizer is not known. UserError if the shards have another vocabulary, or hold less than one window, or the
    loss is not finite.
    """
    config, tokenizer = loaded.model.config, loaded.known_tokenizer
    if tokenizer:
        check_same_tokenizer(paths, tokenizer)
    counts = np.zeros(config.vocab_size, dtype=np.int64)
    windows = Windows(paths, config.block_size, config.vocab_size)
    batches = validation_batches(windows, tokens, max(1, BATCH_TOKENS // config.block_size), world.rank, world.size)
    with _progress("validation", min(tokens, windows.tokens), "token", world) as update:
        nll, n = sum_loss(loaded.model, count_targets(batches, counts, update), world.device)
    nll, n, *counts = world.sum([nll, n, *counts])
    if not math.isfinite(nll):
        raise UserError(DIVERGED)
    counts = np.array(counts)
    scores = {"tokens": int(n), "loss": nll / n, "perplexity": math.exp(nll / n), "unigram": entropy(counts)}
    if tokenizer and (n_bytes := count_bytes(counts, tokenizer)):
        scores["bits_per_byte"] = nll / math.log(2) / n_bytes
    return scores


def count_bytes(counts: np.ndarray, tokenizer: Tokenizer) -> int:
    """Bytes of text in tokens that occur `counts` (V,) times each."""
    tokens = [token for token in np.flatnonzero(counts[: tokenizer.vocab_size]) if token != tokenizer.eot]
    return sum(int(counts[token]) * len(tokenizer.decode_bytes([token])) for token in tokens)


def check_same_tokenizer(paths: Sequence[Path], tokenizer: Tokenizer) -> None:
    """Refuse shards whose manifest names another vocabulary than the model's."""
    theirs = common_tokenizer(paths, 0)
    if theirs and theirs["sha256"] != tokenizer.describe()["sha256"]:
        raise UserError(
            f"{paths[0].parent} was made with the {theirs['name']} vocabulary of {theirs['vocab_size']} ids, the "
            f"model's is {tokenizer.name} with {tokenizer.vocab_size}: give --data made with that, or another --model"
        )


def count_targets(
    batches: Iterable[tuple[Tensor, Tensor]], counts: np.ndarray, update: Callable[[int], object]
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches; add their targets to the counts, int64 (V,), in place, and call update with their number."""
    for x, y in batches:
        counts += np.bincount(y.flatten(), minlength=len(counts))
        yield x, y
        update(y.numel())


def entropy(counts: np.ndarray) -> float:
    """Entropy in nats of the distribution with these counts."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@contextmanager
def _progress(what: str, total: float, unit: str, world: World) -> Iterator[Callable[[int], object]]:
    """Show progress on rank 0: its own, times the world size, since all ranks' shares are nearly equal."""
    if not world.is_main:
        yield lambda _amount: None
        return
    with Progress(what, total, unit) as progress:
        yield lambda amount: progress.update(min(amount * world.size, total - progress.bar.n))
        progress.update(total - progress.bar.n)
