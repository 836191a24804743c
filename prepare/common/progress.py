"""Progress: a bar on a terminal, plain lines elsewhere."""

import io
import sys
import time

from tqdm import tqdm

from prepare.common.cli import write_line


class Progress:
    """A bar with throughput and ETA on a terminal; elsewhere a plain line every `every` seconds.

    A context manager; `unit` is scaled (k, M, G), `total` may be None (unknown).
    """

    LINE = "{desc}: {percentage:3.0f}%, {n_fmt} of {total_fmt} [{elapsed}<{remaining}, {rate_fmt}{postfix}]"

    def __init__(self, what: str, total: float | None, unit: str, every: float = 10.0) -> None:
        self.every, self.last, self.shown = every, time.monotonic(), -1.0
        self.terminal = sys.stderr.isatty()
        out = sys.stderr if self.terminal else io.StringIO()
        self.bar = tqdm(total=total, desc=what, unit=unit, unit_scale=True, dynamic_ncols=True, file=out)

    def update(self, amount: float) -> None:
        self.bar.update(amount)
        if not self.terminal and time.monotonic() - self.last >= self.every:
            self._line()

    def note(self, text: str) -> None:
        """Print a line without breaking the bar."""
        if self.terminal:
            self.bar.write(text, file=sys.stderr)
        else:
            write_line(text)

    def _line(self) -> None:
        if self.bar.n != self.shown:
            self.bar.bar_format = self.LINE if self.bar.total else None
            write_line(str(self.bar).strip())
        self.last, self.shown = time.monotonic(), self.bar.n

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if not self.terminal:
            self._line()
        self.bar.close()
