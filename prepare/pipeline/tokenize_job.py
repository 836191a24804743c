"""Documents to a folder of token shards: several threads, several machines, resumable, and always the same bytes.

Threads of one process, from a document to a shard on disk:

    fetch      downloads the next input files while this one is tokenized; at most KEEP_FILES are on disk
    main       reads batches of documents, in order, and queues them to be encoded
    workers    encode batches: `workers` threads, and up to two batches queued for each
    main       writes the encoded batches to shards, in the order in which they were read
    disk       publishes each full shard: fsync, checksum, final name, record of how to resume after it

So the shards depend on the input and the options alone, not on the workers, the engine, or interruptions. The same
command, run again after a kill, resumes each input file after its last shard on disk. Array tasks (--task I/N) take
every Nth input file; the one that finishes the last of them writes the manifest.
"""

import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path

import pyarrow.compute as pc

from prepare.common.cli import UserError
from prepare.common.progress import Progress
from prepare.pipeline.output_folder import OutputFolder
from prepare.sources.batches import Batch
from prepare.sources.inputs import Source
from prepare.tokens.shards import SHARD_TOKENS, ShardWriter
from prepare.tokens.tokenizer import Encoded, Mismatch, Tokenizer
from prepare.tokens.vocabulary import END_OF_TEXT

KEEP_FILES = 2  # downloaded input files on disk: the one that is tokenized and the next
DISK_BACKLOG = 2  # full shards that may wait for the disk thread


@dataclass(frozen=True)
class TokenizeJob:
    """All that the bytes of a folder of shards depend on."""

    inputs: Sequence[Source]
    name: str  # the first part of the shards' names
    dataset: str
    revision: str | None
    tokenizer: Tokenizer
    options: dict  # recorded in the manifest, with name and shard_tokens
    shard_tokens: int = SHARD_TOKENS

    def plan(self) -> dict:
        """The job as JSON; a folder that was started with another plan is refused."""
        return {
            "dataset": self.dataset,
            "revision": self.revision,
            "tokenizer": self.tokenizer.describe(),
            "options": {"name": self.name, "shard_tokens": self.shard_tokens, **self.options},
            "inputs": [source.identity() for source in self.inputs],
        }


def run_job(job: TokenizeJob, out: Path, workers: int = 1, task: tuple[int, int] = (1, 1)) -> dict | None:
    """Tokenize one task's input files into the folder `out`, and write the manifest once all tasks are done.

    Args:
        task: (I, N), I from 1: take every Nth input file, from the Ith on.

    Returns:
        the manifest; None when other tasks have input files left.

    Raises:
        UserError: the folder belongs to another job, or is in use; an input file cannot be read; the input has no text.
    """
    out.mkdir(parents=True, exist_ok=True)
    folder = OutputFolder(out, job.plan())
    index, count = task
    with folder.claim(index, count):
        finished = folder.finished_inputs()
        todo = [number for number in range(index - 1, len(job.inputs), count) if number not in finished]
        try:
            folder.remove_partial_shards(todo)
            if todo:
                _Pipeline(job, folder, workers).run(todo)
            manifest = folder.write_manifest_if_complete()
        except UserError:
            if count == 1:
                folder.keep_only_finished()
            raise
        except OSError:  # a full disk: remove unfinished shards to make room
            folder.remove_partial_shards(set(todo) - folder.finished_inputs().keys())
            raise
    if manifest is None:
        print(f"{out}: task {index}/{count} is done; the last task to finish writes the manifest")
        return None
    facts = ("documents", "tokens", "bytes", "empty", "skipped")
    documents, tokens, size, empty, skipped = (sum(file[fact] for file in manifest["inputs"]) for fact in facts)
    longest = max(file["longest"] for file in manifest["inputs"])
    print(
        f"{out}: {len(manifest['shards'])} shards, {documents:,} documents ({empty} empty, {skipped} values skipped, "
        f"the longest of {longest:,} bytes), {tokens:,} tokens of {size / tokens:.2f} bytes"
        + ("" if todo else " (it was finished already)")
    )
    return manifest


class _Pipeline:
    """The threads of one process, and the queue of batches between them."""

    def __init__(self, job: TokenizeJob, folder: OutputFolder, workers: int) -> None:
        self.job, self.folder, self.workers = job, folder, workers
        self.encoders = ThreadPoolExecutor(workers)
        self.disk = _DiskThread()
        self.queue: deque[Callable[[], None]] = deque()  # writes, in the order in which their batches were read
        self.text = self.tokens = self.documents = 0
        self.noticed = False  # whether a literal <|endoftext|> was
        self.start = time.monotonic()

    def run(self, todo: list[int]) -> None:
        """Tokenize these input files. UserError at the first that cannot be fetched, or holds a mistake."""
        fetches = _FetchThread([self.job.inputs[number] for number in todo])
        try:
            with Progress(self.job.name, None, "B") as progress:
                for position, number in enumerate(todo):
                    # until its input file has arrived, write what is queued, which also makes room on the disk
                    arrived = fetches.futures[position]
                    while self.queue and not arrived.done():
                        self.queue.popleft()()
                    self.disk.wait(arrived)
                    if arrived.exception():
                        self._write_queued()
                    arrived.result()
                    # read and queue its batches, writing those whose turn has come
                    output = _InputFileOutput(self.job, number, self.folder, self.disk)
                    for batch in output.source.batches(output.rows):
                        encoded = self.encoders.submit(self.job.tokenizer.encode_texts, batch.texts)
                        done = (position + batch.done) / len(todo)
                        self.queue.append(functools.partial(self._write, progress, done, output, batch, encoded))
                        if len(self.queue) > 2 * self.workers:
                            self.queue.popleft()()
                    self.queue.append(functools.partial(output.finish, functools.partial(fetches.release, position)))
                self._write_queued()
        finally:
            self.encoders.shutdown(wait=False, cancel_futures=True)
            self.disk.thread.shutdown(wait=True, cancel_futures=True)
        seconds = time.monotonic() - self.start
        print(
            f"{self.folder.path}: {self.text / 1e6:,.1f} MB of text to {self.tokens:,} tokens in {seconds:,.1f} s "
            f"({self.text / 1e6 / seconds:,.1f} MB/s, {self.tokens / seconds:,.0f} tokens/s, {self.workers} workers)"
        )

    def _write_queued(self) -> None:
        """Write all that is queued, and wait until it is on disk."""
        while self.queue:
            self.queue.popleft()()
        self.disk.wait()

    def _write(
        self, progress: Progress, done: float, output: "_InputFileOutput", batch: Batch, encoded: Future[Encoded]
    ) -> None:
        try:
            result = encoded.result()
        except Mismatch as mismatch:
            raise UserError(
                f"{output.source.name}, row {output.rows + batch.rows[mismatch.index]}: gigatoken's tokens are not "
                "tiktoken's: report this, delete the folder, and use --engine tiktoken"
            ) from None
        # a literal end-of-text, looked for in a file's first batch alone, since it would cost a fifth of reading
        if not (self.noticed or output.rows) and pc.any(pc.match_substring(batch.texts, END_OF_TEXT)).as_py():
            self.noticed = True
            progress.note(
                f"{output.source.name} holds a literal {END_OF_TEXT}, which is tokenized as text: to split documents "
                f"there, give --separator '{END_OF_TEXT}' (not of tables)"
            )
        output.write(batch, result)
        self.text += batch.size
        self.tokens += len(result.tokens)
        self.documents += len(batch.texts)
        progress.bar.total = self.text / max(done, 1e-9)  # an estimate, as if all input files were alike
        speed = self.tokens / (time.monotonic() - self.start)
        progress.bar.set_postfix_str(f"{self.documents:,} documents, {speed:,.0f} tokens/s", refresh=False)
        progress.update(batch.size)


class _InputFileOutput:
    """Write the tokens of one input file to its shards, from where an earlier run stopped."""

    def __init__(self, job: TokenizeJob, number: int, folder: OutputFolder, disk: "_DiskThread") -> None:
        self.source, self.number, self.folder, self.disk = job.inputs[number], number, folder, disk
        facts: dict = dict.fromkeys(("documents", "tokens", "bytes", "empty", "skipped", "longest"), 0)
        facts["engines"] = {}  # number of documents by the engine that encoded them
        record = folder.partial_record(number) or {"input": facts, "rows": 0, "shards": []}
        self.facts = {fact: record["input"][fact] for fact in facts}
        self.rows = record["rows"]  # rows of the input file that the facts cover
        # tokens of the next rows that are already in the last finished shard: encoded again, but not written
        self.skip = sum(shard["tokens"] for shard in record["shards"]) - self.facts["tokens"]
        held_out = {"val": sys.maxsize, "train": 0, None: self.source.held_out}[self.source.split]
        self.writer = ShardWriter(
            folder.path, job.name, number, job.shard_tokens, held_out, record["shards"], self._queue_full_shard
        )

    def write(self, batch: Batch, encoded: Encoded) -> None:
        """Write the next batch and add it to the facts."""
        skipped = min(self.skip, len(encoded.tokens))
        self.skip -= skipped
        self.writer.write(encoded.tokens[skipped:], encoded.starts[encoded.starts >= skipped] - skipped)
        facts, lengths = self.facts, batch.lengths()
        # a new dictionary, since a shard that waits for the disk thread keeps the old one
        self.facts = {
            "documents": facts["documents"] + len(lengths),
            "tokens": facts["tokens"] + len(encoded.tokens),
            "bytes": facts["bytes"] + int(lengths.sum()),
            "empty": facts["empty"] + int((lengths == 0).sum()),
            "skipped": facts["skipped"] + batch.skipped,
            "longest": max(facts["longest"], int(lengths.max(initial=0))),
            "engines": facts["engines"]  # an earlier run may have had another engine
            | {name: facts["engines"].get(name, 0) + count for name, count in encoded.engines.items()},
        }
        self.rows += batch.read

    def finish(self, then: Callable[[], None]) -> None:
        """Publish the last shard and the input file's record, and call then() when both are on disk."""
        self.writer.finish_shard()

        def save() -> None:
            self.folder.save_finished(self.number, {"input": self.facts, "shards": self.writer.records})
            then()

        self.disk.submit(save)

    def _queue_full_shard(self, publish: Callable[[], None]) -> None:
        facts, rows = self.facts, self.rows

        def publish_and_save() -> None:
            publish()
            self.folder.save_partial(self.number, {"input": facts, "rows": rows, "shards": self.writer.records})

        self.disk.submit(publish_and_save)


class _DiskThread:
    """Publish shards, in order, while the next ones are made. After a failure it does nothing, since the record of a
    later shard would count the failed one as written."""

    def __init__(self) -> None:
        self.failed = False
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()

    def submit(self, work: Callable[[], None]) -> None:
        """Queue a piece of work; raise what earlier work has raised."""
        while self.waiting and (len(self.waiting) > DISK_BACKLOG or self.waiting[0].done()):
            self.waiting.popleft().result()
        self.waiting.append(self.thread.submit(self._run, work))

    def wait(self, other: Future[None] | None = None) -> None:
        """Wait until all work, or `other`, is done; raise what the work has raised."""
        while self.waiting and not (other and other.done()):
            wait([self.waiting[0], *([other] if other else [])], return_when=FIRST_COMPLETED)
            if self.waiting[0].done():
                self.waiting.popleft().result()

    def _run(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        try:
            work()
        except BaseException:
            self.failed = True
            raise


class _FetchThread:
    """Fetch input files in order, in advance; at most KEEP_FILES downloads are on disk."""

    def __init__(self, inputs: Sequence[Source]) -> None:
        self.inputs, self.room = inputs, threading.Semaphore(KEEP_FILES)
        self.futures: list[Future[None]] = [Future() for _ in inputs]
        # a daemon, so that an error elsewhere does not wait for the end of a download
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        for source, future in zip(self.inputs, self.futures, strict=True):
            if source.takes_disk:
                self.room.acquire()
            try:
                source.fetch()
                future.set_result(None)
            except BaseException as failure:
                future.set_exception(failure)
                return

    def release(self, position: int) -> None:
        """Remove a fetched input file, which makes room for another."""
        self.inputs[position].release()
        if self.inputs[position].takes_disk:
            self.room.release()
