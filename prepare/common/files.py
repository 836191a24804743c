"""Files that are whole or not there: written at one stroke, read without surprises, told apart by their sha256."""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def atomic_write_text(path: Path, text: str) -> None:
    """Write a small file under its final name at one stroke, when it is whole and on disk."""
    unfinished = path.with_name(path.name + ".tmp")
    with naming(unfinished), unfinished.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(path)
    fsync_path(path.parent)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Have an OSError say which file it is about, as those of a write (a full disk) do not."""
    try:
        yield
    except OSError as failure:
        failure.filename = failure.filename or str(path)
        raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def atomic_write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON under its final name at one stroke, when it is whole and on disk."""
    atomic_write_text(path, json.dumps(value, indent=indent) + "\n")


def read_json_object(path: Path) -> dict:
    """The JSON object in a file; an empty one where there is no file, or it is damaged, or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
