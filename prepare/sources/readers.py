"""Documents out of files: .parquet, .jsonl, .jsonl.gz, .jsonl.zst and .txt, a batch at a time, never a whole file.

What happens to the odd ones: a null or a value that is no text is skipped and counted; an empty text is a document
like any other; a byte-order mark at the beginning of a .txt or .jsonl file is dropped; bytes that are no UTF-8 become
U+FFFD, as lone surrogates in JSON do; line ends stay as they are; blank lines of a .jsonl are nothing; any other line
that is no JSON object is an error, or is named, skipped and counted while there are no more than `max_bad` in a file; a
.gz of several members is read whole, and refused if anything, zeros too, is behind the last one. A .txt is one
document, or with a separator those that stand between, of which nothing after the last one is none.
"""

import glob
import hashlib
import io
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from fsspec.implementations.local import LocalFileSystem

from prepare.common.cli import UserError, replace_surrogates

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")  # a name may be no more; pathlib finds none then
BATCH_BYTES = 4 << 20  # enough that calling the engine costs little, little enough to keep many in memory
READ_ROWS, READ_BYTES = 1000, 1 << 15  # of a parquet at a time, at most: READ_BYTES where its groups are large
SMALL_GROUP = 16 << 20  # bytes of a row group that may be read BATCH_BYTES at a time
FINGERPRINT_BYTES = 1 << 16
FIRST = 100  # lines of a .jsonl, in one of which the column must be
BINARY = (pa.binary(), pa.large_binary(), pa.binary_view())  # Arrow's kinds of bytes, in which a parquet may have text
TEXT = (pa.string(), pa.large_string(), pa.string_view(), *BINARY)  # and all in which it may have text
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Batch:
    """Some consecutive documents, and the share of the source read so far."""

    texts: pa.LargeStringArray  # valid UTF-8, without nulls
    done: float
    rows: np.ndarray | range  # the place of each document among the `read` rows
    read: int  # rows that they came from: documents, and values that were skipped

    @property
    def skipped(self) -> int:
        return self.read - len(self.texts)

    def lengths(self) -> np.ndarray:
        """The documents' lengths in bytes, int64."""
        return pc.binary_length(self.texts).to_numpy()

    @property
    def size(self) -> int:
        """Bytes of text."""
        return int(self.lengths().sum())


class Source:
    """One unit of work for the pipeline, which numbers its shards by it.

    `split` ("train" or "val") overrides the rule that the very first shard of a folder is the held-out one.
    """

    name: str
    split: str | None = None
    takes_room = False  # fetch puts a file on disk, which release removes

    def identity(self) -> dict:
        """JSON-able facts, `name` among them, that tell this source from another; known before fetch."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Bring it to this machine; runs in the background while the source before it is tokenized."""

    def batches(self, start: int = 0) -> Iterator[Batch]:
        """Its documents from row `start` on, in order; always the same ones. UserError names the source and what is
        wrong in it."""
        raise NotImplementedError

    def release(self) -> None:
        """Its shards are on disk: whatever fetch brought can go."""


class Remote:
    """A file behind a URL that fsspec knows (s3://, hf://, ...), with what we need of a Path."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.system, self.path = fsspec.core.url_to_fs(url)
        self.name = self.path.rsplit("/", 1)[-1]
        self.suffix = Path(self.name).suffix

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str) -> BinaryIO:
        return self.system.open(self.path, mode)

    def read_bytes(self) -> bytes:
        return self.system.cat_file(self.path)


@dataclass
class LocalFile(Source):
    """A file of documents on this machine, or one that is read from where it is."""

    path: Path | Remote
    column: str
    separator: str | None = None
    max_bad: int = 0

    @property
    def name(self) -> str:
        return self.path.name

    def identity(self) -> dict:
        """Name, size, and a checksum of the size and both ends (the whole file would take long to read twice)."""
        with _user_errors(self.path), self.path.open("rb") as file:
            size = file.seek(0, io.SEEK_END)
            file.seek(0)
            digest = hashlib.sha256(b"%d\n" % size + file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read())
        return {"name": self.name, "size": size, "sha256_of_ends": digest.hexdigest()}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        return read_documents(self.path, self.column, start, self.separator, self.max_bad)


def find_inputs(patterns: Sequence[str]) -> list[Path | Remote]:
    """The files of --input: names, globs, folders (all that is known in them) and URLs, in the order given; of one
    pattern they are sorted. UserError for what is no input file."""
    paths: list[Path | Remote] = []
    for pattern in map(str, patterns):
        if "://" in pattern:
            matches: list[Path | Remote] = _remote(pattern)
        else:
            names = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
            matches = list(dict.fromkeys(path for name in names for path in _files(Path(name))))  # ** finds some twice
        if not matches:
            raise UserError(f"--input {pattern}: no such file (or none matches): check the path")
        paths += matches
    for path in paths:
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"--input {path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
        if replace_surrogates(str(path)) != str(path):
            raise UserError(f"--input {str(path)!a}: the name is no UTF-8: rename it")
    return paths


def _files(path: Path) -> list[Path]:
    """The path itself; of a folder (out.parquet of Spark and Dask is one) the known files in it that are not hidden."""
    if not path.is_dir():
        return [path]
    found = sorted(file for file in _inside(path) if file.name.endswith(SUFFIXES))
    if not found:
        raise UserError(f"--input {path} is a folder without {', '.join(SUFFIXES)}: check the path")
    return found


def _inside(path: Path) -> Iterator[Path]:
    """The files of a folder, and of those in it and linked to in it, that are not hidden."""
    waiting, seen = [path], set()
    while waiting:
        for folder, names, files in os.walk(waiting.pop(0)):  # which names links to folders, but leaves them out
            names[:] = sorted(name for name in names if not _hidden([name]))
            real = os.path.realpath(folder)
            if real in seen:  # by another link to it, or out of itself
                names.clear()
                continue
            seen.add(real)
            waiting += [link for name in names if (link := Path(folder, name)).is_symlink()]
            yield from (Path(folder, name) for name in files if not _hidden([name]))


def _hidden(parts: Sequence[str]) -> bool:
    return any(part.startswith(".") for part in parts)


def _remote(pattern: str) -> list[Path | Remote]:
    with _user_errors(pattern):
        try:
            system, path = fsspec.core.url_to_fs(pattern)
        except (ImportError, ValueError) as failure:  # it says what to install
            raise UserError(f"--input {pattern}: {failure}") from failure
        if system.isdir(path):
            folders, found = [path], []
        elif system.exists(path):
            folders, found = [], [path]
        else:
            matches = system.glob(path, detail=True)
            folders = [name for name, facts in matches.items() if facts["type"] == "directory"]
            found = [name for name in matches if name not in folders]
        for folder in folders:
            # fsspec follows no links
            inside = map(str, _inside(Path(folder))) if isinstance(system, LocalFileSystem) else system.find(folder)
            known = [name for name in inside if name.endswith(SUFFIXES)]
            found += [name for name in known if not _hidden(name.removeprefix(folder).split("/"))]
        return [Remote(system.unstrip_protocol(name)) for name in sorted(set(found))]


def check_documents(path: Path | Remote, column: str) -> None:
    """Look at a file's beginning (a parquet's schema): UserError if its documents cannot be read from `column`."""
    with _user_errors(path):
        if path.name.endswith(".parquet"):
            with _open_parquet(path) as file:
                _check_schema(path, file.schema_arrow, column)
        elif path.name.endswith(".txt"):
            path.open("rb").close()
        else:
            with _open_lines(path) as (lines, _):
                records = [record for record in islice(_records(path, lines, sys.maxsize, quiet=True), FIRST) if record]
            if records and not any(column in record for record in records):
                found = _names(records[0])
                raise UserError(f"{path} has no {column!r}; its first line has {found}: choose with --column")


def read_documents(
    path: Path | Remote, column: str, start: int = 0, separator: str | None = None, max_bad: int = 0
) -> Iterator[Batch]:
    """The texts of a file's `column` from row `start` on. UserError names the file, and the line of a .jsonl."""
    with _user_errors(path):
        if path.name.endswith(".parquet"):
            with _open_parquet(path) as file:
                _check_schema(path, file.schema_arrow, column)
                yield from _parquet_batches(file, column, start)
        elif path.name.endswith(".txt") and separator is not None:
            with path.open("rb") as file:
                size = max(1, file.seek(0, io.SEEK_END))
                file.seek(0)
                yield from group(_pieces(file, separator.encode()), lambda: file.tell() / size, start)
        elif path.name.endswith(".txt"):
            if start == 0:
                text = path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")
                yield batch_of([text], 1.0)
        else:
            with _open_lines(path) as (lines, done):
                yield from group((record.get(column) for record in _records(path, lines, max_bad)), done, start)


def _open_parquet(path: Path | Remote) -> pq.ParquetFile:
    # with a buffer a column of a row group is read bit by bit, however large it is
    return pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"), buffer_size=1 << 17)


def _pieces(file: BinaryIO, separator: bytes) -> Iterator[str]:
    """The documents of a .txt file between separators."""
    begun: list[bytes] = []  # the document that is not at its end, but for its last bytes
    rest = file.read(len(BYTE_ORDER_MARK)).removeprefix(BYTE_ORDER_MARK)
    for chunk in chain([b""], iter(lambda: file.read(BATCH_BYTES), b"")):  # those first bytes may be all there are
        *whole, rest = (rest + chunk).split(separator)
        for piece in whole:
            yield b"".join([*begun, piece]).decode("utf-8", "replace")
            begun = []
        searched = max(0, len(rest) - len(separator) + 1)  # no separator begins before: not to be looked through again
        begun.append(rest[:searched])
        rest = rest[searched:]
    last = b"".join([*begun, rest])
    if last:
        yield last.decode("utf-8", "replace")


def group(values: Iterable[object], done: Callable[[], float], start: int = 0) -> Iterator[Batch]:
    """Put values together to batches of about BATCH_BYTES, without the first `start`."""
    some: list[object] = []
    characters = 0
    for value in islice(values, start, None):
        some.append(value)
        characters += len(value) if isinstance(value, str) else 0
        if characters >= BATCH_BYTES or len(some) >= BATCH_BYTES // 64:
            yield batch_of(some, done())
            some, characters = [], 0
    if some:
        yield batch_of(some, done())


def batch_of(values: Sequence[object], done: float) -> Batch:
    """Values as a batch: those that are no text are skipped, lone surrogates become U+FFFD as tiktoken has it."""
    rows = [row for row, value in enumerate(values) if isinstance(value, str)]
    texts = [values[row] for row in rows]
    try:
        array = pa.array(texts, pa.large_string())
    except UnicodeEncodeError:
        array = pa.array(map(replace_surrogates, texts), pa.large_string())
    return Batch(array, done, np.array(rows, np.int64), len(values))


def _parquet_batches(file: pq.ParquetFile, column: str, start: int) -> Iterator[Batch]:
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    # leaves of nested columns count; a column "a.b" and the leaf of a struct a{b} have one path, and both are read
    leaves = [i for i in range(len(file.schema)) if file.schema.column(i).path == column]
    # few rows at a time: a group's size hides its longest documents, and how often a dictionary repeats them; but no
    # document is longer than its group
    sizes = [
        (sum(group.column(leaf).total_uncompressed_size for leaf in leaves), max(1, group.num_rows)) for group in groups
    ]
    average = max((size / count for size, count in sizes), default=0)
    some = BATCH_BYTES if max(sizes, default=(0, 0))[0] <= SMALL_GROUP else READ_BYTES
    rows = int(min(READ_ROWS, max(1, some // (average + 1))))
    ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
    first = int(np.searchsorted(ends, start, "right"))  # the row group with row `start`
    before = start - (int(ends[first - 1]) if first else 0)  # rows of that group which are not wanted
    batches = file.iter_batches(rows, row_groups=range(first, len(groups)), columns=[column], use_threads=False)
    for array in sized(batch.column(column) for batch in batches):
        wanted = array.slice(before)
        before = max(0, before - len(array))
        start += len(wanted)
        if len(wanted):
            yield arrow_batch(wanted, start / file.metadata.num_rows)


def sized(arrays: Iterable[pa.Array]) -> Iterator[pa.Array]:
    """A column's values, of any of Arrow's kinds of text, as large strings or binaries: arrays of at most twice
    BATCH_BYTES, or of one value that is longer. Small ones are put together, large ones cut into copies of their parts,
    which do not keep the whole in memory."""
    some: list[pa.Array] = []
    size = 0
    for array in map(_large, arrays):
        parts = [array]
        if array.nbytes > 2 * BATCH_BYTES:
            parts = (pa.concat_arrays([array[row : row + 1]]) for row in range(len(array)))
        for part in parts:
            if some and size + part.nbytes > BATCH_BYTES:
                yield some[0] if len(some) == 1 else pa.concat_arrays(some)
                some, size = [], 0
            some.append(part)
            size += part.nbytes
    if some:
        yield some[0] if len(some) == 1 else pa.concat_arrays(some)


def _large(array: pa.Array) -> pa.Array:
    kind = array.type.value_type if pa.types.is_dictionary(array.type) else array.type
    # as it is: the offsets grow, no more
    return array.cast(pa.large_binary() if kind in BINARY else pa.large_string())


def arrow_batch(array: pa.Array, done: float) -> Batch:
    """Large strings or binaries as a batch: nulls are skipped, bytes that are no UTF-8 become U+FFFD, and the letters
    of others are not copied."""
    read, rows = len(array), range(len(array))
    if array.null_count:
        rows = np.flatnonzero(array.is_valid().to_numpy(zero_copy_only=False))
        array = array.drop_null()
    _, offsets, data = array.buffers()
    array = pa.LargeStringArray.from_buffers(len(array), offsets, data, None, 0, array.offset)
    try:
        array.validate(full=True)
    except pa.ArrowInvalid:  # no UTF-8
        texts = [value.decode("utf-8", "replace") for value in array.cast(pa.large_binary()).to_pylist()]
        array = pa.array(texts, pa.large_string())
    return Batch(array, done, rows, read)


def _check_schema(path: Path | Remote, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{path} has no column {column!r}; it has {_names(schema.names)}: choose one with --column")
    if schema.names.count(column) > 1:
        raise UserError(f"{path} has {schema.names.count(column)} columns {column!r}: rename all but one of them")
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if value not in (*TEXT, pa.null()):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text: choose another with --column")


@contextmanager
def _open_lines(path: Path | Remote) -> Iterator[tuple[Iterable[bytes], Callable[[], float]]]:
    """The lines of a .jsonl, unpacked, and a function that says what share of the file is read."""
    with pa.OSFile(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open("rb"), "r") as file:
        size = max(1, file.size())
        kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
        # Arrow's streams, unlike zstandard's, notice a file that ends too early
        stream = pa.CompressedInputStream(file, kind) if kind else file
        yield io.BufferedReader(stream, 1 << 20), lambda: file.tell() / size


def _records(path: Path | Remote, lines: Iterable[bytes], max_bad: int, quiet: bool = False) -> Iterator[dict]:
    """The objects of a .jsonl's lines; empty ones for up to `max_bad` malformed lines, each named on stderr."""
    bad = 0
    for number, line in enumerate(lines, start=1):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode("utf-8", "replace").strip()
        if not text:
            continue
        try:
            record = json.loads(text)
            wrong = None if isinstance(record, dict) else f"{text[:40]!r} is no JSON object"
        except (ValueError, RecursionError) as failure:
            wrong = f"no JSON ({failure})"
        if wrong is None:
            yield record
            continue
        bad += 1
        if bad > max_bad:
            limit = f" ({bad} such lines are more than --max-bad {max_bad})" if max_bad else ""
            raise UserError(f"{path}, line {number}: {wrong}{limit}: mend or delete that line, or allow --max-bad")
        if not quiet:
            print(f"warning: {path}, line {number}: {wrong}: skipped", file=sys.stderr)
        yield {}


@contextmanager
def _user_errors(path: Path | Remote | str) -> Iterator[None]:
    """Turn what goes wrong in reading a file into a UserError that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as failure:
        if "requires too much memory" in str(failure):  # zstd's words for a window above 128 MB
            remedy = "recompress it without --long"
        elif "://" in str(path) and not isinstance(failure, pa.ArrowException):
            # a store's own library has exceptions of its own: no credentials, no connection
            remedy = "check address, network and credentials, and whether it is cut short"
        elif isinstance(failure, (OSError, pa.ArrowException, UnicodeDecodeError)):  # the last of a column's name
            remedy = "is it damaged or cut short? get it again"
        else:
            raise
        raise UserError(f"cannot read {path} ({failure}): {remedy}") from failure


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
