"""The data order of a run over one or several named sources, each shuffled in its own epochs.

Windows are numbered along the run. Which source a window comes from is a fixed schedule that repeats; how many windows
of that source came before it follows by arithmetic. So any window is found from its number alone, after a resume too.
"""

import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prepare.common.cli import UserError
from train.config.pretrain import DataConfig
from train.data.windows import WindowOrder, Windows

MAX_PERIOD = 100_000  # windows, after which the schedule repeats: weights of up to five digits


class Mixture:
    """The windows of a run. With one source, window g of the run is window g of that source."""

    def __init__(
        self, shards: Mapping[str, Sequence[Path]], config: DataConfig, block_size: int, vocab_size: int, seed: int
    ) -> None:
        """`shards`: those of each of config.sources; the order of the names has no effect."""
        self.names, self.block_size, self.seed = sorted(shards), block_size, seed
        self.windows = [Windows(shards[name], block_size, vocab_size) for name in self.names]
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
    whole = [int(weight * scale) for weight in exact]
    shares = [number // math.gcd(*whole) for number in whole]
    if sum(shares) > MAX_PERIOD:
        given = ", ".join(map(str, weights))
        raise UserError(f"the weights {given} of data.train have too many digits: round them to three or four")
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
