"""The data loader of pretraining: the micro-batches of any step, as a pure function of (seed, step).

Windows are numbered along the run (see mixture.py). Step s takes the windows [s * N, (s + 1) * N), where N =
batch_tokens / block_size; rank r of W takes the r-th of W equal parts of them. The batch of a step is therefore the
same for every world size and micro-batch size.
"""

import hashlib
import queue
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

from torch import Tensor

from train.data.mixture import Mixture


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

    threading.Thread(target=read_all, name="prefetch", daemon=True).start()
    try:
        for _ in range(first, last):
            item = ready.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        closed.set()
