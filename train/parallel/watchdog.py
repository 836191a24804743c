"""A watchdog over the ranks of one run: when one hangs or dies, name it in one line and end the run.

A rank that hangs leaves the others waiting in a collective, which cannot tell for which rank. So each rank counts in
the shared store how often it has arrived at a common point (before each step, at each all-reduce), and a thread sends
heartbeats while the process lives.
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
    """One rank's watchdog, for as long as the process group lives.

    It ends the process when this rank has waited `seconds` at a point where another rank has not arrived. A step
    that is slow on all ranks does not end it.
    """

    def __init__(self, store: dist.Store, rank: int, size: int, seconds: float) -> None:
        self.store, self.rank, self.size, self.seconds = store, rank, size, seconds
        self.interval = min(10.0, seconds / 10)
        self.count = self.step = 0
        self.record_arrival(0)
        self.closed = threading.Event()
        self.thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self.thread.start()
        atexit.register(self.close)  # a daemon thread that is inside the store when Python exits would crash it

    def record_arrival(self, step: int | None = None) -> None:
        """Record that this rank has arrived at a common point of `step`; None: of the same step as last time."""
        self.count, self.since = self.count + 1, time.monotonic()
        self.step = self.step if step is None else step
        self.store.set(f"arrived/{self.rank}", f"{self.count} {self.step} {socket.gethostname()}")

    def close(self) -> None:
        """Stop watching."""
        self.closed.set()
        self.thread.join(5)

    def _watch(self) -> None:
        with suppress(RuntimeError):  # the store ended with the process that held it, which torchrun notices
            while dist.is_initialized() and not self.closed.is_set():
                self._send_heartbeat()
                count, overdue = self.count, time.monotonic() - self.since > self.seconds
                missing = self._find_missing() if overdue else None
                if missing and self.count == count and not self.closed.is_set():
                    self._end_process(*missing)

    def _send_heartbeat(self) -> None:
        self.store.add(f"alive/{self.rank}", 1)
        self.closed.wait(self.interval)

    def _heartbeats(self) -> dict[int, int]:
        return {rank: self.store.add(f"alive/{rank}", 0) for rank in range(self.size)}

    def _find_missing(self) -> tuple[set[int], str] | None:
        """The ranks that the others wait for, and the error message that names them; None if all have arrived."""
        before = self._heartbeats()
        for _ in range(3):
            self._send_heartbeat()
        silent = {rank for rank, beats in self._heartbeats().items() if beats == before[rank]}
        counts, steps, hosts = {}, {}, {}
        for rank in range(self.size):
            text = self.store.get(f"arrived/{rank}").decode() if self.store.check([f"arrived/{rank}"]) else "0 0 ?"
            count, step, hosts[rank] = text.split(" ", 2)
            counts[rank], steps[rank] = int(count), int(step)
        late = {rank for rank in counts if counts[rank] < max(counts.values())} or silent
        if not late:
            return None
        last = max(steps.values())
        who = ", ".join(f"rank {rank} ({hosts[rank]})" for rank in sorted(late))
        where = f"step {last}" if any(steps[rank] < last for rank in late) else f"the end of step {last}"
        state = ", and sends no heartbeat" if late <= silent else ""
        return late, (
            f"{who} did not arrive at {where} within {self.seconds:g} s (train.timeout_seconds){state}: check that "
            "machine; the same command resumes from the last checkpoint"
        )

    def _end_process(self, late: set[int], message: str) -> None:
        if self.rank == min(set(range(self.size)) - late, default=0):
            print(f"error: {message}", file=sys.stderr, flush=True)
        else:
            time.sleep(3 * self.interval)  # torchrun ends all ranks when the first one exits: let that one print
        os._exit(1)  # the main thread is in a collective, which nothing interrupts
