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
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.scoring.tasks import Request
from train.model.gpt import GPT, IGNORE_INDEX
from train.parallel.world import World

POSITIONS_AT_A_TIME = 1024  # 1024 x 50257 float32 logits are 206 MB
BATCH_TOKENS, CPU_BATCH_TOKENS = 8192, 512
# cuDNN, a GPU's first choice, makes a plan for each new shape, which is nearly each batch (torch 2.11, Hopper)
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
DIVERGED = "the model's logits are not finite: it has diverged, or its weights are damaged"


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
        windows: inputs and targets, int64 (b, T) each; b may be 0, and a target of IGNORE_INDEX (-1) does not count.
        autocast: the precision of the model up to its logits.
    """
    nll, tokens = 0.0, 0
    with evaluating(model):
        for x, y in windows:
            if not len(x):
                continue
            with autocast or nullcontext():
                hidden = model.hidden(x.to(device))  # (b, T, C)
            asked = y.flatten() != IGNORE_INDEX  # (b*T,)
            targets = y.flatten()[asked].to(device)  # (n,)
            for start, logits in _float32_logits(model, hidden.flatten(0, 1)[asked.to(device)]):
                losses = F.cross_entropy(logits, targets[start : start + len(logits)], reduction="none")  # (n,)
                nll += losses.cpu().double().sum().item()
            tokens += len(targets)
    return nll, tokens


@torch.no_grad()
def score_requests(
    model: GPT,
    requests: Sequence[Request],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
    batch_tokens: int | None = None,
    rank: int = 0,
    world_size: int = 1,
    poll: Callable[[int], object] | None = None,
) -> dict[int, list[Score]]:
    """The scores of this rank's share of the requests: index of the request -> one score for each continuation.

    What is longer than the block size loses tokens at its left end. The scores do not depend on the batches.

    Args:
        autocast: the precision of the model up to its logits.
        batch_tokens: tokens in one forward pass, padding included; a request is never divided. None: BATCH_TOKENS,
            but on a CPU only as many as keep its products fast: a larger batch would only be padded more.
        poll: called after each batch with the number of requests done, equally often on every rank, so that ranks
            can speak with each other in it; to stop early, raise.
    """
    batch_tokens = batch_tokens or (CPU_BATCH_TOKENS if torch.device(device).type == "cpu" else BATCH_TOKENS)
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


Row = tuple[list[int], list[list[int]]]  # a context, and continuations that begin right behind it


def rows_of(request: Request, block_size: int) -> list[Row]:
    """What the model reads for a request: one row, in which all its continuations share the context.

    Where the context with the longest of them is longer than the block size, each continuation has a row of its own,
    which loses tokens at its left end, as in the harness.
    """
    if request.longest() - 1 <= block_size:
        return [(request.context, request.continuations)]
    rows = []
    for ending in request.continuations:
        tokens, n = (request.context + ending)[-(block_size + 1) :], min(len(ending), block_size)
        rows.append((tokens[:-n], [tokens[-n:]]))
    return rows


def row_width(row: Row) -> int:
    """The inputs in a row: the last token of a continuation is none."""
    context, endings = row
    return len(context) + sum(len(ending) - 1 for ending in endings)


def token_batches(requests: Sequence[Request], block_size: int, batch_tokens: int) -> list[list[int]]:
    """Indices of requests, sorted into batches of like width with at most batch_tokens tokens, the widest first."""
    batches: list[list[int]] = []
    count = width = 0
    shapes = []  # rows of each request, and the width of its widest
    for request in requests:
        rows = rows_of(request, block_size)
        shapes.append((len(rows), max(map(row_width, rows))))
    for index in sorted(range(len(requests)), key=lambda index: -shapes[index][1]):
        count += shapes[index][0]
        if not batches or count * width > batch_tokens:
            batches.append([])
            count, width = shapes[index]
        batches[-1].append(index)
    return batches


def _score_batch(
    model: GPT, requests: Sequence[Request], device: torch.device | str, autocast: AbstractContextManager
) -> list[list[Score]]:
    """One forward pass. The continuations a, b of a context c stand side by side, and do not see each other:

    inputs      c c c a a b b b _     the state at each place predicts the token that follows it, so the last of c
    positions   0 1 2 3 4 3 4 5 0     predicts the first of every continuation, and the last token of each
    parts       0 0 0 1 1 2 2 2 -1    is no input; rows are padded on the right
    """
    rows = [row for request in requests for row in rows_of(request, model.config.block_size)]
    places, asked = _side_by_side(rows)
    inputs, positions, parts = places.to(device)  # (rows, T) each
    seen = ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])).tril()[:, None]  # (rows, 1, T, T)
    mask = torch.where(seen, 0.0, -math.inf)

    with autocast, sdpa_kernel(ANY_SHAPE):
        hidden = model.hidden(inputs, positions=positions, mask=mask)
    states, targets, owners = asked  # (tokens to score,) each
    states, which = states.unique(return_inverse=True)  # a context's last state predicts for all its continuations
    logliks, misses = torch.zeros(2, sum(len(request.continuations) for request in requests), dtype=torch.float64)
    scored = hidden.flatten(0, 1)[states.to(device)]  # (states, C)
    for start, logits in _float32_logits(model, scored):
        some = (which >= start) & (which < start + len(logits))
        place, target = (which[some] - start).to(device), targets[some].to(device)
        found = torch.log_softmax(logits, -1)[place, target]
        # argmax takes seven times as long as amax: it only decides between tokens that are equally likely
        first = logits[place, target] == logits.amax(-1)[place]
        first[first.clone()] = logits[place[first]].argmax(-1) == target[first]
        logliks.index_add_(0, owners[some], found.cpu().double())
        misses.index_add_(0, owners[some], (~first).cpu().double())
    scores = (Score(loglik, miss == 0) for loglik, miss in zip(logliks.tolist(), misses.tolist(), strict=True))
    return [_once([next(scores) for _ in request.continuations], request) for request in requests]


def _once(scores: Sequence[Score], request: Request) -> list[Score]:
    """The scores of a request, where equal continuations have the first one's: in other columns they differ by rounding
    errors, and which of them is chosen would be chance."""
    firsts: dict[tuple[int, ...], Score] = {}
    return [firsts.setdefault(tuple(e), score) for e, score in zip(request.continuations, scores, strict=True)]


def _side_by_side(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """The inputs, positions and parts of _score_batch, int64 (3, rows, T), and for each token to score the place of its
    state in the flattened rows, the token, and the number of its continuation, int64 (3, tokens to score)."""
    width = max(map(row_width, rows))
    inputs, positions, parts = [], [], []
    states, targets, owners = [], [], []
    owner = 0
    for row, (context, endings) in enumerate(rows):
        begin, end = row * width, row * width + len(context)
        inputs += context
        positions += range(len(context))
        parts += [0] * len(context)
        for number, ending in enumerate(endings, 1):
            behind = len(ending) - 1
            states += [begin + len(context) - 1, *range(end, end + behind)]
            targets += ending
            owners += [owner] * len(ending)
            inputs += ending[:-1]
            positions += range(len(context), len(context) + behind)
            parts += [number] * behind
            end += behind
            owner += 1
        padding = begin + width - end
        inputs += [0] * padding
        positions += [0] * padding
        parts += [-1] * padding
    return torch.tensor([inputs, positions, parts]).view(3, len(rows), width), torch.tensor([states, targets, owners])


def _float32_logits(model: GPT, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(N, C) states, a slice at a time: where the slice starts, and its float32 logits (n, V)."""
    for start in range(0, len(hidden), POSITIONS_AT_A_TIME):
        with torch.autocast(hidden.device.type, enabled=False):
            yield start, model.logits(hidden[start : start + POSITIONS_AT_A_TIME].float())


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
