"""The processes of one run: rank, world size, device, and the collectives that the trainer needs.

torchrun starts the processes. Each has a rank (0 to world size - 1) and, on its node, a local rank: the number of its
GPU. Together they form a process group, nccl between GPUs and gloo between CPUs. A collective (all-reduce, barrier) is
a call that every rank of the group makes, and that returns when all have made it. A single process needs no group,
and runs the same code.
"""

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

START_ALL = "check that all start and can reach MASTER_ADDR; the first error above, or its node's log, says why not"


@dataclass(frozen=True)
class World:
    """This process's place among the processes of the run."""

    rank: int
    size: int  # the world size
    device: torch.device
    watchdog: Watchdog | None = None  # when there are several ranks

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which writes the files and prints."""
        return self.rank == 0

    def print(self, text: str) -> None:
        """Print a line, from rank 0 only."""
        if self.is_main:
            print(text, flush=True)

    def sum(self, values: Sequence[float]) -> list[float]:
        """All-reduce: the sum of each value over all ranks, in float64. Every rank must call it."""
        return self._all_reduce(values, dist.ReduceOp.SUM)

    def min(self, value: int) -> int:
        """All-reduce: the smallest of all ranks' values. Every rank must call it."""
        return int(self._all_reduce([value], dist.ReduceOp.MIN)[0])

    def gather(self, value: int) -> list[int]:
        """The values of all ranks, in the order of the ranks, each below 2^53 in size. Every rank must call it."""
        return [int(each) for each in self.sum([value if rank == self.rank else 0 for rank in range(self.size)])]

    def all_equal(self, *values: int | str) -> bool:
        """Whether every rank has the same values. Every rank must call it.

        Args:
            values: integers below 2^53 in size, which float64 holds exactly, or checksums in hexadecimal, of which the
                first 48 bits are compared.
        """
        numbers = [int(value[:12], 16) if isinstance(value, str) else value for value in values]
        return all(self.min(number) == -self.min(-number) for number in numbers)

    def record_arrival(self, step: int) -> None:
        """Tell the watchdog that this rank is about to compute `step`."""
        if self.watchdog:
            self.watchdog.record_arrival(step)

    def describe(self) -> str:
        """The world size and the device, for the log."""
        kind = torch.cuda.get_device_name(self.device) if self.device.type == "cuda" else self.device.type
        return f"{self.size} process{'es' if self.size > 1 else ''} on {kind}"

    def _all_reduce(self, values: Sequence[float], operation: dist.ReduceOp.RedOpType) -> list[float]:
        if self.size == 1:
            return [float(value) for value in values]
        self.watchdog.record_arrival()
        tensor = torch.tensor(values, dtype=torch.float64, device=self.device)  # (number of values,)
        dist.all_reduce(tensor, operation)
        return tensor.tolist()


def init_distributed(device: str = "auto", timeout_seconds: int = 600) -> World:
    """Join the run's process group, if torchrun started several processes, and choose this process's device.

    Args:
        device: auto (a GPU when there is one), cpu, cuda or mps.
        timeout_seconds: the longest that a rank waits for another.

    Raises:
        UserError: the device is missing, there are more processes than GPUs, or a process does not start.
    """
    rank, size = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "mps" if torch.mps.is_available() and size == 1 else "cpu"
    if device == "cuda":
        if local_rank >= torch.cuda.device_count():
            raise UserError(
                f"process {local_rank} on this node has no GPU ({torch.cuda.device_count()} found): "
                "lower --nproc_per_node, or set device to cpu"
            )
        device = f"cuda:{local_rank}"
        torch.cuda.set_device(local_rank)
    elif device == "mps" and (size > 1 or not torch.mps.is_available()):
        raise UserError("device mps needs Apple's GPU and one process: start without torchrun, or set device to cpu")
    elif device == "cpu" and os.environ.get("OMP_NUM_THREADS") == "1" and "LOCAL_WORLD_SIZE" in os.environ:
        # torchrun sets one thread per process unless told otherwise; divide the cores among them instead
        torch.set_num_threads(max(1, available_cores() // int(os.environ["LOCAL_WORLD_SIZE"])))

    watchdog = None
    if size > 1:
        timeout = timedelta(seconds=2 * timeout_seconds + 30)  # of collectives; the watchdog reports before that
        group_store = rendezvous(_open_store(timeout), rank, size, timeout)
        backend = "nccl" if device.startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=group_store, rank=rank, world_size=size, timeout=timeout)
        # The last owner to release the group joins gloo's threads, which may need the GIL to free a tensor. Python
        # releases the GIL then, DDP does not, and both wait forever (torch 2.13; the same cause as in
        # https://github.com/pytorch/pytorch/issues/56297). So Python holds the group until the process ends.
        atexit.register(lambda _group: None, dist.group.WORLD)
        watchdog = Watchdog(group_store, rank, size, timeout_seconds)
    return World(rank, size, torch.device(device), watchdog)


def shut_down_distributed() -> None:
    """Leave the process group."""
    if dist.is_initialized():
        dist.destroy_process_group()


def _open_store(timeout: timedelta) -> dist.Store:
    """The key-value store by which processes find each other: torchrun's, or rank 0's without torchrun."""
    try:
        return next(dist.rendezvous("env://", timeout=timeout))[0]
    except dist.DistError as failure:
        reason = str(failure).splitlines()[0]
        raise UserError(f"the processes do not find each other ({reason}): {START_ALL}") from None


def rendezvous(store: dist.Store, rank: int, size: int, timeout: timedelta) -> dist.Store:
    """Wait for all ranks of this start, and return a part of the store that only they use.

    torchrun keeps one store over its restarts (--max-restarts), with the addresses of dead processes, for which new
    ones would wait (torch 2.13; https://github.com/pytorch/pytorch/issues/167288 has the symptom). On several nodes
    each torchrun counts its own restarts, so that count cannot tell the starts apart. But every torchrun ends the old
    processes before any starts new ones. So each rank publishes a random name, and rank 0 publishes the list of all
    names. A rank that finds its own new name in the list knows that rank 0 wrote it in this same start; all use the
    part of the store under rank 0's name, and wait there for each other. UserError if some ranks did not start in time.
    """
    name, end = secrets.token_hex(8), time.monotonic() + timeout.total_seconds()
    names, here = ([f"{key}/{each}" for each in range(size)] for key in ("name", "here"))
    store.set(names[rank], name)
    while time.monotonic() < end:
        if rank == 0 and store.check(names):  # names of dead ranks too, until the new ones have replaced them
            store.set("names", b" ".join(store.multi_get(names)).decode())
        listed = store.get("names").decode().split() if store.check(["names"]) else []
        if name in listed:
            ours = dist.PrefixStore(listed[0], store)
            ours.set(here[rank], "")
            if rank == 0 and ours.check(here):
                ours.set("complete", "")
            if ours.check(["complete"]):
                return ours
        time.sleep(0.05)
    raise UserError(f"not all of the {size} processes started within {timeout.total_seconds():g} s: {START_ALL}")


def is_lost_connection(failure: BaseException) -> bool:
    """Whether this exception of gloo or NCCL means that another process does not answer."""
    words = ("Connection closed", "Connection reset", "remote process exited", "Broken pipe", "Timed out waiting")
    return isinstance(failure, RuntimeError) and any(word in str(failure) for word in words)
