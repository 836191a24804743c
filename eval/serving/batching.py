"""Continuous batching: one model in memory, and one thread that computes on it for all requests."""

import asyncio
import queue
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor

from eval.generation.sampling import Generation, next_logits
from eval.serving.models import ModelFiles, Refused, fingerprint
from prepare.common.cli import UserError, first_line
from train.weights.load_model import LoadedModel, load_model

MAX_JOBS = 64  # running, waiting, and being read by their clients
MAX_ROWS = 32  # generated together
CACHE_BYTES = 2**31  # at most, of these rows' keys and values: 28 rows of GPT-2 124M, 3 of GPT-2 1558M
SHUTTING_DOWN = Refused(503, "the server is shutting down")


class Job:
    """What a client waits for, computed with the loaded model. It may start a generation, which joins the batch."""

    rows = 0  # of the batch that its generation takes
    generation: Generation | None = None
    start: Callable[[LoadedModel], Any]  # computes the first event. UserError if the request cannot be answered
    append: Callable[[Tensor], list[Any]]  # from the generation's logits (rows, V), the events of its next tokens

    def __init__(self, files: ModelFiles) -> None:
        self.files = files
        self.events: asyncio.Queue[Any] = asyncio.Queue()  # where the client reads, at its own pace
        self.ended = False  # finished, failed, or the client has gone away

    async def next_event(self) -> Any:
        """Wait for the next event. Refused if there are no more because of an error."""
        event = await self.events.get()
        if isinstance(event, Refused):
            raise event
        return event


class Call(Job):
    """The call of a function, whose result is the only event."""

    def __init__(self, files: ModelFiles, function: Callable[[LoadedModel], Any]) -> None:
        super().__init__(files)
        self.start = function


class Batcher(threading.Thread):
    """The thread that computes. Jobs start in the order in which they came, between two steps of the running batch, as
    soon as it has room. One for another model waits until the batch has ended; then that model replaces this one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)  # a process that is told to end does not wait for a model that is being opened
        self.device = device
        self.files: ModelFiles | None = None  # of the model in memory
        self.loaded: LoadedModel | None = None
        self.jobs: set[Job] = set()  # whose clients are connected; the event loop's
        self.incoming: queue.SimpleQueue[Job] = queue.SimpleQueue()  # from the event loop to the thread
        self.waiting: list[Job] = []  # the thread's, and so is running
        self.running: list[Job] = []
        self.closed = False
        self.loop: asyncio.AbstractEventLoop | None = None
        # for /metrics; a step is a forward pass, which generates a token of every running row
        self.totals = {"prompt_tokens": 0, "generated_tokens": 0, "steps": 0, "model_loads": 0}

    # --- called by the event loop -------------------------------------------------------------------------------------

    @contextmanager
    def submitted(self, job: Job) -> Iterator[None]:
        """Queue a job, and stop it at the end of the block. Refused if there are too many, or the server ends."""
        self.loop = asyncio.get_running_loop()
        self.jobs.add(job)
        try:
            if self.closed:
                raise SHUTTING_DOWN
            if len(self.jobs) > MAX_JOBS:
                raise Refused(429, f"{MAX_JOBS} requests are running or waiting: try again in a second")
            self.incoming.put(job)
            yield
        finally:
            job.ended = True
            self.jobs.remove(job)

    def close(self) -> None:
        """End every job with an error. Takes no lock, which the code that a signal interrupts may hold."""
        self.closed = True
        for job in list(self.jobs):
            self._put(job, SHUTTING_DOWN)

    def _put(self, job: Job, event: Any) -> None:
        with suppress(RuntimeError):  # the event loop has ended
            self.loop.call_soon_threadsafe(job.events.put_nowait, event)

    # --- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start what waits, and advance what runs, until the server is closed."""
        try:
            while not self.closed:
                with suppress(queue.Empty):
                    while True:
                        idle = not (self.waiting or self.running)
                        self.waiting.append(self.incoming.get(idle, timeout=0.2))
                self._admit()
                if self.running:
                    self._step()
        finally:  # also if an error could not be printed: no client waits for a thread that has ended
            self.close()

    def _admit(self) -> None:
        """Drop what has ended, and start the waiting jobs for which there is room."""
        while not self.closed:
            self.waiting = [job for job in self.waiting if not job.ended]
            self.running = [job for job in self.running if job.generation and not job.ended]
            if not self.waiting:
                return
            job = self.waiting[0]
            try:
                if job.files != self.files:
                    if self.running:
                        return
                    self.waiting.sort(key=lambda other: other.files != job.files)  # one load for all of this model
                    self.open(job.files)
                if job.rows > self.max_rows:
                    raise Refused(400, f"{job.rows} choices: with {job.files.name}, give at most {self.max_rows}")
                if sum(other.rows for other in self.running) + job.rows > self.max_rows:
                    return
                self.waiting.remove(job)
                self.running.append(job)  # counted while it starts
                self._put(job, job.start(self.loaded))  # ty: ignore[invalid-argument-type]
            except Exception as failure:
                jobs = [job] if self.loaded else [other for other in self.waiting if other.files == job.files]
                self._fail(jobs, refusal_if_changed(job.files) or failure)

    def open(self, files: ModelFiles) -> None:
        """Load a model in the place of the one in memory. Refused if it cannot be opened."""
        self.files = self.loaded = None
        try:
            self.loaded = load_model(str(files.path), self.device, classifier=None)
        except (UserError, OSError) as failure:
            raise Refused(409, first_line(failure)) from failure
        self.files = files
        config = self.loaded.model.config
        row_bytes = 8 * config.n_layer * config.n_embd * config.block_size
        self.max_rows = max(1, min(MAX_ROWS, CACHE_BYTES // row_bytes))
        self.totals["model_loads"] += 1

    def _step(self) -> None:
        """Generate one token of every running row."""
        try:
            all_logits = next_logits(self.loaded.model, [job.generation for job in self.running if job.generation])
        except Exception as failure:  # such as out of memory
            return self._fail(self.running, failure)
        self.totals["steps"] += 1
        for job, logits in zip(self.running, all_logits, strict=True):
            try:
                events = job.append(logits)
            except Exception as failure:  # of this job: its prompt's logits, or its settings
                self._fail([job], failure)
                continue
            self.totals["generated_tokens"] += sum(event is not None for event in events)
            for event in events:
                self._put(job, event)

    def _fail(self, jobs: Sequence[Job], failure: Exception) -> None:
        """Tell the clients of these jobs why they get no more, and end the jobs."""
        if not isinstance(failure, UserError):
            traceback.print_exception(failure)
        if not isinstance(failure, Refused):
            failure = Refused(400 if isinstance(failure, UserError) else 500, first_line(failure))
        for job in jobs:
            job.ended = True
            self._put(job, failure)


def refusal_if_changed(files: ModelFiles) -> Refused | None:
    """The error for a model whose files are no longer those that were listed."""
    if fingerprint(files.path) == (files.fingerprint, files.modified):
        return None
    return Refused(409, f"the files of {files.name} were deleted or replaced while they were read: ask again")
