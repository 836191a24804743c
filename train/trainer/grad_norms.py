"""The latest gradient norms, and which norm would be out of line."""

import math
import statistics
from collections import deque
from collections.abc import Iterable


class GradNorms:
    """A window over the finite gradient norms of the latest steps. It is saved with the run: skipping depends on it."""

    def __init__(self, window: int, zscore: float, latest: Iterable[float] = ()) -> None:
        """A norm more than `zscore` standard deviations above the mean of a full window is a spike; 0: none is."""
        self.latest, self.zscore = deque(latest, maxlen=window), zscore

    def limit(self) -> float:
        """The largest norm of the next step that is no spike."""
        if not self.zscore or len(self.latest) < self.latest.maxlen:
            return math.inf
        return statistics.fmean(self.latest) + self.zscore * statistics.pstdev(self.latest)

    def add(self, norm: float) -> None:
        """Remember a step's norm; spikes too, so that a new level becomes the usual one."""
        if math.isfinite(norm):
            self.latest.append(norm)
