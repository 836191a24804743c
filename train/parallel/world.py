"""Processes: who am I, how many are we, and sums over all of us. One process needs no group and takes the same path."""

import atexit
import os
import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist

from prepare.common.cli import UserError, available_cores
from train.parallel.watchdog import Watchdog

_START_ALL = "see that all of them start, and reach MASTER_ADDR; the first error above, or its node's log, says why not"
_TORCHRUN = (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"))


@dataclass(frozen=True)
class World:
    """This process among all of them, as torchrun's environment says."""

    rank: int
    size: int
    device: torch.device
    watchdog: Watchdog | None = None  # over the others, where there are some
    store: dist.Store | None = None  # torchrun's, which outlives its restarts

    @property
    def is_main(self) -> bool:
        """Rank 0 writes the files and speaks."""
        return self.rank == 0

    def print(self, text: str) -> None:
        """Print a line, from rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """Each value summed over all ranks, in float64. Every rank must call it, with as many values."""
        return self._reduce(values, dist.ReduceOp.SUM)

    def min(self, value: int) -> int:
        """The least of all ranks' values."""
        return int(self._reduce([value], dist.ReduceOp.MIN)[0])

    def gather(self, value: int) -> list[int]:
        """Every rank's value, each below 2^53 in size, in the order of the ranks."""
        return [int(each) for each in self.sum([value if rank == self.rank else 0 for rank in range(self.size)])]

    def arrived(self, step: int) -> None:
        """This rank stands before the work that makes `step` finished steps; see train/parallel/watchdog.py."""
        if self.watchdog:
            self.watchdog.arrived(step)

    def note(self, text: str) -> None:
        """Remember something over torchrun's restarts."""
        if self.store:
            self.store.set(text, "")

    def noted(self, text: str) -> bool:
        """Whether a process under the same torchrun has noted it, before a restart too."""
        return self.store is not None and self.store.check([text])

    def _reduce(self, values: Sequence[float], operation: dist.ReduceOp) -> list[float]:
        total = [float(value) for value in values]
        if self.size > 1:
            self.watchdog.arrived()
            tensor = torch.tensor(total, dtype=torch.float64, device=self.device)  # (number of values,)
            dist.all_reduce(tensor, operation)
            total = tensor.tolist()
        return total

    def all_equal(self, *values: int | str) -> bool:
        """Whether every rank has the same values: numbers below 2^53 in size, which are exact in float64, or checksums
        in hexadecimal, of which the first 48 bits are compared."""
        numbers = [int(value[:12], 16) if isinstance(value, str) else value for value in values]
        return all(self.min(number) == -self.min(-number) for number in numbers)

    def describe(self) -> str:
        """How many processes, on what."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.size} process{'es' if self.size > 1 else ''} on {kind}"


def start(device: str = "auto", timeout_seconds: int = 600) -> World:
    """Join the other processes: nccl between GPUs, gloo between CPUs, nothing when alone.

    Args:
        device: auto (a GPU when there is one), cpu, cuda or mps.
        timeout_seconds: the longest that a rank waits for another.

    Raises:
        UserError: the device is not there, there are more processes than GPUs, or one of them does not come.
    """
    rank, size, local_rank = (int(os.environ.get(key, default)) for key, default in _TORCHRUN)
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() and size == 1 else "cpu"
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} on this node has no GPU of its own ({torch.cuda.device_count()} found): "
                "lower --nproc_per_node, or take device cpu"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    elif device == "mps" and (size > 1 or not torch.mps.is_available()):
        raise UserError("device mps needs Apple's GPU and one process: start without torchrun, or take device cpu")
    elif device == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1" and "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun gives every process one thread unless told otherwise; share the cores out instead
        torch.set_num_threads(max(1, available_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))
    watchdog = store = None
    timeout = timedelta(seconds=2 * timeout_seconds + 30)  # the watchdog speaks first; then the collectives end
    if size > 1 or "TORCHELASTIC_RUN_ID" in os.environ:
        store = _open_store(timeout)
    if size > 1:
        ours = meet(store, rank, size, timeout)
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=ours, rank=rank, world_size=size, timeout=timeout)
        # Whoever lets go of the group last waits for gloo's threads, which may want the GIL to free a tensor. Python
        # gives it to them, DDP does not, and both wait for ever (torch 2.13; the cause is that of
        # https://github.com/pytorch/pytorch/issues/56297). So Python holds the group until the process ends.
        atexit.register(lambda _group: None, dist.group.WORLD)
        watchdog = Watchdog(ours, rank, size, timeout_seconds)
    return World(rank, size, torch.device(device), watchdog, store)


def _open_store(timeout: timedelta) -> dist.Store:
    """What processes find each other by: torchrun's, or rank 0's where there is no torchrun."""
    try:
        return next(dist.rendezvous("env://", timeout=timeout))[0]
    except dist.DistError as failure:
        reason = str(failure).splitlines()[0]
        raise UserError(f"the processes do not find each other ({reason}): {_START_ALL}") from None


def meet(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """A part of the store that only these `size` processes use, all of which are there now.

    torchrun keeps one store over its restarts (--max-restarts), and so the addresses of dead processes, which new ones
    would wait for (torch 2.13; https://github.com/pytorch/pytorch/issues/167288 has the symptom); on several nodes each
    torchrun counts restarts of its own, so the counts tell nothing apart. But before any torchrun starts new processes,
    all have ended the old ones. So whoever reads the name that it has just given itself in rank 0's list has the list
    of a rank 0 that started with it, and goes where that one's name says; there rank 0 waits for all, and all for it.

    Raises:
        UserError: some did not come in time.
    """
    name, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    names, here = ([f"{key}/{each}" for each in range(size)] for key in ("name", "here"))
    store.set(names[rank], name)
    while time.monotonic() < end:
        if rank == 0 and store.check(names):
            store.set("names", b" ".join(store.multi_get(names)))  # dead ones' too, until the living ones' are there
        listed = store.get("names").decode().split() if store.check(["names"]) else []
        if name in listed:
            ours = dist.PrefixStore(listed[0], store)
            ours.set(here[rank], "")
            if rank == 0 and ours.check(here):
                ours.set("complete", "")
            if ours.check(["complete"]):
                return ours
        time.sleep(0.05)
    raise UserError(f"not all of the {size} processes came within {timeout.total_seconds():g} s: {_START_ALL}")


def stop() -> None:
    """Leave the group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def is_lost_connection(failure: BaseException) -> bool:
    """Whether an exception says that another process does not answer: gloo's and NCCL's words for it."""
    words = ("Connection closed", "Connection reset", "remote process exited", "Broken pipe", "Timed out waiting")
    return isinstance(failure, RuntimeError) and any(word in str(failure) for word in words)
