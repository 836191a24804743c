"""What is measured of an open model: the numbers of hellaswag.py, lambada.py, wikitext.py, val_loss.py and report.py.

All ranks share the work, and all of them are given the result: a JSON-able dict.
"""

import math
import statistics
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from eval.scoring.detokenize import WikiText
from eval.scoring.log_likelihood import (
    BATCH_TOKENS,
    DIVERGED,
    Score,
    choice_counts,
    choices,
    gather,
    score_requests,
    standard_error,
    sum_loss,
)
from eval.scoring.tasks import (
    Format,
    HellaSwagTask,
    Passage,
    Request,
    hellaswag_request,
    lambada_request,
    truncated,
)
from prepare.common.cli import UserError
from prepare.common.progress import Progress
from prepare.tokens.tokenizer import Tokenizer
from train.data.windows import Windows, common_tokenizer, validation_batches
from train.model.gpt import IGNORE_INDEX
from train.parallel.world import World
from train.weights.load_model import LoadedModel

MOST_NATS = 700.0  # exp of more is no float64


def evaluate_hellaswag(
    loaded: LoadedModel, world: World, tasks: Sequence[HellaSwagTask], style: Format, batch_tokens: int | None = None
) -> dict[str, Any]:
    """acc and acc_norm with their standard errors, and of each task the four log-likelihoods and the choices."""
    requests = [hellaswag_request(task, loaded.tokenizer, style) for task in tasks]
    scores = ask(loaded, world, "HellaSwag", "task", requests, batch_tokens)
    right, right_norm, n = choice_counts(requests, dict(enumerate(scores)))
    examples = []
    for task, request, found in zip(tasks, requests, scores, strict=True):
        prediction, prediction_norm = choices(request, found)
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
        "acc": right / n,
        "acc_stderr": standard_error(right / n, n),
        "acc_norm": right_norm / n,
        "acc_norm_stderr": standard_error(right_norm / n, n),
        "examples": examples,
    }


def evaluate_lambada(
    loaded: LoadedModel, world: World, passages: Sequence[Passage], batch_tokens: int | None = None
) -> dict[str, Any]:
    """Accuracy and perplexity of the last words with their standard errors, and each word's log-likelihood."""
    requests = [lambada_request(passage, loaded.tokenizer) for passage in passages]
    words = [word for (word,) in ask(loaded, world, "LAMBADA", "passage", requests, batch_tokens)]
    n, logliks = len(words), [word.loglik for word in words]
    accuracy, perplexity = sum(word.greedy for word in words) / n, perplexity_of(-statistics.fmean(logliks))
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


def ask(
    loaded: LoadedModel, world: World, what: str, unit: str, requests: Sequence[Request], batch_tokens: int | None
) -> list[list[Score]]:
    """The scores of all requests, computed by all ranks together, with a progress bar on rank 0.

    Raises:
        UserError: one of them is no number. As a choice among endings such a model would look like a guess.
    """
    with _progress(what, len(requests), unit, world) as update:
        share = score_requests(loaded.model, requests, world.device, None, batch_tokens, world.rank, world.size, update)
    scores = gather(share, requests, world)
    if not all(math.isfinite(score.loglik) for found in scores for score in found):
        raise UserError(DIVERGED)
    return scores


def perplexity_of(loss: float) -> float:
    """exp of a mean loss in nats.

    Raises:
        UserError: the loss is no number, or so high that its exp is none.
    """
    if not loss < MOST_NATS:
        raise UserError(f"a loss of {loss:.6g} nats: the model has diverged, or its weights are damaged")
    return math.exp(loss)


def evaluate_wikitext(loaded: LoadedModel, world: World, text: WikiText, stride: int | None = None) -> dict[str, Any]:
    """Perplexity per word of the original file, of a text read by sliding windows of the block size.

    Every window but the first predicts its last `stride` tokens, each of which sees at least block_size - stride
    tokens before it; half a block where no stride is given. The end-of-text token, which begins documents, is what the
    first token is predicted from.

    Raises:
        UserError: the stride is no window's, or the vocabulary has no token that begins documents.
    """
    size, tokenizer = loaded.model.config.block_size, loaded.tokenizer
    stride = stride or max(1, size // 2)
    if stride > size:
        raise UserError(f"--stride {stride}: a window holds {size} tokens, and can move by no more")
    if tokenizer.eot is None:
        raise UserError(f"WikiText needs GPT-2's vocabulary, and {loaded.name} has a {tokenizer.name} vocabulary")
    tokens = torch.tensor([tokenizer.eot, *tokenizer.encode(text.detokenized)])
    with _progress("WikiText", len(tokens) - 1, "token", world) as update:
        batches = list(sliding_batches(tokens, size, stride, max(1, BATCH_TOKENS // size)))
        mine = counted(batches[world.rank :: world.size], np.zeros(tokenizer.vocab_size, np.int64), update)
        nll, _ = world.sum(sum_loss(loaded.model, mine, world.device))
    return {
        "tokens": len(tokens) - 1,
        "words": text.words,
        "stride": stride,
        "window": size,
        "perplexity": perplexity_of(nll / text.words),
        "bits_per_byte": nll / math.log(2) / len(text.detokenized.encode()),
    }


def sliding_batches(tokens: Tensor, size: int, stride: int, batch_size: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Inputs and targets, int64 (b, size) each, that predict each of tokens[1:] once; other targets are IGNORE_INDEX."""
    rows, predicted, last = [], 0, len(tokens) - 1  # predicted: the targets so far
    for start in range(0, last, stride):
        end = min(start + size, last)
        x, y = torch.zeros(size, dtype=torch.int64), torch.full((size,), IGNORE_INDEX)
        x[: end - start] = tokens[start:end]
        y[predicted - start : end - start] = tokens[predicted + 1 : end + 1]
        rows.append((x, y))
        predicted = end
        if len(rows) == batch_size or end == last:
            inputs, targets = zip(*rows, strict=True)
            yield torch.stack(inputs), torch.stack(targets)
            rows = []
        if end == last:
            return


def evaluate_shards(loaded: LoadedModel, world: World, paths: Sequence[Path], tokens: int) -> dict[str, Any]:
    """Loss, perplexity and bits per byte on the first tokens of shards, and the unigram entropy of the same targets.

    Bytes are those of the targets' text; an end-of-text token has none, and its loss counts. Without a tokenizer, or
    without text, bits_per_byte is not there.

    Raises:
        UserError: the shards are of another vocabulary, or hold less than one window.
    """
    config, tokenizer = loaded.model.config, loaded.known_tokenizer
    if tokenizer:
        check_same_tokenizer(paths, tokenizer)
    counts = np.zeros(config.vocab_size, dtype=np.int64)
    windows = Windows(paths, config.block_size, config.vocab_size)
    batches = validation_batches(windows, tokens, max(1, BATCH_TOKENS // config.block_size), world.rank, world.size)
    with _progress("validation", min(tokens, windows.tokens), "token", world) as update:
        nll, n = sum_loss(loaded.model, counted(batches, counts, update), world.device)
    nll, n, *counts = world.sum([nll, n, *counts])
    counts = np.array(counts)
    found = {"tokens": int(n), "loss": nll / n, "perplexity": perplexity_of(nll / n), "unigram": entropy(counts)}
    if tokenizer and (n_bytes := text_bytes(counts, tokenizer)):
        found["bits_per_byte"] = nll / math.log(2) / n_bytes
    return found


def text_bytes(counts: np.ndarray, tokenizer: Tokenizer) -> int:
    """Bytes of text in so many (V,) of each token."""
    tokens = [token for token in np.flatnonzero(counts[: tokenizer.vocab_size]) if token != tokenizer.eot]
    return sum(int(counts[token]) * len(tokenizer.decode_bytes([token])) for token in tokens)


def check_same_tokenizer(paths: Sequence[Path], tokenizer: Tokenizer) -> None:
    """Refuse shards whose manifest names another vocabulary than the model's."""
    theirs = common_tokenizer(paths, tokenizer.vocab_size)
    if theirs and theirs["sha256"] != tokenizer.describe()["sha256"]:
        raise UserError(
            f"{paths[0].parent} was made with the {theirs['name']} vocabulary of {theirs['vocab_size']} ids, the "
            f"model's is {tokenizer.name} with {tokenizer.vocab_size}: give --data made with that, or another --model"
        )


def counted(
    windows: Iterator[tuple[Tensor, Tensor]] | Sequence[tuple[Tensor, Tensor]],
    counts: np.ndarray,
    update: Callable[[int], object],
) -> Iterator[tuple[Tensor, Tensor]]:
    """The windows as they are; their targets are counted, int64 (vocab_size,) in place, and reported."""
    for x, y in windows:
        targets = y.numpy()[y.numpy() != IGNORE_INDEX]
        counts += np.bincount(targets, minlength=len(counts))
        yield x, y
        update(len(targets))


def entropy(counts: np.ndarray) -> float:
    """In nats, of the distribution that these counts have."""
    p = counts[counts > 0] / counts.sum()
    return float(-(p * np.log(p)).sum())


@contextmanager
def _progress(what: str, total: float, unit: str, world: World) -> Iterator[Callable[[int], object]]:
    """What reports amounts done: rank 0's stand for those of all ranks, whose shares are nearly as large."""
    if not world.is_main:
        yield lambda _amount: None
        return
    with Progress(what, total, unit) as progress:
        yield lambda amount: progress.update(min(amount * world.size, total - progress.bar.n))
        progress.update(total - progress.bar.n)
