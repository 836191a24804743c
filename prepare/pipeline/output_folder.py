"""A folder of shards while it is made: which processes work on it, which shards are finished, and how to resume.

.progress holds the plan, a lock for each task, and for each input file a record of its finished shards: FFF.part.json
while the file is unfinished, FFF.json when it is finished. When all are finished, the manifest replaces .progress.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import FileLock, atomic_write_json, read_json_object
from prepare.tokens.manifest import MANIFEST, build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import HEADER_BYTES, MAX_PARTS, SUFFIXES, TOKEN, shard_number

PROGRESS = ".progress"
PLAN = "plan.json"


def pinned_revision(path: Path, dataset: str) -> str | None:
    """The commit of `dataset` that the folder `path` was started with; None if it holds nothing of that dataset."""
    plan = read_json_object(path / PROGRESS / PLAN) or read_manifest(path) or {}
    return plan["revision"] if plan.get("dataset") == dataset else None


class OutputFolder:
    """The folder `path`, and the plan of the job that makes it. Input files are known by their number in the plan."""

    def __init__(self, path: Path, plan: dict[str, Any]) -> None:
        self.path, self.plan = path, plan
        self.progress = path / PROGRESS
        self._plan_path, self._lock_path = self.progress / PLAN, self.progress / "lock"

    @contextmanager
    def claim(self, task: int, count: int) -> Iterator[None]:
        """Hold one task of `count` of this folder, after starting or resuming it. UserError if another process has this
        task, or one of another count; or the folder was made with another plan."""
        with ExitStack() as locks:
            with self._exclusive():
                try:
                    locks.enter_context(self._lock_task(self.progress / f"task-{task}-of-{count}.lock"))
                    for path in self.progress.glob("task-*.lock"):
                        if not path.name.endswith(f"-of-{count}.lock"):
                            self._lock_task(path).release()
                    self._start_or_resume()
                except UserError:
                    if not self._plan_path.is_file():  # leave a finished folder, or one of other files, as it was
                        self._remove_progress()
                    raise
            yield

    def _lock_task(self, path: Path) -> FileLock:
        return FileLock(path, self.path, "wait for it, or choose another --out")

    def _start_or_resume(self) -> None:
        manifest, finished = read_manifest(self.path), self.finished_inputs()
        if before := manifest or read_json_object(self._plan_path):
            self._refuse_difference(before, finished)
        elif others := sorted(path for path in self.path.iterdir() if path.suffix in SUFFIXES):
            raise UserError(f"{others[0]} is there, but no manifest.json: choose another --out, or delete it")
        if manifest is not None:
            if len(finished) == len(self.plan["inputs"]):
                return
            for number, record in finished.items():  # shards were deleted since: make only those again
                self.save_finished(number, record)
        atomic_write_json(self._plan_path, self.plan)
        (self.path / MANIFEST).unlink(missing_ok=True)

    def _refuse_difference(self, before: dict, finished: dict[int, dict]) -> None:
        """UserError if the folder was made with another plan; unfinished input files may have changed."""

        def facts(plan: dict, inputs: dict[int, dict]) -> dict:
            options = {key: plan[key] for key in ("dataset", "revision")} | plan["options"]
            options["tokenizer"] = {key: plan["tokenizer"][key] for key in ("name", "vocab_size", "sha256")}
            options["number of input files"] = len(plan["inputs"])
            return options | {
                f"{key} of input file {number}": inputs[number].get(key)
                for number, identity in enumerate(self.plan["inputs"])
                for key in identity
                if number in finished
            }

        theirs = facts(before, {number: record["input"] for number, record in finished.items()})
        ours = facts(self.plan, dict(enumerate(self.plan["inputs"])))
        for key in theirs | ours:
            if theirs.get(key) != ours.get(key):
                raise UserError(
                    f"{self.path} was made with {key} {theirs.get(key)}, not {ours.get(key)}: "
                    "give the same options and input, or choose another --out, or delete the folder"
                )

    def finished_inputs(self) -> dict[int, dict]:
        """The records {input, shards} of the input files whose shards all exist, by number."""
        manifest = read_manifest(self.path)
        if manifest is None:
            found = {number: read_json_object(self._record_path(number)) for number in range(len(self.plan["inputs"]))}
            records = {number: record for number, record in found.items() if record}
        else:
            records = {number: {"input": facts, "shards": []} for number, facts in enumerate(manifest["inputs"])}
            for shard in manifest["shards"]:
                records[shard_number(shard["file"]) // MAX_PARTS]["shards"].append(shard)  # ty: ignore[unsupported-operator]
        return {number: record for number, record in records.items() if self._all_exist(record["shards"])}

    def _all_exist(self, shards: list[dict]) -> bool:
        paths = [(self.path / shard["file"], HEADER_BYTES + TOKEN.itemsize * shard["tokens"]) for shard in shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def partial_record(self, number: int) -> dict | None:
        """The record of an input file's last save_partial, if its shards exist and the file is still the same."""
        record, identity = read_json_object(self._record_path(number, ".part")), self.plan["inputs"][number]
        same = record and identity.items() <= record["input"].items() and self._all_exist(record["shards"])
        return record if same else None

    def save_partial(self, number: int, record: dict) -> None:
        """Record the finished shards of an unfinished input file, and how to resume after them."""
        record = record | {"input": self.plan["inputs"][number] | record["input"]}
        atomic_write_json(self._record_path(number, ".part"), record, indent=None)  # written often, and long

    def save_finished(self, number: int, record: dict) -> None:
        """Record that all shards of an input file are on disk."""
        record = record | {"input": self.plan["inputs"][number] | record["input"]}
        atomic_write_json(self._record_path(number), record)
        self._record_path(number, ".part").unlink(missing_ok=True)

    def remove_partial_shards(self, numbers: Iterable[int]) -> None:
        """Remove an interrupted run's leftovers of these input files, except the shards in their partial records."""
        numbers, kept = set(numbers), set()
        for number in numbers:
            if record := self.partial_record(number):
                kept |= {shard["file"] for shard in record["shards"]}
            else:
                self._record_path(number, ".part").unlink(missing_ok=True)
        for path in self.path.iterdir():
            number = shard_number(path.name)
            if number is not None and number // MAX_PARTS in numbers and path.name not in kept:
                path.unlink()

    def keep_only_finished(self) -> None:
        """After a user's mistake: keep finished shards; remove the folder when there are none."""
        with self._exclusive():
            finished = self.finished_inputs()
            unfinished = [number for number in range(len(self.plan["inputs"])) if number not in finished]
            self.remove_partial_shards(unfinished)
            if not finished and not any(self._record_path(number, ".part").is_file() for number in unfinished):
                self._remove_progress()
                with suppress(OSError):  # the folder holds something else
                    self.path.rmdir()

    def write_manifest_if_complete(self) -> dict | None:
        """The manifest; it is written here if every input file is finished and no other task has done so."""
        with self._exclusive():
            manifest, records = read_manifest(self.path), self.finished_inputs()
            if manifest is None and len(records) == len(self.plan["inputs"]):
                inputs = [records[number]["input"] for number in range(len(records))]
                shards = [shard for number in range(len(records)) for shard in records[number]["shards"]]
                if not any(facts["bytes"] for facts in inputs):
                    for number in records:
                        self._record_path(number).unlink()
                    raise UserError(
                        f"the input holds no text ({len(records)} files): give some to make {self.path} from"
                    )
                facts: dict[str, Any] = {**self.plan, "inputs": inputs, "shards": shards}
                manifest = build_manifest(**facts)
                write_manifest(self.path, manifest)
            if manifest is not None:
                self._remove_progress()
            return manifest

    def _record_path(self, number: int, kind: str = "") -> Path:
        return self.progress / f"{number:03d}{kind}.json"

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Hold the folder's lock: one process at a time claims, completes or removes it. Makes the folder if needed."""
        while True:
            try:
                self.progress.mkdir(parents=True, exist_ok=True)
                lock = FileLock(self._lock_path, self.path, wait=True)
            except (FileNotFoundError, FileExistsError):
                continue  # another process has just removed the folder
            with lock:
                if os.fstat(lock.file.fileno()).st_nlink:  # else the process that held it has removed it
                    yield
                    return

    def _remove_progress(self) -> None:
        """Remove .progress, the lock last: a process that waits for it makes a new one."""
        for path in sorted(self.progress.iterdir(), key=lambda path: path == self._lock_path):
            with suppress(OSError):  # NFS keeps files that a process has open
                path.unlink()
        with suppress(OSError):  # another process has started
            self.progress.rmdir()
