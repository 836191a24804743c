"""Inputs of the pipeline: the files that --input names, and files on the hub."""

import hashlib
import io
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

import fsspec

from prepare.common.cli import UserError, write_line
from prepare.common.files import find_paths
from prepare.sources.batches import Batch
from prepare.sources.hub import fetch_hub_file
from prepare.sources.readers import KNOWN, SUFFIXES, RemoteFile, read_documents, read_errors

FINGERPRINT_BYTES = 1 << 16
# files of a data set's folder that hold no documents, though their suffixes are known
NOT_DATA = re.compile(
    r"(?i)(licen[cs]e|readme)\b.*\.(txt|md)|(dataset_infos?|dataset_dict|state|manifest)\.json|cache-\w+\.arrow"
)


class Source:
    """One unit of work for the pipeline, usually an input file; its number is in the names of its shards.

    The very first shard of a folder is held out, unless `split` ("train" or "val") names what all of the source is, or
    `held_out` the number of tokens at its beginning that are.
    """

    name: str
    split: str | None = None
    held_out: int | None = None
    takes_disk = False  # fetch downloads a file, which release removes

    def identity(self) -> dict:
        """What identifies this source, as JSON: `name`, and checksums if there are any; known before fetch."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Download it; runs in the background while the source before it is tokenized."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Its documents from row `start` on, always in the same order. UserError names the source and the mistake."""
        raise NotImplementedError

    def release(self) -> None:
        """Remove what fetch downloaded: the shards are on disk."""


@dataclass
class LocalFile(Source):
    """A file of documents on this machine or at a URL, read in place."""

    path: Path | RemoteFile
    column: str
    separator: str | None = None
    encoding: str | None = None

    @property
    def name(self) -> str:
        return self.path.name

    def identity(self) -> dict:
        return self.contents | {"split": self.split, "held_out": self.held_out}

    @cached_property
    def contents(self) -> dict:
        """Name, size, and a checksum of the size and both ends (reading the complete file twice would be slow)."""
        with read_errors(self.path), self.path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(b"%d\n" % size + file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read())
        return {"name": self.name, "size": size, "sha256_of_ends": digest.hexdigest()}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return read_documents(self.path, self.column, start, self.separator, self.encoding)


@dataclass
class HubFile(Source):
    """A parquet file of a dataset on the hub; on disk only while it is tokenized."""

    repo: str
    revision: str
    path: str  # in the repository
    into: Path
    column: str
    takes_disk = True

    @property
    def name(self) -> str:
        return self.path

    def identity(self) -> dict:
        return {"name": self.path}  # the revision, a commit, is the folder's

    def fetch(self) -> None:
        fetch_hub_file(self.repo, self.path, self.revision, self.into)

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return read_documents(self.into / self.path, self.column, start)

    def release(self) -> None:
        (self.into / self.path).unlink(missing_ok=True)


def find_inputs(patterns: Sequence[str]) -> list[Path | RemoteFile]:
    """Find the files of --input: names, globs, folders (all files of a known kind) and URLs, in the order given, sorted
    within one pattern. Hidden files are left out, and a file that is found again, perhaps by a link, is read once.
    UserError for a pattern without files, or an unknown kind."""
    paths: list[Path | RemoteFile] = []
    for pattern in map(str, patterns):
        matches = _find_remote(pattern) if "://" in pattern else _find_local(pattern)
        if not matches:
            raise UserError(f"--input {pattern}: no such file, or none of {KNOWN}: check the path")
        paths += matches
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"--input {path}: unknown kind of file: give {KNOWN}")
    once: dict[str, Path | RemoteFile] = {}
    for path in paths:
        once.setdefault(os.path.realpath(path) if isinstance(path, Path) else str(path), path)
    if len(once) < len(paths):
        print(f"--input names {len(paths) - len(once):,} files again: each is read once")
    return list(once.values())


def _find_local(pattern: str) -> list[Path | RemoteFile]:
    return list(dict.fromkeys(path for found in find_paths(pattern) for path in _files(found)))  # ** finds some twice


def _files(path: Path) -> list[Path]:
    """The path itself, or the known files in a folder (a corpus, or out.parquet of Spark and Dask), sorted."""
    if not path.is_dir():
        return [path]
    inside = find_paths(path / "**")
    return sorted(map(Path, _known_files(path, (str(name) for name in inside if name.is_file()))))


def _known_files(folder: Path | str, names: Iterable[str]) -> set[str]:
    """The files of a folder that are read; a line says which are passed over."""
    names = set(names)
    known = {name for name in names if name.endswith(SUFFIXES) and not NOT_DATA.fullmatch(PurePath(name).name)}
    if passed := sorted(PurePath(name).name for name in names - known):
        some = ", ".join(passed[:5]) + (" ..." if len(passed) > 5 else "")
        write_line(f"{folder}: {len(known):,} files read, {len(passed):,} passed over: {some}")
    return known


def _find_remote(pattern: str) -> list[Path | RemoteFile]:
    with read_errors(pattern):
        try:
            system, path = fsspec.core.url_to_fs(pattern)
        except (ImportError, ValueError) as failure:  # it says what to install
            raise UserError(f"--input {pattern}: {failure}") from failure
        found: set[str] = set()
        for match, facts in system.glob(path, detail=True).items():
            if facts["type"] == "directory":
                inside = [name for name in system.find(match) if "/." not in name.removeprefix(match)]
                found |= _known_files(system.unstrip_protocol(match), inside)
            else:
                found.add(match)
        return [RemoteFile(system.unstrip_protocol(name)) for name in sorted(found)]
