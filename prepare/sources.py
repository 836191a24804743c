"""Documents out of files: .parquet, .jsonl, .jsonl.gz, .jsonl.zst and .txt, a batch at a time, never a whole file.

What happens to the odd ones: a null or a value that is no text is skipped and counted; an empty text is a document
like any other; a byte-order mark at the beginning of a .txt or .jsonl file is dropped; bytes that are no UTF-8 become
U+FFFD; line ends stay as they are; blank lines of a .jsonl are nothing; any other line that is no JSON object is an
error.
"""

import glob
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from prepare.cli import UserError

SUFFIXES = (".parquet", ".jsonl", ".jsonl.gz", ".jsonl.zst", ".txt")
BATCH_CHARACTERS = 2 << 20  # enough to make a thread's turn worthwhile, little enough to keep many in memory
FINGERPRINT_BYTES = 1 << 16
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Batch:
    """Some consecutive documents, how many others were skipped among them, and the share of the source read so far."""

    texts: list[str]
    skipped: int
    done: float


class Source:
    """One unit of work for the pipeline, which numbers its shards by it.

    `split` ("train" or "val") overrides the rule that the very first shard of a folder is the held-out one.
    """

    name: str
    split: str | None = None

    def identity(self) -> dict:
        """JSON-able facts, `name` among them, that tell this source from another; known before fetch."""
        raise NotImplementedError

    def fetch(self) -> None:
        """Bring it to this machine; runs in the background while the source before it is tokenized."""

    def batches(self) -> Iterator[Batch]:
        """Its documents in order; always the same ones. UserError names the source and what is wrong in it."""
        raise NotImplementedError

    def release(self) -> None:
        """Its shards are on disk: whatever fetch brought can go."""


@dataclass
class LocalFile(Source):
    """A file of documents on this machine."""

    path: Path
    column: str

    @property
    def name(self) -> str:
        return self.path.name

    def identity(self) -> dict:
        """Name, size, and a checksum of the size and both ends (the whole file would take long to read twice)."""
        size = self.path.stat().st_size
        with self.path.open("rb") as file:
            digest = hashlib.sha256(b"%d\n" % size + file.read(FINGERPRINT_BYTES))
            file.seek(max(0, size - FINGERPRINT_BYTES))
            digest.update(file.read())
        return {"name": self.name, "size": size, "sha256_of_ends": digest.hexdigest()}

    def batches(self) -> Iterator[Batch]:
        return read_documents(self.path, self.column)


def find_inputs(patterns: Sequence[str]) -> list[Path]:
    """The files of --input, in the order given; a glob's matches are sorted. UserError for what is no input file."""
    paths = []
    for pattern in patterns:
        matches = [pattern] if Path(pattern).exists() else sorted(glob.glob(pattern, recursive=True))  # noqa: PTH207
        if not matches:
            raise UserError(f"--input {pattern}: no such file (or none matches): check the path")
        paths += map(Path, matches)
    for path in paths:
        if path.is_dir():
            raise UserError(f"--input {path} is a folder: name its files, for example '{path}/*.parquet'")
        if not path.name.endswith(SUFFIXES):
            raise UserError(f"--input {path}: unknown kind of file; known are {', '.join(SUFFIXES)}")
    return paths


def check_documents(path: Path, column: str) -> None:
    """Look at a file's beginning (a parquet's schema): UserError if its documents cannot be read from `column`."""
    with _user_errors(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path) as file:
                _check_schema(path, file.schema_arrow, column)
        elif path.suffix == ".txt":
            path.open("rb").close()
        else:
            with _open_lines(path) as (lines, _):
                record = next(_records(path, lines), None)
            if record is not None and column not in record:
                raise UserError(f"{path} has no {column!r}; its first line has {_names(record)}: choose with --column")


def read_documents(path: Path, column: str) -> Iterator[Batch]:
    """The texts of a file's `column` in order. UserError names the file, and the line of a .jsonl."""
    with _user_errors(path):
        if path.suffix == ".parquet":
            with pq.ParquetFile(path, buffer_size=1 << 20) as file:
                _check_schema(path, file.schema_arrow, column)
                yield from _parquet_batches(file, column)
        elif path.suffix == ".txt":
            yield Batch([path.read_bytes().removeprefix(BYTE_ORDER_MARK).decode("utf-8", "replace")], 0, 1.0)
        else:
            with _open_lines(path) as (lines, done):
                yield from group((record.get(column) for record in _records(path, lines)), done)


def group(values: Iterable[object], done: Callable[[], float]) -> Iterator[Batch]:
    """Put values together to batches of about BATCH_CHARACTERS; those that are no text are counted, not kept."""
    texts: list[str] = []
    characters = skipped = 0
    for value in values:
        if isinstance(value, str):
            texts.append(value)
            characters += len(value)
        else:
            skipped += 1
        if characters >= BATCH_CHARACTERS or len(texts) >= BATCH_CHARACTERS // 64:
            yield Batch(texts, skipped, done())
            texts, characters, skipped = [], 0, 0
    if texts or skipped:
        yield Batch(texts, skipped, done())


def _parquet_batches(file: pq.ParquetFile, column: str) -> Iterator[Batch]:
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    index = [file.schema.column(i).path for i in range(len(file.schema))].index(
        column
    )  # leaves of nested columns count
    longest = max((group.column(index).total_uncompressed_size / max(1, group.num_rows) for group in groups), default=0)
    rows = int(min(1000, max(1, BATCH_CHARACTERS // (longest + 1))))  # few at a time where documents are long
    read = 0

    def values() -> Iterator[object]:
        nonlocal read
        for batch in file.iter_batches(batch_size=rows, columns=[column]):
            read += batch.num_rows
            yield from _texts(batch.column(0))

    yield from group(values(), lambda: read / file.metadata.num_rows)


def _texts(array: pa.Array) -> list[str | None]:
    if not pa.types.is_binary(array.type) and not pa.types.is_large_binary(array.type):
        try:
            return array.to_pylist()
        except UnicodeDecodeError:
            array = array.cast(pa.large_binary())
    return [None if value is None else value.decode("utf-8", "replace") for value in array.to_pylist()]


def _check_schema(path: Path, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        raise UserError(f"{path} has no column {column!r}; it has {_names(schema.names)}: choose one with --column")
    kind = schema.field(column).type
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    if value not in (pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.large_binary(), pa.null()):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text: choose another with --column")


@contextmanager
def _open_lines(path: Path) -> Iterator[tuple[Iterable[bytes], Callable[[], float]]]:
    """The lines of a .jsonl, unpacked, and a function that says what share of the file is read."""
    with pa.OSFile(str(path)) as file:
        size = max(1, file.size())
        kind = {".gz": "gzip", ".zst": "zstd"}.get(path.suffix)
        # Arrow's streams, unlike zstandard's, notice a file that ends too early
        stream = pa.CompressedInputStream(file, kind) if kind else file
        yield io.BufferedReader(stream, 1 << 20), lambda: file.tell() / size


def _records(path: Path, lines: Iterable[bytes]) -> Iterator[dict]:
    for number, line in enumerate(lines, start=1):
        text = (line.removeprefix(BYTE_ORDER_MARK) if number == 1 else line).decode("utf-8", "replace").strip()
        if not text:
            continue
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as failure:
            raise UserError(f"{path}, line {number}: no JSON ({failure}): mend or delete that line") from failure
        if not isinstance(record, dict):
            raise UserError(f"{path}, line {number}: {text[:40]!r} is no JSON object: mend or delete that line")
        yield record


@contextmanager
def _user_errors(path: Path) -> Iterator[None]:
    """Turn what goes wrong in reading a file into a UserError that names it."""
    try:
        yield
    except (OSError, pa.ArrowException) as failure:
        raise UserError(f"cannot read {path} ({failure}): is it damaged or cut short? get it again") from failure


def _names(names: Iterable[str]) -> str:
    return ", ".join(names) or "nothing"
