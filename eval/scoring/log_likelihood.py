"""Log-likelihoods and losses of a model, always from float32 logits, even where the model runs under autocast.

Functions with `rank` and `world_size` process this rank's share and return this rank's part. Work is divided the same
way for every batch size, and sums over all ranks do not depend on the world size.
"""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.common.open_model import evaluating
from eval.scoring.tasks import Request
from train.model.loss import IGNORE_INDEX
from train.model.transformer import Transformer
from train.parallel.world import World

LOGITS_SLICE = 1024  # positions; 1024 x 50257 float32 logits are 206 MB
# tokens in a forward pass, with padding; a CPU gains nothing from larger batches, which have more padding
BATCH_TOKENS, CPU_BATCH_TOKENS = 8192, 512
# cuDNN, a GPU's first choice, makes a plan for each new shape, which is nearly each batch (torch 2.11, Hopper)
ANY_SHAPE = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]


@dataclass(frozen=True)
class Score:
    """A model's score of one continuation."""

    loglik: float  # natural logarithm of its probability, summed over its tokens
    greedy: bool  # every token of it is the model's first choice


@torch.no_grad()
def sum_loss(
    model: Transformer,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
) -> tuple[float, int]:
    """Sum the loss over all targets, in nats, in float64; also return the number of targets.

    Args:
        batches: inputs and targets, int64 (b, T) each; b may be 0, and targets of IGNORE_INDEX (-1) are left out.
        autocast: precision of the model up to its logits.
    """
    nll, tokens = 0.0, 0
    with evaluating(model):
        for x, y in batches:
            if not len(x):
                continue
            for losses in token_losses(model, x, y, device, autocast):
                nll += losses.double().sum().item()
                tokens += len(losses)
    return nll, tokens


def token_losses(
    model: Transformer,
    x: Tensor,
    y: Tensor,
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
) -> Iterator[Tensor]:
    """Yield the loss of each target, in nats, float32 on the CPU, in slices; the arguments are those of sum_loss."""
    with autocast or nullcontext():
        hidden = model.hidden(x.to(device))  # (b, T, C)
    counted = y.flatten() != IGNORE_INDEX  # (b*T,)
    targets = y.flatten()[counted].to(device)  # (n,)
    for start, logits in _float32_logits(model, hidden.flatten(0, 1)[counted.to(device)]):
        yield F.cross_entropy(logits, targets[start : start + len(logits)], reduction="none").cpu()


@torch.no_grad()
def score_requests(
    model: Transformer,
    requests: Sequence[Request],
    device: torch.device | str,
    autocast: AbstractContextManager | None = None,
    rank: int = 0,
    world_size: int = 1,
    after_batch: Callable[[int], object] | None = None,
) -> dict[int, list[Score]]:
    """Score this rank's share of the requests: index of the request -> one score for each continuation.

    Requests longer than the block size lose tokens on the left. The scores do not depend on how requests are batched.

    Args:
        autocast: precision of the model up to its logits.
        after_batch: called after each batch with the number of requests done, equally often on every rank, so that it
            may use collectives; to stop early, raise.
    """
    limit = CPU_BATCH_TOKENS if torch.device(device).type == "cpu" else BATCH_TOKENS
    batches = token_batches(requests, model.config.block_size, limit)
    scores: dict[int, list[Score]] = {}
    with evaluating(model):
        for start in range(0, len(batches), world_size):
            mine = batches[start + rank] if start + rank < len(batches) else []
            if mine:
                batch = _score_batch(model, [requests[index] for index in mine], device, autocast or nullcontext())
                scores.update(zip(mine, batch, strict=True))
            if after_batch:
                after_batch(len(mine))
    return scores


Row = tuple[list[int], list[list[int]]]  # a context, and continuations, each of which begins right after it


def rows_of(request: Request, block_size: int) -> list[Row]:
    """The model's input for a request: one row, in which all continuations share the context.

    If the context with the longest continuation exceeds the block size, each continuation gets its own row, truncated
    on the left, as in the harness.
    """
    if request.longest() - 1 <= block_size:
        return [(request.context, request.continuations)]
    rows = []
    for ending in request.continuations:
        tokens, n = (request.context + ending)[-(block_size + 1) :], min(len(ending), block_size)
        rows.append((tokens[:-n], [tokens[-n:]]))
    return rows


def row_width(row: Row) -> int:
    """Count the inputs in a row: the last token of a continuation is not an input."""
    context, endings = row
    return len(context) + sum(len(ending) - 1 for ending in endings)


def token_batches(requests: Sequence[Request], block_size: int, batch_tokens: int) -> list[list[int]]:
    """Sort requests, by index, into batches of similar width with at most batch_tokens tokens, the widest first."""
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
    model: Transformer, requests: Sequence[Request], device: torch.device | str, autocast: AbstractContextManager
) -> list[list[Score]]:
    """Run one forward pass. The continuations a, b of a context c are in one row, and do not attend to each other:

    inputs      c c c a a b b b _     the state at each place predicts the token that follows it, so the last of c
    positions   0 1 2 3 4 3 4 5 0     predicts the first of every continuation, and the last token of each
    parts       0 0 0 1 1 2 2 2 -1    is not an input; rows are padded on the right
    """
    rows = [row for request in requests for row in rows_of(request, model.config.block_size)]
    layout, wanted = _side_by_side(rows)
    inputs, positions, parts = layout.to(device)  # (rows, T) each
    visible = ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None])).tril()[:, None]  # (rows, 1, T, T)
    mask = torch.where(visible, 0.0, -math.inf)

    with autocast, sdpa_kernel(ANY_SHAPE):
        hidden = model.hidden(inputs, positions=positions, mask=mask)
    states, targets, owners = wanted  # (tokens to score,) each
    states, which = states.unique(return_inverse=True)  # a context's last state predicts for all its continuations
    logliks, misses = torch.zeros(2, sum(len(request.continuations) for request in requests), dtype=torch.float64)
    for start, logits in _float32_logits(model, hidden.flatten(0, 1)[states.to(device)]):
        in_slice = (which >= start) & (which < start + len(logits))
        place, target = (which[in_slice] - start).to(device), targets[in_slice].to(device)
        loglik = torch.log_softmax(logits, -1)[place, target]
        # argmax takes seven times as long as amax: it only breaks ties between tokens that are equally likely
        first = logits[place, target] == logits.amax(-1)[place]
        first[first.clone()] = logits[place[first]].argmax(-1) == target[first]
        logliks.index_add_(0, owners[in_slice], loglik.cpu().double())
        misses.index_add_(0, owners[in_slice], (~first).cpu().double())
    scores = (Score(loglik, miss == 0) for loglik, miss in zip(logliks.tolist(), misses.tolist(), strict=True))
    return [_unify([next(scores) for _ in request.continuations], request) for request in requests]


def _unify(scores: Sequence[Score], request: Request) -> list[Score]:
    """Give equal continuations the first one's score: theirs differ by rounding errors, which would decide the
    prediction."""
    firsts: dict[tuple[int, ...], Score] = {}
    return [firsts.setdefault(tuple(e), score) for e, score in zip(request.continuations, scores, strict=True)]


def _side_by_side(rows: Sequence[Row]) -> tuple[Tensor, Tensor]:
    """Lay out the inputs, positions and parts of _score_batch, int64 (3, rows, T). For each token to score, also return
    the index of its state in the flattened rows, the token, and the number of its continuation, int64 (3, tokens)."""
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
            n = len(ending) - 1  # inputs
            states += [begin + len(context) - 1, *range(end, end + n)]
            targets += ending
            owners += [owner] * len(ending)
            inputs += ending[:-1]
            positions += range(len(context), len(context) + n)
            parts += [number] * n
            end += n
            owner += 1
        padding = begin + width - end
        inputs += [0] * padding
        positions += [0] * padding
        parts += [-1] * padding
    return torch.tensor([inputs, positions, parts]).view(3, len(rows), width), torch.tensor([states, targets, owners])


def _float32_logits(model: Transformer, hidden: Tensor) -> Iterator[tuple[int, Tensor]]:
    """Yield the start and the float32 logits (n, V) of slices of the hidden states (N, C)."""
    for start in range(0, len(hidden), LOGITS_SLICE):
        with torch.autocast(hidden.device.type, enabled=False):
            yield start, model.logits(hidden[start : start + LOGITS_SLICE].float())


def gather_scores(
    scores: Mapping[int, Sequence[Score]], requests: Sequence[Request], world: World
) -> list[list[Score]]:
    """All-reduce each rank's share to the scores of all requests, in order. A collective: every rank must call it."""
    mine: list[float] = []  # log-likelihood and greedy of each continuation, 0 for other ranks' requests
    for index, request in enumerate(requests):
        for score in scores.get(index, [Score(0.0, False)] * len(request.continuations)):
            mine += [score.loglik, score.greedy]
    total = iter(world.sum(mine))
    return [[Score(next(total), bool(next(total))) for _ in request.continuations] for request in requests]


def predictions(request: Request, scores: Sequence[Score]) -> tuple[int, int]:
    """Predict the continuation with the highest log-likelihood, and the one with the highest per length."""
    sums = [score.loglik for score in scores]
    means = [score.loglik / length for score, length in zip(scores, request.lengths, strict=True)]
    return sums.index(max(sums)), means.index(max(means))


def count_correct(requests: Sequence[Request], scores: Mapping[int, Sequence[Score]]) -> list[float]:
    """Count the requests answered correctly by acc, by acc_norm, and all that were scored; ranks' counts add up."""
    correct = [0, 0]
    for index, found in scores.items():
        for which, prediction in enumerate(predictions(requests[index], found)):
            correct[which] += prediction == requests[index].label
    return [*correct, len(scores)]


def standard_error(accuracy: float, n: float) -> float:
    """Standard error of a proportion: sqrt(p (1 - p) / (n - 1)), as in the harness."""
    return math.sqrt(accuracy * (1 - accuracy) / max(1, n - 1))
