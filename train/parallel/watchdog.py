"""A watchdog over the processes of one run: when they stop moving together, one line says which is missing.

A rank that hangs leaves the others waiting in a collective, which cannot say for whom. So each rank writes into the
store that all of them share how often it has arrived at a common point (before a step's work, at each exchange), and a
thread of it counts on while the process lives.
"""

import atexit
import os
import socket
import sys
import threading
import time
from contextlib import suppress

import torch.distributed as dist


class Watchdog:
    """One rank's. It ends the process when it has stood for `seconds` where another rank did not arrive; a step that
    takes all of them longer is no matter. It ends with the process group."""

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.interval = min(10.0, seconds / 10)
        self.count = self.step = 0
        self.arrived(0)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._look, name="watchdog", daemon=True)
        self.thread.start()
        atexit.register(self.close)  # a thread that the interpreter ends inside the store takes the process with it

    def arrived(self, step: int | None = None) -> None:
        """This rank has come to a point that all ranks come to, in the step given or (None) the one before."""
        self.count, self.since = self.count + 1, time.monotonic()
        self.step = self.step if step is None else step
        self.store.set(f"arrived/{self.rank}", f"{self.count} {self.step} {socket.gethostname()}")

    def close(self) -> None:
        """Watchdog no more."""
        self.closed.set()
        self.thread.join(5)

    def _look(self) -> None:
        with suppress(RuntimeError):  # the store is gone with the process that kept it, which torchrun notices
            while dist.is_initialized() and not self.closed.is_set():
                self._beat()
                count, overdue = self.count, time.monotonic() - self.since > self.seconds
                missing = self._missing() if overdue else None
                if missing and self.count == count and not self.closed.is_set():
                    self._give_up(*missing)

    def _beat(self) -> None:
        self.store.add(f"alive/{self.rank}", 1)
        self.closed.wait(self.interval)

    def _beats(self) -> dict[int, int]:
        return {rank: self.store.add(f"alive/{rank}", 0) for rank in range(self.size)}

    def _missing(self) -> tuple[set[int], str] | None:
        """The ranks that the others wait for, and what to say of them; None when there is none."""
        before = self._beats()
        for _ in range(3):
            self._beat()
        silent = {rank for rank, beats in self._beats().items() if beats == before[rank]}
        counts, steps, hosts = {}, {}, {}
        for rank in range(self.size):
            text = self.store.get(f"arrived/{rank}").decode() if self.store.check([f"arrived/{rank}"]) else "0 0 ?"
            count, step, hosts[rank] = text.split(" ", 2)
            counts[rank], steps[rank] = int(count), int(step)
        late = {rank for rank in counts if counts[rank] < max(counts.values())} or silent
        if not late:
            return None
        step = max(steps.values())
        who = ", ".join(f"rank {rank} ({hosts[rank]})" for rank in sorted(late))
        where = f"step {step}" if any(steps[rank] < step for rank in late) else f"the end of step {step}"
        state = ", and is not heard of any more" if late <= silent else ""
        return late, (
            f"{who} did not arrive at {where} within {self.seconds:g} s (train.timeout_seconds){state}: see to that "
            "machine; the same command goes on from the last checkpoint"
        )

    def _give_up(self, late: set[int], line: str) -> None:
        if self.rank == min(set(range(self.size)) - late, default=0):
            print(f"error: {line}", file=sys.stderr, flush=True)
        else:
            time.sleep(3 * self.interval)  # torchrun ends all when the first one ends: that is the one who speaks
        os._exit(1)  # the main thread is inside a collective, which nothing interrupts
