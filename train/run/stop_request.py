"""Requests to stop early: a signal, a file named STOP in the run directory, or Slurm's time limit."""

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType

STOP = "STOP"  # a file in the run directory
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)  # SIGHUP: the terminal was closed


def handle_signals(handler: Callable[[int, FrameType | None], object]) -> None:
    """Handle the signals that ask a run to stop."""
    for number in SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
            signal.signal(number, handler)


class StopRequest:
    """Record a request to stop; the training loop polls it at each step, and all ranks decide together."""

    def __init__(self, run_dir: Path, margin_seconds: int, is_main: bool) -> None:
        self.file = run_dir / STOP
        self.end, self.margin = float(os.environ.get("SLURM_JOB_END_TIME") or "inf"), margin_seconds
        self.is_main = is_main
        self.agreed = False  # the ranks' last common decision
        self.signal: int | None = None
        handle_signals(self._on_signal)

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        if self.signal == signal.SIGINT == number:
            raise KeyboardInterrupt  # a second Ctrl-C ends the process at once
        self.signal = number

    def allow_for_save(self, save_seconds: float) -> None:
        """Leave at least twice this duration of a save before Slurm's time limit."""
        self.margin = max(self.margin, 2 * save_seconds)

    def requested(self) -> bool:
        """Whether this process has a request; rank 0 also checks the file and the clock."""
        return self.signal is not None or (self.is_main and (self._limit_is_near() or self.file.exists()))

    def _limit_is_near(self) -> bool:
        return time.time() >= self.end - self.margin

    def reason(self) -> str:
        """Why the run stops. The STOP file comes first: after any other reason slurm/train.sbatch requeues the job."""
        if self.file.exists():
            return "a STOP file"
        if self.signal is not None:
            return signal.Signals(self.signal).name
        return "Slurm's time limit" if self._limit_is_near() else "another process's request"

    def ignore_signals(self) -> None:
        """Ignore signals once the run is saved: none may end the process, even while Python removes its handlers."""
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)

    def clear(self) -> None:
        """Remove the STOP file once the run has stopped, so that the next start resumes."""
        if self.is_main:
            self.file.unlink(missing_ok=True)
