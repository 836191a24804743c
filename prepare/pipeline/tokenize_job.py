"""Sources of documents to a folder of token shards: several threads, interruptible, several machines, one result.

The main thread reads batches of documents and writes their tokens in order; `workers` threads encode between; one more
brings finished shards to disk. A shard gets its name when it is whole and on disk, and the same command run again goes
on after the last one of each source (an input file). When all sources are finished the manifest is written. The shards'
bytes depend on the sources and the options alone, never on the engine or on the course of a run.
"""

import argparse
import functools
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor
from concurrent.futures import wait as wait_for
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from prepare.common.cli import UserError, available_cores, positive
from prepare.common.progress import Progress
from prepare.pipeline.output_folder import Folder
from prepare.sources.readers import Batch, Source
from prepare.tokens.shards import MAX_PARTS, MAX_TOKENS, SHARD_TOKENS, ShardWriter, TooManyParts
from prepare.tokens.tokenizer import ENGINES, Encoded, Mismatch, Tokenizer

KEEP_FILES = 2  # downloaded files on disk: the one that is encoded and the next
MAX_FAILED = 3  # files that cannot be fetched; then the hub is not to be reached
BACKLOG = 2  # shards that wait to be brought to disk


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every script with a pipeline has: --shard-tokens, --workers, --engine, --task."""
    add_shard_tokens(parser)
    add_workers(parser)
    add_engine(parser)
    parser.add_argument(
        "--task", type=task_of, default="1/1", metavar="I/N", help="do the Ith of N shares of the files (job arrays)"
    )


def add_shard_tokens(parser: argparse.ArgumentParser) -> None:
    """--shard-tokens, which decides how many shards there are."""
    parser.add_argument("--shard-tokens", type=shard_size, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")


def add_workers(parser: argparse.ArgumentParser) -> None:
    """--workers, which decides how long it takes and nothing else."""
    parser.add_argument("--workers", type=positive, default=available_cores(), metavar="N", help="encoding threads")


def add_engine(parser: argparse.ArgumentParser) -> None:
    """--engine, which decides how long it takes and nothing else."""
    parser.add_argument(
        "--engine", choices=ENGINES, default=ENGINES[0], help="who encodes; the tokens are the same, tiktoken's"
    )


def shard_size(text: str) -> int:
    """argparse's type for the tokens of a shard."""
    tokens = positive(text)
    if tokens > MAX_TOKENS:
        raise argparse.ArgumentTypeError(f"a shard of {tokens:,} tokens cannot be: give 1 to {MAX_TOKENS:,}")
    return tokens


def task_of(text: str) -> tuple[int, int]:
    """argparse's type for I/N: which share, from 1, of how many."""
    index, _, count = text.partition("/")
    if not (index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise argparse.ArgumentTypeError(f"{text!r} is not I/N with I from 1 to N, such as 3/8")
    return int(index), int(count)


@dataclass(frozen=True)
class Job:
    """What decides the bytes of a folder."""

    sources: Sequence[Source]
    name: str  # the shards' first word
    dataset: str
    revision: str | None
    tokenizer: Tokenizer
    options: dict  # recorded in the manifest, beside name and shard_tokens
    shard_tokens: int = SHARD_TOKENS

    def plan(self) -> dict:
        """All of it as JSON: a folder begun with another plan is refused."""
        return {
            "dataset": self.dataset,
            "revision": self.revision,
            "tokenizer": self.tokenizer.describe(),
            "options": {"name": self.name, "shard_tokens": self.shard_tokens, **self.options},
            "inputs": [source.identity() for source in self.sources],
        }


def run_job(
    job: Job,
    out: Path,
    workers: int = 1,
    task: tuple[int, int] = (1, 1),
    keep_files: int = KEEP_FILES,
    seconds: dict[str, float] | None = None,
) -> dict | None:
    """Tokenize this share of a job's sources into `out`, and write the manifest if no source is left.

    At most `keep_files` fetched sources are on disk at a time; `seconds` is told the processor time of each stage.
    Returns the manifest; None when other shares are still to be done. UserError if the folder belongs to another job,
    or is in use, or the sources hold no text.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, FileNotFoundError, NotADirectoryError) as failure:
        # one that another process has just removed is made again below
        if os.path.lexists(out) or not isinstance(failure, FileExistsError):
            raise UserError(f"--out {out} is a file, or where no folder can be: choose another") from failure
    folder = Folder(out, job.plan())
    index, count = task
    with folder.claimed(index, count):
        mine = range(index - 1, len(job.sources), count)
        done = folder.finished()
        todo = [number for number in mine if number not in done]
        try:
            folder.clean(todo)
            if todo:
                run = _Run(job, folder, workers, keep_files)
                run.work(todo)
                if seconds is not None:
                    seconds |= run.seconds
            manifest = folder.complete()
        except UserError as mistake:
            if count == 1:
                folder.abandon(keep=not isinstance(mistake, TooManyParts))  # the next run has larger shards
            if isinstance(mistake, TooManyParts) and folder.progress.is_dir():  # of other input files, or other tasks
                raise TooManyParts(f"{mistake}, and delete {out}, where other shards are of this size") from mistake
            raise
        except OSError:  # a full disk: what has no final name makes room
            done = folder.finished()
            folder.clean([number for number in todo if number not in done])
            raise
    if manifest is None:
        print(f"{out}: task {index}/{count} is done; the last task to finish writes the manifest")
    else:
        print(f"{out}: {_summary(manifest)}" + ("" if todo else " (it was finished already)"))
    return manifest


def _summary(manifest: dict) -> str:
    inputs = manifest["inputs"]
    facts = ("documents", "tokens", "bytes", "empty", "skipped")
    documents, tokens, size, empty, skipped = (sum(file[fact] for file in inputs) for fact in facts)
    return (
        f"{len(manifest['shards'])} shards, {documents:,} documents ({empty} empty, {skipped} values skipped, "
        f"the longest of {max(file['longest'] for file in inputs):,} bytes), "
        f"{tokens:,} tokens of {size / tokens:.2f} bytes"
    )


class _Run:
    """One process's work on a folder."""

    def __init__(self, job: Job, folder: Folder, workers: int, keep_files: int) -> None:
        self.job, self.folder, self.workers, self.keep_files = job, folder, workers, keep_files
        self.pool = ThreadPoolExecutor(workers)
        self.disk = _Disk()
        self.seconds = dict.fromkeys(("reading", "encoding", "writing"), 0.0)  # of processor time, of all threads
        self.lock = threading.Lock()
        self.text = self.tokens = self.documents = 0
        self.start = time.monotonic()

    def work(self, todo: list[int]) -> None:
        """Do these sources. UserError at the first mistake in one, or at the end if some could not be fetched."""
        fetches = _Fetches([self.job.sources[number] for number in todo], self.keep_files)
        waiting: deque[Callable[[], None]] = deque()  # what is to be done with each batch, in order
        failures: list[UserError] = []
        try:
            with Progress(self.job.name, None, "B") as progress:
                for position, number in enumerate(todo):
                    while waiting and not fetches.ready(position):
                        waiting.popleft()()
                    self.disk.wait(fetches.futures[position])  # it may wait for room that a source on its way makes
                    try:
                        fetches.result(position)
                    except UserError as failure:
                        failures.append(failure)
                        if len(failures) == min(MAX_FAILED, len(todo)):
                            raise
                        progress.note(f"{failure}\ngoing on with the other files")
                        continue
                    output = _Output(self.job, number, self.folder, self.disk)
                    source = self.job.sources[number]
                    for batch in self._timed("reading", source.batches(output.rows)):
                        encoded = self.pool.submit(self._encode, batch)
                        done = (position + batch.done) / len(todo)
                        waiting.append(functools.partial(self._write, progress, done, output, batch, encoded))
                        if len(waiting) > 2 * self.workers:
                            waiting.popleft()()
                    waiting.append(functools.partial(output.finish, functools.partial(fetches.release, position)))
                while waiting:
                    waiting.popleft()()
                self.disk.wait()
        finally:
            self.pool.shutdown(wait=False, cancel_futures=True)
            self.disk.close()
        self._report()
        if failures:
            raise UserError(f"{failures[0]} ({len(failures)} of {len(todo)} files; the others are finished)")

    def _encode(self, batch: Batch) -> Encoded:
        with self._clock("encoding"):
            return self.job.tokenizer.encode_texts(batch.texts)

    def _write(
        self, progress: Progress, done: float, output: "_Output", batch: Batch, encoded: Future[Encoded]
    ) -> None:
        try:
            result = encoded.result()
        except Mismatch as mismatch:
            raise UserError(
                f"{output.source.name}, row {output.rows + batch.rows[mismatch.index]}: gigatoken's tokens are not "
                "tiktoken's: report it, delete what there is of this folder, and give --engine tiktoken"
            ) from None
        with self._clock("writing"):
            output.write(batch, result)
        size = batch.size
        self.text, self.tokens = self.text + size, self.tokens + len(result.tokens)
        self.documents += len(batch.texts)
        progress.bar.total = self.text / max(done, 1e-9)  # as if all files were alike
        speed = self.tokens / (time.monotonic() - self.start)
        progress.bar.set_postfix_str(f"{self.documents:,} documents, {speed:,.0f} tokens/s", refresh=False)
        progress.update(size)

    def _report(self) -> None:
        seconds = time.monotonic() - self.start
        self.seconds["checksums"] = self.disk.seconds
        print(
            f"{self.folder.path}: {self.text / 1e6:,.1f} MB of text to {self.tokens:,} tokens in {seconds:,.1f} s "
            f"({self.text / 1e6 / seconds:,.1f} MB/s, {self.tokens / seconds:,.0f} tokens/s, {self.workers} workers; "
            f"processor time: {', '.join(f'{stage} {spent:.1f} s' for stage, spent in self.seconds.items())})"
        )

    @contextmanager
    def _clock(self, stage: str) -> Iterator[None]:
        start = time.thread_time()
        yield
        with self.lock:
            self.seconds[stage] += time.thread_time() - start

    def _timed(self, stage: str, batches: Iterator[Batch]) -> Iterator[Batch]:
        while True:
            with self._clock(stage):
                batch = next(batches, None)
            if batch is None:
                return
            yield batch


class _Output:
    """One source's way into its shards, from where an earlier run left it."""

    def __init__(self, job: Job, number: int, folder: Folder, disk: "_Disk") -> None:
        self.source, self.number, self.folder, self.disk = job.sources[number], number, folder, disk
        self.shard_tokens = job.shard_tokens
        record = folder.begun(number) or {"input": {}, "rows": 0, "shards": []}
        counted = ("documents", "tokens", "bytes", "empty", "skipped", "longest")
        self.facts = {fact: record["input"].get(fact, 0) for fact in counted}
        self.facts["engines"] = record["input"].get("engines", {})  # documents by who encoded them
        self.rows = record["rows"]  # of the source that the facts are about
        # tokens of the next rows that the last finished shard holds already: encoded again, and not written
        self.skip = sum(shard["tokens"] for shard in record["shards"]) - self.facts["tokens"]
        self.writer = ShardWriter(
            folder.path, job.name, number, job.shard_tokens, self.source.split, record["shards"], self._shard_is_full
        )

    def write(self, batch: Batch, encoded: Encoded) -> None:
        tokens, starts = encoded.tokens, encoded.starts
        if self.skip:
            skip = min(self.skip, len(tokens))
            self.skip -= skip
            tokens, starts = tokens[skip:], starts[starts >= skip] - skip
        try:
            self.writer.write(tokens, starts)
        except TooManyParts as failure:
            # no text has more tokens than bytes, besides the one before each document
            most = sum(batch.size + len(batch.texts) for batch in self.source.batches())
            unit = 10 ** max(0, len(str(most // MAX_PARTS)) - 2)
            raise TooManyParts(
                f"--shard-tokens {self.shard_tokens} makes {failure} ({self.source.name}): "
                f"give --shard-tokens {(most // MAX_PARTS // unit + 1) * unit} or more"
            ) from failure
        lengths = batch.lengths()
        now = {
            "documents": len(lengths),
            "tokens": len(encoded.tokens),
            "bytes": int(lengths.sum()),
            "empty": int((lengths == 0).sum()),
            "skipped": batch.skipped,
        }
        facts = self.facts
        engines = facts["engines"] | {  # an earlier run may have had another engine
            name: facts["engines"].get(name, 0) + count for name, count in encoded.engines.items()
        }
        longest = max(facts["longest"], int(lengths.max(initial=0)))
        # a new dictionary, since a shard on its way to disk keeps the old one
        self.facts = {fact: facts[fact] + now[fact] for fact in now} | {"longest": longest, "engines": engines}
        self.rows += batch.read

    def finish(self, then: Callable[[], None]) -> None:
        """Publish the last shard and the source's record; then() when all of it is on disk."""
        self.writer.finish()

        def finished() -> None:
            self.folder.finish(self.number, {"input": self.facts, "shards": self.writer.records})
            self.source.release()
            then()

        self.disk.do(finished)

    def _shard_is_full(self, bring_to_disk: Callable[[], None]) -> None:
        facts, rows = self.facts, self.rows

        def bring_and_record() -> None:
            bring_to_disk()
            self.folder.save(self.number, {"input": facts, "rows": rows, "shards": self.writer.records})

        self.disk.do(bring_and_record)


class _Disk:
    """A thread that brings shards to disk, one after the other, while the next are made; none after one that failed,
    which a record of those behind it would leave out."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.failed = False
        self.thread = ThreadPoolExecutor(1)
        self.waiting: deque[Future[None]] = deque()

    def do(self, work: Callable[[], None]) -> None:
        """Queue a piece of work. What an earlier one raised is raised here."""
        while self.waiting and (len(self.waiting) > BACKLOG or self.waiting[0].done()):
            self.waiting.popleft().result()
        self.waiting.append(self.thread.submit(self._timed, work))

    def wait(self, other: Future[None] | None = None) -> None:
        """Until all of it is on disk, or `other` is done. What a piece of work raised is raised here."""
        while self.waiting and not (other and other.done()):
            wait_for([self.waiting[0], *([other] if other else [])], return_when=FIRST_COMPLETED)
            if self.waiting[0].done():
                self.waiting.popleft().result()

    def close(self) -> None:
        """Drop what has not been begun."""
        self.thread.shutdown(wait=True, cancel_futures=True)

    def _timed(self, work: Callable[[], None]) -> None:
        if self.failed:
            return
        start = time.thread_time()
        try:
            work()
        except BaseException:
            self.failed = True
            raise
        self.seconds += time.thread_time() - start


class _Fetches:
    """Sources on their way here, in order; at most `keep` of those that take room are here at a time."""

    def __init__(self, sources: Sequence[Source], keep: int) -> None:
        self.sources, self.keep = sources, threading.Semaphore(keep)
        self.futures: list[Future[None]] = [Future() for _ in sources]
        # a daemon, so that a mistake elsewhere need not wait for a download's end
        threading.Thread(target=self._work, daemon=True).start()

    def _work(self) -> None:
        for source, future in zip(self.sources, self.futures, strict=True):
            if source.takes_room:
                self.keep.acquire()
            try:
                source.fetch()
                future.set_result(None)
            except BaseException as failure:
                future.set_exception(failure)
                if source.takes_room:
                    self.keep.release()

    def ready(self, position: int) -> bool:
        return self.futures[position].done()

    def result(self, position: int) -> None:
        self.futures[position].result()

    def release(self, position: int) -> None:
        if self.sources[position].takes_room:
            self.keep.release()
