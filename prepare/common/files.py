"""Files: atomic writes, locks, JSON lines, checksums."""

import fcntl
import hashlib
import json
import os
import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from prepare.common.cli import UserError, write_line

BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@contextmanager
def atomic_write(path: Path, fsync: bool = True) -> Iterator[BinaryIO]:
    """Write `path` under a temporary name beside it, which replaces `path` when the block ends, complete and on disk.

    A block that raises leaves `path` as it was, and no temporary file. Without `fsync` nothing waits for the disk, and
    after a power failure the file may be empty.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with naming(temporary), temporary.open("wb") as file:
            yield file
            file.flush()
            if fsync:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if fsync:
        fsync_path(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def atomic_write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON and a line end, atomically."""
    atomic_write_text(path, json.dumps(value, indent=indent) + "\n")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError of the system that lacks it, as one of a write (a full disk) does."""
    try:
        yield
    except OSError as failure:
        if failure.errno and not failure.filename:
            failure.filename = str(path)
        raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileLock:
    """An exclusive lock on a file, acquired here; released by `release`, the end of a `with` block, or the process's
    end, whatever ends it. The file names the holder.

    A file system without locks (some network file systems) is a warning.

    Args:
        what: what is locked, for messages.
        remedy: what the user can do when it is in use.
        wait: until it is free.

    Raises:
        UserError: another process holds it.
    """

    def __init__(self, path: Path, what: object, remedy: str = "wait for it", wait: bool = False) -> None:
        self.file = path.open("a+b", buffering=0)
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            self.file.seek(0)
            holder = self.file.read().decode().strip()
            self.file.close()
            raise UserError(f"{what} is in use by process {holder}: {remedy}") from None
        except OSError as failure:
            reason = f"this file system has no locks ({failure.strerror})"
            write_line(f"warning: {what}: {reason}: start only one process that uses it")
        with suppress(OSError):  # a full disk
            self.file.truncate(0)
            self.file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        self.file.close()

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def read_json_lines(path: Path) -> Iterator[tuple[int, dict]]:
    """Each line's number, from 1, and its object; blank lines are skipped. UserError names the file and the line."""
    try:
        file = path.open("rb")
    except OSError as failure:
        raise UserError(f"{path} cannot be read ({failure.strerror}): name a file that is there") from None
    with file:
        yield from parse_json_lines(file, path)


def parse_json_lines(lines: Iterable[bytes], path: object) -> Iterator[tuple[int, dict]]:
    """As read_json_lines, of lines that are read from `path`. A byte-order mark is skipped; invalid UTF-8 is U+FFFD."""
    for number, line in enumerate(lines, start=1):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode("utf-8", "replace").strip()
        if not text:
            continue
        try:
            record = json.loads(text)
        except json.JSONDecodeError as failure:
            reason = f"{failure.msg}, column {failure.colno}"
            raise UserError(f"{path}:{number} is not valid JSON ({reason}): fix or delete the line") from None
        if not isinstance(record, dict):
            raise UserError(f"{path}:{number} is not a JSON object ({text[:40]!r}): fix or delete the line")
        yield number, record


def read_json_object(path: Path) -> dict:
    """The JSON object in a file; an empty one where the file is missing, corrupt, or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
