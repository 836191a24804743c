"""A folder of shards in the making: whose it is, what of it is on disk, who works on it.

.progress holds the plan, a lock for each task, FFF.part.json for a source (an input file) that has finished shards, and
FFF.json for one that is finished. The manifest takes their place when all are.
"""

import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from prepare.common.cli import UserError
from prepare.common.files import FileLock, atomic_write_json, read_json_object
from prepare.tokens.manifest import MANIFEST, build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import HEADER_BYTES, MAX_PARTS, TOKEN, shard_number

PROGRESS = ".progress"


def pinned_revision(path: Path, dataset: str) -> str | None:
    """The commit of `dataset` that the folder `path` was begun with; None if it was begun with nothing of it."""
    begun = path / PROGRESS / "plan.json"
    made = _read_plan(begun) if begun.is_file() else read_manifest(path)
    return made["revision"] if made is not None and made["dataset"] == dataset else None


class Folder:
    """The folder `path` and the plan of the job that makes it."""

    def __init__(self, path: Path, plan: dict) -> None:
        self.path, self.plan = path, plan
        self.progress = path / PROGRESS
        self._plan_path = self.progress / "plan.json"
        self._moment = self.progress / "lock"  # of `_alone`

    @contextmanager
    def claimed(self, index: int, count: int) -> Iterator[None]:
        """Hold this share of the folder: no other process may have it, nor a share by another count."""
        with ExitStack() as held:
            with self._alone():
                try:
                    held.enter_context(self._lock(self.progress / f"task-{index}-of-{count}.lock"))
                    for path in self.progress.glob("task-*.lock"):
                        if not path.name.endswith(f"-of-{count}.lock"):
                            self._lock(path).release()
                    self._begin()
                except UserError:
                    if not self._plan_path.is_file():  # nothing is under way here: leave the folder as it was
                        self._remove_progress()
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
                atomic_write_json(self._plan_path, self.plan)
                (self.path / MANIFEST).unlink()
            return
        if self._plan_path.is_file():
            plan = _read_plan(self._plan_path)
            self._refuse_difference(plan, {number: record["input"] for number, record in self.finished().items()})
        else:
            strange = next((path for path in sorted(self.path.iterdir()) if path.suffix in (".bin", ".npy")), None)
            if strange:
                raise UserError(f"{strange} is there, but no manifest says of what: choose another --out, or delete it")
        atomic_write_json(self._plan_path, self.plan)

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
            records = {number: record for number, path in markers if (record := _read_record(path)) is not None}
        else:
            records = {number: {"input": facts, "shards": []} for number, facts in enumerate(manifest["inputs"])}
            for shard in manifest["shards"]:
                number = shard_number(shard["file"])
                if number is None or number // MAX_PARTS not in records:
                    found = f"{self.path / MANIFEST} has the shard {shard['file']}, which is of none of its inputs"
                    raise UserError(f"{found}: delete the folder and run its preparation again")
                records[number // MAX_PARTS]["shards"].append(shard)
        return {number: record for number, record in records.items() if self._whole(record["shards"])}

    def _whole(self, shards: list[dict]) -> bool:
        paths = [(self.path / shard["file"], HEADER_BYTES + TOKEN.itemsize * shard["tokens"]) for shard in shards]
        return all(path.is_file() and path.stat().st_size == size for path, size in paths)

    def begun(self, number: int) -> dict | None:
        """What `save` remembered of an unfinished source, if its shards are there and it is still the same."""
        record = _read_record(self._marker(number, ".part"))
        identity = self.plan["inputs"][number]
        if record is None or not self._whole(record["shards"]):
            return None
        return record if all(record["input"].get(key) == identity[key] for key in identity) else None

    def clean(self, numbers: Iterable[int], keep: bool = True) -> None:
        """Remove what an interrupted run left of these sources, but (`keep`) the shards that `begun` knows."""
        numbers, kept = set(numbers), set()
        for number in numbers:
            record = self.begun(number) if keep else None
            if record is None:
                self._marker(number, ".part").unlink(missing_ok=True)
            else:
                kept |= {shard["file"] for shard in record["shards"]}
        for path in self.path.iterdir():
            number = shard_number(path.name)
            if number is not None and number // MAX_PARTS in numbers and path.name not in kept:
                path.unlink()

    def save(self, number: int, record: dict) -> None:
        """Remember the shards of an unfinished source that are on disk, and how to go on after them."""
        atomic_write_json(
            self._marker(number, ".part"), self._identified(number, record), indent=None
        )  # often, and long

    def finish(self, number: int, record: dict) -> None:
        """Remember that a source's shards are on disk."""
        atomic_write_json(self._marker(number), self._identified(number, record))
        self._marker(number, ".part").unlink(missing_ok=True)

    def _identified(self, number: int, record: dict) -> dict:
        return record | {"input": self.plan["inputs"][number] | record["input"]}

    def abandon(self, keep: bool = True) -> None:
        """After a mistake of the user's: keep finished sources and (`keep`) finished shards, and leave nothing at all
        when there are none."""
        with self._alone():
            done = self.finished()
            numbers = [number for number in range(len(self.plan["inputs"])) if number not in done]
            self.clean(numbers, keep)
            if not done and not any(self._marker(number, ".part").is_file() for number in numbers):
                self._remove_progress()
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
                self._remove_progress()
            return manifest

    def _manifest(self, records: list[dict]) -> dict:
        if not any(record["input"]["bytes"] for record in records):
            for number in range(len(records)):
                self._marker(number).unlink()
            raise UserError(f"the input holds no text ({len(records)} files): nothing to make {self.path} of")
        inputs = [record["input"] for record in records]
        shards = [shard for record in records for shard in record["shards"]]
        return build_manifest(**(self.plan | {"inputs": inputs}), shards=shards)

    def _remove_progress(self) -> None:
        """Remove .progress, in a moment of `_alone` whose lock goes last: who comes in then keeps what it begins."""
        for path in [*(path for path in self.progress.iterdir() if path != self._moment), self._moment]:
            with suppress(OSError):  # NFS keeps what a process has open
                path.unlink()
        with suppress(OSError):  # somebody came in
            self.progress.rmdir()

    def _marker(self, number: int, kind: str = "") -> Path:
        return self.progress / f"{number:03d}{kind}.json"

    def _lock(self, path: Path) -> FileLock:
        return FileLock(path, self.path, "wait for it, or choose another --out")

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """A moment in which no other task begins, completes or abandons this folder, which is made where it is gone."""
        while True:
            with suppress(FileExistsError):  # exist_ok would look again, when it may be gone
                self.path.mkdir()
            try:
                with suppress(FileExistsError):
                    self.progress.mkdir()
                lock = FileLock(self._moment, self.path, wait=True)
            except FileNotFoundError:
                continue  # completed or abandoned, and removed, at this very moment
            with lock:
                if os.fstat(lock.file.fileno()).st_nlink:  # else removed by the one who had it
                    yield
                    return


def _read_plan(path: Path) -> dict:
    """The plan of a folder in the making. UserError if it is damaged."""
    plan = read_json_object(path)
    if not plan:
        raise UserError(f"{path} is damaged: delete {path.parent.parent} and run its preparation again")
    return plan


def _read_record(path: Path) -> dict | None:
    """What is remembered of a source; None when there is nothing, or what there is is damaged: it is made again."""
    record = read_json_object(path)
    return record if {"input", "shards"} <= record.keys() else None
