"""Sources of documents to a folder of token shards: several threads, interruptible, several machines, one result.

The unit of work is one source (an input file). Its shards get their names one by one as they are whole and on disk;
then a marker, OUT/.progress/FFF.json, says that the source is finished. The same command run again skips finished
sources and begins the others anew. When all have markers, the manifest is written and .progress is removed. The bytes
depend on the sources and the options alone.
"""

import argparse
import fcntl
import json
import os
import shutil
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from prepare.cli import Progress, UserError
from prepare.shards import (
    HEADER_BYTES,
    MANIFEST,
    MAX_PARTS,
    SHARD_TOKENS,
    TOKEN,
    ShardWriter,
    TooManyParts,
    build_manifest,
    join_documents,
    read_manifest,
    shard_number,
    write_json,
    write_manifest,
)
from prepare.sources import Source
from prepare.tokenizer import Tokenizer

PROGRESS = ".progress"


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options that every script with a pipeline has: --shard-tokens, --workers, --task."""
    parser.add_argument("--shard-tokens", type=positive, default=SHARD_TOKENS, metavar="N", help="tokens in a shard")
    parser.add_argument("--workers", type=positive, default=_cores(), metavar="N", help="encoding threads")
    parser.add_argument(
        "--task", type=task, default="1/1", metavar="I/N", help="do the Ith of N shares of the input files (job arrays)"
    )


def _cores() -> int:
    """Those that this process may use: a job scheduler often grants fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def positive(text: str) -> int:
    """argparse's type for a whole number above zero."""
    if not text.replace("_", "").isdecimal() or int(text) == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number above zero")
    return int(text)


def task(text: str) -> tuple[int, int]:
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


def run_job(job: Job, out: Path, workers: int = 1, share: tuple[int, int] = (1, 1)) -> dict | None:
    """Tokenize this share of a job's sources into `out`, and write the manifest if no source is left.

    Returns the manifest; None when other shares are still to be done. UserError if the folder belongs to another job,
    or is in use, or the sources hold no text.
    """
    try:
        out.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as failure:
        raise UserError(f"--out {out} is a file, or inside one: choose another folder") from failure
    folder = _Folder(out, job.plan())
    index, count = share
    with folder.claimed(index, count):
        mine = range(index - 1, len(job.sources), count)
        done = folder.finished()
        todo = [number for number in mine if number not in done]
        try:
            folder.clean(todo)
            if todo:
                _run(job, out, todo, workers, folder.finish)
            manifest = folder.complete()
        except UserError:
            if count == 1:
                folder.abandon()
            raise
    if manifest is None:
        print(f"{out}: task {index}/{count} is done; the last task to finish writes the manifest")
    else:
        print(f"{out}: {_summary(manifest)}" + ("" if todo else " (it was finished already)"))
    return manifest


def _summary(manifest: dict) -> str:
    facts = ("documents", "tokens", "bytes", "empty", "skipped")
    documents, tokens, size, empty, skipped = (sum(file[fact] for file in manifest["inputs"]) for fact in facts)
    return (
        f"{len(manifest['shards'])} shards, {documents:,} documents ({empty} empty, {skipped} values skipped), "
        f"{tokens:,} tokens of {size / tokens:.2f} bytes"
    )


def _run(job: Job, out: Path, todo: list[int], workers: int, finish: Callable[[int, dict], None]) -> None:
    start, text, tokens = time.monotonic(), 0, 0
    pool = ThreadPoolExecutor(workers)
    try:
        with Progress(job.name, None, "B") as progress:
            fetch = _Fetch(job.sources[todo[0]])
            for position, number in enumerate(todo):
                source = job.sources[number]
                fetch.result()
                if position + 1 < len(todo):
                    fetch = _Fetch(job.sources[todo[position + 1]])

                def show(encoded: _Encoded, done: float, before: int = position) -> None:
                    nonlocal text
                    text += encoded.bytes
                    progress.bar.total = text * len(todo) / max(before + done, 1e-9)  # as if all files were alike
                    progress.update(encoded.bytes)

                record = _tokenize(job, number, out, pool, 2 * workers, show)
                finish(number, record)
                tokens += record["input"]["tokens"]
                source.release()
    finally:
        pool.shutdown(wait=False, cancel_futures=True)
    seconds = time.monotonic() - start
    print(
        f"{out}: {text / 1e6:,.1f} MB of text to {tokens:,} tokens in {seconds:,.1f} s "
        f"({text / 1e6 / seconds:,.1f} MB/s, {tokens / seconds:,.0f} tokens/s, {workers} workers)"
    )


@dataclass(frozen=True)
class _Encoded:
    tokens: np.ndarray  # uint16, documents joined
    starts: np.ndarray  # int64, where each begins
    bytes: int  # of text, as UTF-8
    empty: int  # documents


def _encode(tokenizer: Tokenizer, texts: list[str]) -> _Encoded:
    tokens, starts = join_documents(tokenizer.encode_batch(texts), tokenizer.eot)
    return _Encoded(tokens, starts, sum(map(_utf8_bytes, texts)), texts.count(""))


def _utf8_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


def _tokenize(
    job: Job, number: int, out: Path, pool: ThreadPoolExecutor, depth: int, show: Callable[[_Encoded, float], None]
) -> dict:
    """Write the shards of one source; up to `depth` batches are read ahead of the one being written."""
    source = job.sources[number]
    facts = {"documents": 0, "tokens": 0, "bytes": 0, "empty": 0, "skipped": 0}
    waiting: deque[tuple[Future[_Encoded], float]] = deque()
    try:
        with ShardWriter(out, job.name, number, job.shard_tokens, source.split) as writer:

            def write_oldest() -> None:
                future, done = waiting.popleft()
                encoded = future.result()
                writer.write(encoded.tokens, encoded.starts)
                facts["documents"] += len(encoded.starts)
                facts["tokens"] += len(encoded.tokens)
                facts["bytes"] += encoded.bytes
                facts["empty"] += encoded.empty
                show(encoded, done)

            for batch in source.batches():
                facts["skipped"] += batch.skipped
                waiting.append((pool.submit(_encode, job.tokenizer, batch.texts), batch.done))
                if len(waiting) > depth:
                    write_oldest()
            while waiting:
                write_oldest()
    except TooManyParts as failure:
        # no text has more tokens than bytes, besides the one before each document
        most = sum(_utf8_bytes(text) + 1 for batch in source.batches() for text in batch.texts)
        unit = 10 ** max(0, len(str(most // MAX_PARTS)) - 2)
        enough = (most // MAX_PARTS // unit + 1) * unit
        raise UserError(
            f"--shard-tokens {job.shard_tokens} makes {failure} ({source.name}): give --shard-tokens {enough} or more"
        ) from failure
    return {"input": facts, "shards": writer.records}


class _Fetch(threading.Thread):
    """A source on its way here. A daemon, so that a mistake elsewhere need not wait for a download's end."""

    def __init__(self, source: Source) -> None:
        super().__init__(daemon=True)
        self.source, self.failure = source, None
        self.start()

    def run(self) -> None:
        try:
            self.source.fetch()
        except BaseException as failure:
            self.failure = failure

    def result(self) -> None:
        self.join()
        if self.failure:
            raise self.failure


class _Folder:
    """A folder of shards in the making: whose it is, what of it is finished, who works on it."""

    def __init__(self, path: Path, plan: dict) -> None:
        self.path, self.plan = path, plan
        self.progress = path / PROGRESS
        self._plan_path = self.progress / "plan.json"

    @contextmanager
    def claimed(self, index: int, count: int) -> Iterator[None]:
        """Hold this share of the folder: no other process may have it, nor a share by another count."""
        with ExitStack() as held:
            with self._alone():
                try:
                    held.enter_context(_lock(self.progress / f"task-{index}-of-{count}.lock", self.path))
                    for path in self.progress.glob("task-*.lock"):
                        if not path.name.endswith(f"-of-{count}.lock"):
                            with _lock(path, self.path):
                                pass
                    self._begin()
                except UserError:
                    if not self._plan_path.is_file():  # nothing is under way here: leave the folder as it was
                        shutil.rmtree(self.progress)
                    raise
            yield

    def _begin(self) -> None:
        manifest = read_manifest(self.path)
        if manifest is not None:
            self._refuse_difference(manifest, dict(enumerate(manifest["inputs"])))
            done = self.finished()
            if len(done) < len(self.plan["inputs"]):  # shards were deleted since: make them again
                for number, record in done.items():
                    self.finish(number, record)
                write_json(self._plan_path, self.plan)
                (self.path / MANIFEST).unlink()
            return
        if self._plan_path.is_file():
            plan = json.loads(self._plan_path.read_bytes())
            self._refuse_difference(plan, {number: record["input"] for number, record in self.finished().items()})
        else:
            strange = next((path for path in sorted(self.path.iterdir()) if path.suffix in (".bin", ".npy")), None)
            if strange:
                raise UserError(f"{strange} is there, but no manifest says of what: choose another --out, or delete it")
        write_json(self._plan_path, self.plan)

    def _refuse_difference(self, before: dict, done: dict[int, dict]) -> None:
        """UserError if what is finished here was not made as it would be now; unfinished inputs may have changed."""

        def facts(plan: dict, inputs: dict[int, dict]) -> dict:
            options = {key: plan[key] for key in ("dataset", "revision", "tokenizer")} | plan.get("options", {})
            options["number of input files"] = len(plan["inputs"])
            return options | {
                f"{key} of input file {number}": inputs[number].get(key)
                for number in sorted(done.keys() & set(range(len(self.plan["inputs"]))))
                for key in self.plan["inputs"][number]
            }

        theirs, ours = facts(before, done), facts(self.plan, dict(enumerate(self.plan["inputs"])))
        for key in theirs | ours:
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"{self.path} was made with {key} {theirs.get(key)}, not {ours.get(key)}: "
                    "give the same options and input, or choose another --out, or delete the folder"
                )

    def finished(self) -> dict[int, dict]:
        """The records of the sources whose shards are all there, by number."""
        manifest = read_manifest(self.path)
        if manifest is None:
            markers = [(number, self._marker(number)) for number in range(len(self.plan["inputs"]))]
            records = {number: json.loads(path.read_bytes()) for number, path in markers if path.is_file()}
        else:
            records = {number: {"input": facts, "shards": []} for number, facts in enumerate(manifest["inputs"])}
            for shard in manifest["shards"]:
                records[shard_number(shard["file"]) // MAX_PARTS]["shards"].append(shard)
        return {number: record for number, record in records.items() if self._whole(record["shards"])}

    def _whole(self, shards: list[dict]) -> bool:
        paths = [(self.path / shard["file"], HEADER_BYTES + TOKEN.itemsize * shard["tokens"]) for shard in shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def clean(self, numbers: Sequence[int]) -> None:
        """Remove what an interrupted run left of these sources."""
        for path in self.path.iterdir():
            number = shard_number(path.name)
            if number is not None and number // MAX_PARTS in numbers:
                path.unlink()

    def finish(self, number: int, record: dict) -> None:
        """Remember that a source's shards are on disk."""
        write_json(
            self._marker(number), {"input": self.plan["inputs"][number] | record["input"], "shards": record["shards"]}
        )

    def abandon(self) -> None:
        """After a mistake of the user's: keep finished sources, and leave nothing at all when there are none."""
        done = self.finished()
        self.clean([number for number in range(len(self.plan["inputs"])) if number not in done])
        if not done:
            shutil.rmtree(self.progress, ignore_errors=True)
            with suppress(OSError):  # the folder holds something else
                self.path.rmdir()

    def complete(self) -> dict | None:
        """The manifest; it is written here when every source is finished and no other process has done so."""
        with self._alone():
            manifest = read_manifest(self.path)
            records = self.finished()
            if manifest is None and len(records) == len(self.plan["inputs"]):
                manifest = self._manifest([records[number] for number in range(len(records))])
                write_manifest(self.path, manifest)
            if manifest is not None:
                shutil.rmtree(self.progress, ignore_errors=True)
            return manifest

    def _manifest(self, records: list[dict]) -> dict:
        if not any(record["input"]["bytes"] for record in records):
            for number in range(len(records)):
                self._marker(number).unlink()
            raise UserError(f"the input holds no text ({len(records)} files): nothing to make {self.path} of")
        inputs = [record["input"] for record in records]
        shards = [shard for record in records for shard in record["shards"]]
        return build_manifest(**(self.plan | {"inputs": inputs}), shards=shards)

    def _marker(self, number: int) -> Path:
        return self.progress / f"{number:03d}.json"

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A moment in which no other task begins or completes this folder."""
        while True:
            self.progress.mkdir(exist_ok=True)
            try:
                file = (self.progress / "lock").open("a")
            except FileNotFoundError:
                continue  # completed and removed at this very moment
            with file:
                fcntl.flock(file, fcntl.LOCK_EX)
                if os.fstat(file.fileno()).st_nlink:  # else removed by the one who had it
                    yield
                    return


@contextmanager
def _lock(path: Path, folder: Path) -> Iterator[None]:
    """Hold a lock file, which names its holder; the system drops the lock of a process that died."""
    with path.open("a+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise UserError(
                f"{folder} is being prepared by process {file.read()}: wait for it, or choose another --out"
            ) from None
        file.truncate(0)
        file.write(f"{os.getpid()} on {socket.gethostname()}")
        file.flush()
        yield
