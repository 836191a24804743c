"""Files: atomic writes, locks, text in any encoding, JSON lines, checksums."""

import codecs
import csv
import encodings
import errno
import fcntl
import glob
import hashlib
import json
import os
import socket
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

from prepare.common.cli import ArgumentError, UserError, warn

PIECE_BYTES = 1 << 18  # of a text at a time
# byte-order marks, and the encodings that they state; UTF-32's before UTF-16's, which one of them begins with
MARKS = {codecs.BOM_UTF8: "utf-8", codecs.BOM_UTF32_LE: "utf-32-le", codecs.BOM_UTF32_BE: "utf-32-be"}
MARKS |= {codecs.BOM_UTF16_LE: "utf-16-le", codecs.BOM_UTF16_BE: "utf-16-be"}
MAGIC_NUMBERS = {  # the first bytes of compressed files and tables, and their suffixes
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"BZh9": ".bz2",
    b"\xfd7zXZ\0": ".xz",
    b"PK\x03\x04": ".zip",
    b"PAR1": ".parquet",
}


@contextmanager
def atomic_write(path: Path) -> Iterator[BinaryIO]:
    """Write a temporary file in the same folder, which replaces `path` when the block ends, complete and on disk.

    If the block raises, `path` is unchanged and the temporary file is removed.
    """
    temporary = path.with_name(path.name + ".tmp")
    try:
        with name_in_errors(temporary), temporary.open("wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_path(path.parent)


def atomic_write_text(path: Path, text: str) -> None:
    """Write text as UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


def atomic_write_json(path: Path, value: object, indent: int | None = 1) -> None:
    """Write JSON and a line end, atomically."""
    atomic_write_text(path, json.dumps(value, indent=indent) + "\n")


@contextmanager
def name_in_errors(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError that lacks it, such as that of a write to a full disk."""
    try:
        yield
    except OSError as failure:
        if failure.errno and not failure.filename:
            failure.filename = str(path)
        raise


def fsync_path(path: Path) -> None:
    """Wait until a file, or a folder's list of names, is on disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


class FileLock:
    """An exclusive lock on a file, acquired here; released by `release`, the end of a `with` block, or the end of the
    process, even by a kill. The file names the holder.

    On a file system without locks (some network file systems) it prints a warning.

    Args:
        what: what is locked, for messages.
        remedy: what the user can do when it is in use.
        wait: whether to wait until it is free.

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
            warn(f"{what}: this file system has no locks ({failure.strerror}): start only one process that uses it")
        with suppress(OSError):  # a full disk
            self.file.truncate(0)
            self.file.write(f"{os.getpid()} on {socket.gethostname()}\n".encode())

    def release(self) -> None:
        self.file.close()

    def __enter__(self) -> "FileLock":
        return self

    def __exit__(self, *exception: object) -> None:
        self.release()


def is_locked(path: Path) -> bool:
    """Whether a process holds the FileLock of this file, which is left as it is."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as failure:
        return isinstance(failure, BlockingIOError)
    return False


def allow_soft_locks(flock: Callable = fcntl.flock) -> None:
    """Let the libraries' filelock, under each download from the hub, do without flock where a file system has none: it
    does for ENOSYS alone, and Lustre and NFS say ENOLCK, EOPNOTSUPP, or Linux's ENOTSUPP, 524."""

    def flock_or_enosys(file: Any, operation: int) -> None:
        try:
            flock(file, operation)
        except OSError as failure:
            if failure.errno in (errno.ENOLCK, errno.EOPNOTSUPP, 524):
                failure.errno = errno.ENOSYS
            raise

    fcntl.flock = flock_or_enosys  # ty: ignore[invalid-assignment]


def find_paths(pattern: str | Path) -> list[Path]:
    """The paths that match a glob, sorted as strings. Its leading folders that exist are taken literally, since there
    may be a [ in their names."""
    path = Path(pattern)
    exact = next((folder for folder in (path, *path.parents) if folder.exists()), Path())
    escaped = Path(glob.escape(str(exact)), path.relative_to(exact))
    return [Path(name) for name in sorted(glob.glob(str(escaped), recursive=True))]  # noqa: PTH207  it follows links


def check_content(path: Any) -> None:
    """UserError, with the remedy, for a file that is not what its name says."""
    with path.open("rb") as file:
        head = file.read(512)
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        raise UserError(f"{path} is a Git LFS pointer, not the file itself: git lfs pull, or download the file")
    if head.removeprefix(codecs.BOM_UTF8).lstrip().lower().startswith((b"<!doctype html", b"<html")):
        raise UserError(f"{path} is a web page: it may say why; download the file again")
    for start, suffix in MAGIC_NUMBERS.items():
        if head.startswith(start) and not path.name.endswith((suffix, ".pt", ".bin")):  # torch.save writes a .zip
            raise UserError(f"{path} has the contents of a {suffix} file: decompress it, or give it that suffix")


def decode_pieces(file: BinaryIO, path: object, encoding: str | None = None) -> Iterator[str]:
    """Read a file's text, PIECE_BYTES at a time, its line ends as they are. A byte-order mark decides the encoding,
    and is dropped.

    Args:
        path: the file's name, for messages.
        encoding: of a file without a mark; None is UTF-8 without the NULs that UTF-16 is full of.

    Raises:
        ArgumentError: the encoding is unknown.
        UserError: names the file, the first byte that is not of the encoding, and the remedy.
    """
    read = file.read(PIECE_BYTES)
    mark = next((mark for mark in MARKS if read.startswith(mark)), b"")
    name = MARKS.get(mark) or encoding or "utf-8"
    codec = encodings.search_function(name.lower())  # codecs.lookup asks packages too, of which some take any name
    if not codec or not codec.incrementaldecoder:
        raise ArgumentError(f"encoding {name!r} is unknown: give utf-16, gb18030, cp1252, shift_jis ...")
    if codec.name in ("utf-16", "utf-32"):  # which require a mark
        codec = encodings.search_function(codec.name + "-le") or codec
    decoder = codec.incrementaldecoder()
    data, end = read[len(mark) :], len(read)  # end: of what is read, in the file
    while True:
        try:
            if not (mark or encoding) and b"\0" in data:
                raise UnicodeDecodeError(name, data, data.index(b"\0"), end, "a NUL")
            text = decoder.decode(data, final=not read)
        except UnicodeDecodeError as failure:
            offset, byte = end - len(failure.object) + failure.start, failure.object[failure.start]
            raise UserError(
                f"{path}: byte {offset:,} (0x{byte:02x}) is not {name} text: state the file's encoding (--encoding, or "
                "data.encoding in fine-tuning: gb18030, cp1252, utf-16 ...), or convert it to UTF-8"
            ) from None
        if text:
            yield text
        if not read:
            return
        data = read = file.read(PIECE_BYTES)
        end += len(read)


def split_pieces(pieces: Iterable[str], separator: str) -> Iterator[str]:
    """The parts of a text between separators; after the last one, only if anything follows."""
    held, end = [""], ""  # what follows the last separator, and its last characters, which may begin the next one
    for piece in pieces:
        held.append(piece)
        end += piece
        if separator in end:
            *parts, end = "".join(held).split(separator)
            yield from parts
            held = [end]
        end = end[max(0, len(end) - len(separator) + 1) :]
    if rest := "".join(held):
        yield rest


def _open_text(path: Path) -> BinaryIO:
    """Open a file of text. UserError if it cannot be read, or is not what its name says."""
    try:
        check_content(path)
        return path.open("rb")
    except OSError as failure:
        raise UserError(f"cannot read {path} ({failure.strerror}): name a file that is there") from None


def read_text(path: Path, encoding: str | None = None) -> str:
    """The text of a file. UserError as _open_text and decode_pieces raise it."""
    with _open_text(path) as file:
        return "".join(decode_pieces(file, path, encoding))


def read_json_lines(path: Path) -> Iterator[tuple[str, dict]]:
    """Each line's place (file:line) and its object; blank lines are skipped. UserError names file and line, or as
    _open_text and decode_pieces raise it."""
    with _open_text(path) as file:
        yield from parse_json_lines(decode_pieces(file, path), path)


def parse_json_lines(pieces: Iterable[str], path: object) -> Iterator[tuple[str, dict]]:
    """As read_json_lines, for text that is read from `path`; it may also be one JSON array of objects."""
    lines = split_pieces(pieces, "\n")
    for number, line in enumerate(lines, start=1):
        if not (text := line.strip()):
            continue
        if is_array := number == 1 and text.startswith("["):
            text = "\n".join([line, *lines])
        try:
            value = json.loads(text)
        except json.JSONDecodeError as failure:
            place, reason = f"{path}:{number + failure.lineno - 1}", f"{failure.msg}, column {failure.colno}"
            raise UserError(f"{place} is not valid JSON ({reason}): fix or delete the line") from None
        entries = [(f"{path}:{number}", value)]
        if is_array:
            entries = [(f"{path}, entry {n}", entry) for n, entry in enumerate(value, 1)]
        for place, record in entries:
            if not isinstance(record, dict):
                raise UserError(f"{place} is not a JSON object ({str(record)[:40]!r}): fix or delete it")
            yield place, record


def parse_csv(pieces: Iterable[str], path: object, delimiters: str) -> Iterator[tuple[str, dict]]:
    """The place (file:line) of each row of a .csv or .tsv, and its values by the names in the first line. The delimiter
    is the one that the first line has most of."""
    csv.field_size_limit(sys.maxsize)  # by default 131,072 characters
    lines = (f"{line}\n" for line in split_pieces(pieces, "\n"))
    first = next(lines, "")
    rows = csv.reader(chain([first], lines), delimiter=max(delimiters, key=first.count), strict=True)
    try:
        names = next(rows, [])
        for row in filter(None, rows):
            if len(row) != len(names):
                raise csv.Error(f"expected {len(names)} columns, got {len(row)}")
            yield f"{path}:{rows.line_num}", dict(zip(names, row, strict=True))
    except csv.Error as failure:
        raise UserError(f"{path}:{rows.line_num} is not valid CSV ({failure}): fix or delete the line") from None


def read_json_object(path: Path) -> dict:
    """The JSON object in a file; {} if the file is missing, corrupt, or holds something else."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def file_sha256(path: Path) -> str:
    """The sha256 of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
