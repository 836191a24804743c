"""Log-likelihoods and losses of a model, always from float32 logits, also where the model runs under autocast.

Everything that takes `rank` and `world_size` works on this rank's share and returns this rank's part: what is asked
is divided the same way for every batch size, and sums over all ranks do not depend on how many they are.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from eval.tasks import Request
from train.distributed import World
from train.model import GPT

POSITIONS_AT_A_TIME = 1024  # 1024 x 50257 float32 logits are 206 MB
BATCH_TOKENS = 8192


@dataclass(frozen=True)
class Score:
    """What a model says of one continuation."""

    loglik: float  # natural logarithm of its probability, summed over its tokens
    greedy: bool  # every token of it is the model's first choice


@contextmanager
def evaluating(model: GPT) -> Iterator[None]:
    """The model without dropout, for as long as the block lasts."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


@torch.no_grad()
def sum_loss(
    model: GPT,
    windows: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
) -> tuple[float, int]:
    """The loss over all targets of some windows, in nats, summed in float64, and the number of targets.

    Args:
        windows: inputs and targets, int64 (b, T) each; b may be 0.
        autocast: the precision of the model up to its logits.
    """
    nll, tokens = 0.0, 0
    with evaluating(model):
        for x, y in windows:
            if not len(x):
                continue
            with autocast or nullcontext():
                hidden = model.hidden(x.to(device))  # (b, T, C)
            for logits, targets in _float32_logits(model, hidden.flatten(0, 1), y.to(device).flatten()):
                losses = F.cross_entropy(logits, targets, reduction="none")  # (n,)
                nll += losses.cpu().double().sum().item()
            tokens += y.numel()
    return nll, tokens


@torch.no_grad()
def score_requests(
    model: GPT,
    requests: Sequence[Request],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
    batch_tokens: int = BATCH_TOKENS,
    rank: int = 0,
    world_size: int = 1,
    poll: Callable[[int], object] | None = None,
) -> dict[int, list[Score]]:
    """The scores of this rank's share of the requests: index of the request -> one score for each continuation.

    What is longer than the block size loses tokens at its left end. The scores do not depend on the batches.

    Args:
        autocast: the precision of the model up to its logits.
        batch_tokens: tokens in one forward pass, padding included; a request is never divided.
        poll: called after each batch with the number of requests done, equally often on every rank, so that ranks
            can speak with each other in it; to stop early, raise.
    """
    batches = token_batches(requests, model.config.block_size, batch_tokens)
    scores: dict[int, list[Score]] = {}
    with evaluating(model):
        for start in range(0, len(batches), world_size):
            mine = batches[start + rank] if start + rank < len(batches) else []
            if mine:
                found = _score_batch(model, [requests[index] for index in mine], device, autocast or nullcontext())
                scores.update(zip(mine, found, strict=True))
            if poll:
                poll(len(mine))
    return scores


def token_batches(requests: Sequence[Request], block_size: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests, sorted into batches of like length with at most batch_tokens tokens, the longest first."""
    batches: list[list[int]] = []
    rows = width = 0
    lengths = [min(request.longest() - 1, block_size) for request in requests]
    for index in sorted(range(len(requests)), key=lambda index: -lengths[index]):
        rows += len(requests[index].continuations)
        if not batches or rows * width > batch_tokens:
            batches.append([])
            rows, width = len(requests[index].continuations), lengths[index]
        batches[-1].append(index)
    return batches


def _score_batch(
    model: GPT, requests: Sequence[Request], device: torch.device | str, autocast: AbstractContextManager
) -> list[list[Score]]:
    """One forward pass over all continuations, each behind its context, padded on the right.

        tokens    c c c c e e e     the model sees all but the last; its state at each place predicts the next token,
        inputs    c c c c e e _     so an ending of n tokens is scored by the last n states of its row
        states          ^ ^ ^
    """
    size = model.config.block_size
    asked = [(request.context, ending) for request in requests for ending in request.continuations]
    rows = [(context + ending)[-(size + 1) :] for context, ending in asked]
    counts = [min(len(ending), size) for _, ending in asked]
    width = max(map(len, rows)) - 1
    inputs = torch.zeros(len(rows), width, dtype=torch.int64)
    for row, tokens in enumerate(rows):
        inputs[row, : len(tokens) - 1] = torch.tensor(tokens[:-1])
    ends = [row * width + len(tokens) - 1 for row, tokens in enumerate(rows)]
    places = torch.cat([torch.arange(end - count, end) for end, count in zip(ends, counts, strict=True)])
    targets = torch.tensor([token for tokens, count in zip(rows, counts, strict=True) for token in tokens[-count:]])

    with autocast:
        hidden = model.hidden(inputs.to(device))  # (rows, width, C)
    scored = hidden.flatten(0, 1)[places.to(device)]  # (all the endings' tokens, C)
    logliks, firsts = [], []
    for logits, wanted in _float32_logits(model, scored, targets.to(device)):
        logliks.append(-F.cross_entropy(logits, wanted, reduction="none").cpu())
        firsts.append((logits.argmax(-1) == wanted).cpu())
    scores = [
        Score(loglik.double().sum().item(), bool(first.all()))
        for loglik, first in zip(torch.cat(logliks).split(counts), torch.cat(firsts).split(counts), strict=True)
    ]
    numbers = iter(scores)
    return [[next(numbers) for _ in request.continuations] for request in requests]


def _float32_logits(model: GPT, hidden: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """(N, C) states and their (N,) targets, a slice at a time: float32 logits (n, V) and the slice's targets (n,)."""
    for states, wanted in zip(hidden.split(POSITIONS_AT_A_TIME), targets.split(POSITIONS_AT_A_TIME), strict=True):
        with torch.autocast(hidden.device.type, enabled=False):
            logits = model.logits(states.float())
        yield logits, wanted


def gather(scores: Mapping[int, Sequence[Score]], requests: Sequence[Request], world: World) -> list[list[Score]]:
    """The scores of all requests, in their order, from each rank's share. Every rank must call it."""
    shares: list[list[float]] = []  # of each continuation: its log-likelihood and whether it is greedy, 0 elsewhere
    for index, request in enumerate(requests):
        found = scores.get(index, [Score(0.0, False)] * len(request.continuations))
        shares += [[score.loglik, score.greedy] for score in found]
    total = iter(world.sum([value for pair in shares for value in pair]))
    return [[Score(next(total), bool(next(total))) for _ in request.continuations] for request in requests]


def choices(request: Request, scores: Sequence[Score]) -> tuple[int, int]:
    """The continuation with the highest log-likelihood, and the one with the highest log-likelihood per length."""
    sums = [score.loglik for score in scores]
    means = [score.loglik / length for score, length in zip(scores, request.lengths, strict=True)]
    return sums.index(max(sums)), means.index(max(means))


def choice_counts(requests: Sequence[Request], scores: Mapping[int, Sequence[Score]]) -> list[float]:
    """Right by acc, right by acc_norm, and how many were scored; the ranks' counts add up."""
    right = [0, 0]
    for index, found in scores.items():
        for which, choice in enumerate(choices(requests[index], found)):
            right[which] += choice == requests[index].label
    return [*right, len(scores)]


def standard_error(accuracy: float, n: int) -> float:
    """Of a proportion: sqrt(p (1 - p) / (n - 1)), as the harness has it."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, n - 1))
