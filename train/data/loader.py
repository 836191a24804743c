"""The data loader of pretraining: the micro-batches of any step, as a pure function of (seed, step).

Windows are numbered along the run. Which source a window comes from is a schedule that repeats, and how many windows of
that source came before it follows by arithmetic; so any window is found from its number, after a resume too. Step s
takes the windows [s * N, (s + 1) * N), where N = batch_tokens / block_size; rank r of W takes the r-th of W equal
parts. The batch of a step is therefore the same for every world size and micro-batch size.
"""

import hashlib
import math
import queue
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from prepare.common.cli import UserError
from train.config.pretrain import DataConfig, ModelConfig
from train.data.windows import WindowOrder, Windows

MAX_PERIOD = 100_000  # windows, after which the schedule of sources repeats: weights of up to five digits


class Mixture:
    """The windows of a run, from one source or several. With one, window g of the run is window g of that source."""

    def __init__(self, shards: Mapping[str, Sequence[Path]], config: DataConfig, model: ModelConfig, seed: int) -> None:
        """`shards`: those of each of config.sources; the order of the names has no effect."""
        self.names, self.block_size, self.seed = sorted(shards), model.block_size, seed
        self.windows = [Windows(shards[name], model.block_size, model.vocab_size) for name in self.names]
        self.orders = [WindowOrder(windows.counts, seed, config.shuffle) for windows in self.windows]
        self.shares = np.array(integer_shares([config.sources[name].weight for name in self.names]))
        self.schedule = schedule(self.shares.tolist())  # of one period, of self.shares windows of each source

    def windows_read(self, number: int) -> np.ndarray:
        """Windows of each source among the first `number` of the run, (sources,) int64."""
        periods, place = divmod(number, len(self.schedule))
        return periods * self.shares + np.bincount(self.schedule[:place, 0], minlength=len(self.names))

    def locate(self, number: int) -> tuple[int, int, int]:
        """Global window number -> (source index, shard index, window index in that shard)."""
        periods, place = divmod(number, len(self.schedule))
        source, read = self.schedule[place].tolist()
        return source, *self.orders[source].locate(periods * int(self.shares[source]) + read)

    def read(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The windows with these numbers as inputs and targets, int64 (len(numbers), block_size) each."""
        places = [self.locate(number) for number in numbers]
        x, y = torch.empty(2, len(places), self.block_size, dtype=torch.int64)
        for index, windows in enumerate(self.windows):
            rows = [row for row, (source, *_) in enumerate(places) if source == index]
            x[rows], y[rows] = windows.read([places[row][1:] for row in rows])
        return x, y

    def epochs(self, number: int) -> np.ndarray:
        """Epochs of each source in the first `number` windows of the run, (sources,) float64."""
        return self.windows_read(number) / [order.per_epoch for order in self.orders]

    def fingerprint(self) -> dict:
        """What identifies a run's data: each source's fingerprint and share of the windows."""
        facts = [windows.fingerprint() for windows in self.windows]
        if self.names == [""]:
            return facts[0]
        weights = (self.shares / len(self.schedule)).tolist()
        sources = {name: {"weight": w, **fact} for name, w, fact in zip(self.names, weights, facts, strict=True)}
        return {"sources": ", ".join(self.names), **sources}


def integer_shares(weights: Sequence[float]) -> list[int]:
    """The smallest integers in the proportion of the weights, exactly as they are written: 0.7 and 0.3 are 7 and 3.

    Raises:
        UserError: they add up to more than MAX_PERIOD.
    """
    exact = [Fraction(str(weight)) for weight in weights]
    scale = math.lcm(*(weight.denominator for weight in exact))
    integers = [int(weight * scale) for weight in exact]
    shares = [number // math.gcd(*integers) for number in integers]
    if sum(shares) > MAX_PERIOD:
        given = ", ".join(map(str, weights))
        raise UserError(f"the weights {given} of data.train have too many digits: give up to four, or small integers")
    return shares


def schedule(shares: Sequence[int]) -> np.ndarray:
    """The source of each window of a period, and how many windows of it came before: (sum(shares), 2) int64.

    Of the first n windows, a source has n * share / period to within less than one. For that, its window j must come
    within the places [j * period / share, (j + 1) * period / share), rounded outwards; of the sources whose next window
    may come, the one whose must come first is read. Such a schedule exists (Tijdeman 1980, The chairman assignment
    problem), and the earliest deadline first finds it (Baruah et al. 1996, Proportionate progress).
    """
    period, read, turns = sum(shares), [0] * len(shares), []
    for place in range(period):
        ready = [i for i, share in enumerate(shares) if read[i] * period < (place + 1) * share]
        source = min(ready, key=lambda i: -(-(read[i] + 1) * period // shares[i]))
        turns.append((source, read[source]))
        read[source] += 1
    return np.array(turns)


class MicroBatch(NamedTuple):
    """One forward and backward pass of a rank's gradient accumulation."""

    inputs: Tensor  # (B, T) int64
    targets: Tensor  # (B, T) int64
    weight: float  # of its mean loss in the rank's loss
    seed: int  # for its dropout


def dropout_seeds(seed: int, first_window: int, micro_batch_size: int, n: int) -> list[int]:
    """Dropout seeds for n micro-batches: a function of the run's seed and the number of each one's first window.

    They depend on the windows, not on the rank, so that with the same micro_batch_size the dropout masks are the same
    for every world size and after a resume. Hashed, since torch's CPU generator uses only the low 32 bits of a seed.
    """
    windows = range(first_window, first_window + n * micro_batch_size, micro_batch_size)
    digests = (hashlib.blake2b(f"{seed} {window}".encode(), digest_size=8).digest() for window in windows)
    return [int.from_bytes(digest) for digest in digests]


@dataclass(frozen=True)
class WindowLoader:
    """One rank's data loader: the micro-batches of any step."""

    mixture: Mixture
    per_rank: int  # windows in a step of each rank
    micro_batch_size: int
    rank: int
    world_size: int
    pin: bool = False  # in pinned memory, from which a GPU copies while it computes

    def first_window(self, step: int, rank: int = 0) -> int:
        """The number of the first window that a rank reads in a step."""
        return (step * self.world_size + rank) * self.per_rank

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step, (micro_batch_size, block_size) each."""
        first, size = self.first_window(step, self.rank), self.micro_batch_size
        n = self.per_rank // size
        batches = []
        for number, seed in enumerate(dropout_seeds(self.mixture.seed, first, size, n)):
            start = first + number * size
            x, y = self.mixture.read(range(start, start + size))
            batches.append(MicroBatch(*((x.pin_memory(), y.pin_memory()) if self.pin else (x, y)), 1 / n, seed))
        return batches

    def epoch_of(self, step: int) -> float:
        """Epochs read after `step` finished steps, of the source that was read least."""
        return min(self.mixture.epochs(self.first_window(step)))

    def tokens_read(self, step: int) -> int:
        """Tokens read after `step` finished steps."""
        return self.first_window(step) * self.mixture.block_size


def prefetch(read: Callable[[int], list[MicroBatch]], first: int, last: int) -> Iterator[list[MicroBatch]]:
    """Yield read(first) ... read(last - 1), which a thread computes up to two steps ahead."""
    ready: queue.Queue = queue.Queue(maxsize=2)
    closed = threading.Event()

    def put(item: object) -> None:
        while not closed.is_set():
            try:
                return ready.put(item, timeout=0.2)
            except queue.Full:
                continue

    def read_all() -> None:
        try:
            for step in range(first, last):
                if closed.is_set():
                    return
                put(read(step))
        except BaseException as failure:  # raised again in the training loop
            put(failure)

    thread = threading.Thread(target=read_all, name="prefetch", daemon=True)
    thread.start()
    try:
        for _ in range(first, last):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
        thread.join(timeout=1)  # if it reads a tensor when Python ends, it aborts the process
