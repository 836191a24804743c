"""Requests that are generated together: one model in memory, and one thread that advances all of its generations."""

import asyncio
import threading
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from eval.generation.sampling import Generation, TextStream, next_logits
from eval.serving.models import ModelFiles, Refused, fingerprint
from prepare.common.cli import UserError, first_line
from train.parallel.device import is_out_of_memory
from train.weights.load_model import LoadedModel, load_model

MAX_REQUESTS = 64  # running and waiting
MAX_ROWS = 32  # generated together
CACHE_BYTES = 2**31  # at most, of these rows' keys and values: 28 rows of GPT-2 124M, 3 of GPT-2 1558M
# what is counted, for /metrics; a step is a forward pass, which generates a token of every running row
TOTALS = ("prompt_tokens", "generated_tokens", "steps", "model_loads", "first_tokens", "first_token_seconds")


@dataclass
class Piece:
    """One more token of one row, or the end of a row."""

    row: int
    token: int | None  # None for the end-of-text token
    text: str  # what may be shown from now on; "" while a character or a stop string may be incomplete
    offset: int  # the number of characters before this token
    logprob: float = 0.0  # of the token, from the model's own logits: before temperature, top k and so on
    alternatives: list[tuple[int, float]] = field(default_factory=list)  # the most likely tokens with their logprobs
    finish: str | None = None  # why the row ends: stop or length


Event = Piece | Refused | None  # None: the request is finished


@dataclass(eq=False)
class Request:
    """A prompt that a client wants continued, and the queue of what has been generated.

    Args:
        files: the model.
        encode: makes the prompt's tokens. UserError if it cannot.
        rows: continuations of the prompt, drawn by one random generator, as eval/generate.py's --num-samples.
        settings: named arguments of Generation.
        alternatives: how many of the most likely tokens to report with each token; None: no log-probabilities.
        events: where the client reads, at its own pace. It never holds more than the request's tokens.
        first_row: what a piece's row is counted from, when several requests share the queue.
    """

    files: ModelFiles
    encode: Callable[[LoadedModel], list[int]]
    rows: int
    max_new_tokens: int
    seed: int
    stops: Sequence[str]
    settings: dict[str, Any]
    alternatives: int | None
    events: asyncio.Queue[Event]
    first_row: int = 0
    cancelled: bool = False
    has_token: bool = False  # a token has been generated
    prompt: list[int] = field(default_factory=list)  # its tokens, once the request has started
    arrived: float = field(default_factory=time.monotonic)

    def start(self, loaded: LoadedModel) -> None:
        """Encode the prompt and make the generation. UserError if the prompt cannot be encoded."""
        self.tokenizer = tokenizer = loaded.tokenizer
        self.prompt = self.encode(loaded)
        self.generation = Generation(
            loaded.model,
            [self.prompt] * self.rows,
            self.max_new_tokens,
            generator=torch.Generator().manual_seed(self.seed),
            vocab_size=tokenizer.vocab_size,
            stop=tokenizer.eot,
            **self.settings,
        )
        self.streams = [TextStream(tokenizer, self.stops) for _ in range(self.rows)]
        self.lengths = [0] * self.rows  # characters so far

    def append(self, logits: Tensor) -> list[Event]:
        """Choose each row's next token from its logits (rows, V). UserError if the model has diverged."""
        new = self.generation.append_choice(logits).tolist()
        active = [row for row, stream in enumerate(self.streams) if not stream.ended]
        pieces: dict[int, Piece] = {}
        for row in active:
            stream, offset = self.streams[row], self.lengths[row] + len(self.streams[row].held)
            text, finish = stream.add(new[row]), "stop" if stream.ended else None
            if finish is None and self.generation.left == 0:
                text, finish = text + stream.end(), "length"
            self.lengths[row] += len(text)
            token = None if new[row] == self.tokenizer.eot else new[row]
            pieces[row] = Piece(self.first_row + row, token, text, offset, finish=finish)
        if self.alternatives is not None and active:
            logprobs = logits[active].log_softmax(-1)  # (active rows, V)
            top = logprobs.topk(min(self.alternatives, logits.size(-1)))
            for row, logprob, values, ids in zip(active, logprobs, *map(Tensor.tolist, top), strict=True):
                pieces[row].logprob = logprob[new[row]].item()
                pieces[row].alternatives = list(zip(ids, values, strict=True))
        finished = self.generation.finished or all(stream.ended for stream in self.streams)
        return [*pieces.values(), *([None] if finished else [])]


class Batcher(threading.Thread):
    """The thread that computes. Requests join the running batch as soon as there is room, in the order in which they
    came. One for another model waits until the batch has ended; then that model takes the place of this one."""

    def __init__(self, device: torch.device) -> None:
        super().__init__(daemon=True)  # a process that is told to end does not wait for a model that is being opened
        self.device = device
        self.files: ModelFiles | None = None  # of the model in memory
        self.loaded: LoadedModel | None = None
        self.waiting: list[Request] = []
        self.running: list[Request] = []
        self.changed = threading.Condition()
        self.closed = False
        self.loop: asyncio.AbstractEventLoop | None = None
        self.totals: dict[str, float] = dict.fromkeys(TOTALS, 0)

    # --- called by the event loop -------------------------------------------------------------------------------------

    def submit(self, requests: Sequence[Request]) -> None:
        """Queue requests. Refused if there are too many, or the server ends."""
        self.loop = asyncio.get_running_loop()
        with self.changed:
            if self.closed:
                raise Refused(503, "the server is shutting down")
            if len(self.waiting) + len(self.running) + len(requests) > MAX_REQUESTS:
                raise Refused(429, f"{MAX_REQUESTS} requests are running or waiting: try again in a second")
            self.waiting += requests
            self.changed.notify()

    def cancel(self, requests: Sequence[Request]) -> None:
        """Stop generating these requests, whose client has gone away; finished ones are left alone."""
        for request in requests:
            request.cancelled = True

    def close(self) -> None:
        """End every request with an error."""
        self.closed = True  # without the lock, which the interrupted thread may hold

    # --- the thread ---------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Advance what is running, and admit what waits, until the server is closed."""
        try:
            while not self.closed:
                with self.changed:
                    self.changed.wait_for(lambda: self.waiting or self.running, timeout=0.2)
                try:
                    self._admit()
                    if self.running:
                        self._step()
                except Exception as failure:  # of the model, so it concerns every request
                    self._end(self.running, failure)
        finally:  # also if an error could not be printed: no client waits for a thread that has ended
            self.closed = True
            self._end([*self.running, *self.waiting], Refused(503, "the server is shutting down"))

    def _admit(self) -> None:
        """Drop what is cancelled, and start the waiting requests that may join the batch."""
        with self.changed:
            self.waiting = [request for request in self.waiting if not request.cancelled]
            self.running = [request for request in self.running if not request.cancelled]
            files = self.waiting[0].files if self.waiting else self.files
            if files != self.files:
                if self.running:
                    return
                self.waiting.sort(key=lambda request: request.files != files)  # those for the same model join together
        if files and files != self.files:
            try:
                self.open(files)
            except Exception as failure:
                self._end([request for request in self.waiting if request.files == files], failure)
                return
        while self.waiting and self.waiting[0].files == self.files:
            rows = sum(request.rows for request in self.running)
            if rows and rows + self.waiting[0].rows > self.max_rows:
                return
            with self.changed:
                request = self.waiting.pop(0)
                self.running.append(request)
            try:
                request.start(self.loaded)  # ty: ignore[invalid-argument-type]
                self.totals["prompt_tokens"] += len(request.prompt)
            except Exception as failure:
                self._end([request], failure)

    def open(self, files: ModelFiles) -> None:
        """Put a model into memory in the place of the one that is there. UserError if it cannot be opened."""
        self.files = self.loaded = None
        try:
            self.loaded = load_model(files.spec, self.device, classifier=None)
        except UserError as failure:
            if fingerprint(Path(files.spec)) == files.fingerprint:
                raise
            message = f"the files of {files.name} were deleted or replaced before they were read: ask again"
            raise Refused(409, message) from failure
        self.files = files
        config = self.loaded.model.config
        self.max_rows = min(MAX_ROWS, CACHE_BYTES // (8 * config.n_layer * config.n_embd * config.block_size))
        self.totals["model_loads"] += 1

    def _step(self) -> None:
        """Generate one token of every running row."""
        batch = list(self.running)
        all_logits = next_logits(self.loaded.model, [request.generation for request in batch])
        events: list[tuple[Request, list[Event]]] = []
        for request, logits in zip(batch, all_logits, strict=True):
            try:
                events.append((request, request.append(logits)))
            except Exception as failure:
                self._end([request], failure)
        self.totals["steps"] += 1
        self._deliver(events)

    def _deliver(self, events: Sequence[tuple[Request, list[Event]]]) -> None:
        """Give each request's events to its client, and forget the requests that are finished."""

        def put() -> None:
            for request, some in events:
                for event in some:
                    request.events.put_nowait(event)

        for request, some in events:
            pieces = [event for event in some if isinstance(event, Piece)]
            self.totals["generated_tokens"] += sum(piece.token is not None for piece in pieces)
            if pieces and not request.has_token:
                request.has_token = True
                self.totals["first_tokens"] += 1
                self.totals["first_token_seconds"] += time.monotonic() - request.arrived
        finished = [request for request, some in events if None in some]
        with self.changed:
            self.running = [request for request in self.running if request not in finished]
        with suppress(RuntimeError):  # the event loop has ended
            if events:
                self.loop.call_soon_threadsafe(put)

    def _end(self, requests: Sequence[Request], failure: Exception) -> None:
        """Tell the clients of these requests why they get no more, and forget the requests."""
        if not isinstance(failure, Refused):
            status = 409 if isinstance(failure, UserError) else 500
            if status == 500 and not is_out_of_memory(failure):
                traceback.print_exception(failure)
            failure = Refused(status, first_line(failure))
        requests = list(requests)
        with self.changed:
            self.waiting = [request for request in self.waiting if request not in requests]
        self._deliver([(request, [failure, None]) for request in requests])
