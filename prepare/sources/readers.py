"""Read documents from files, a batch at a time.

    .parquet, .arrow                 tables; .arrow as datasets.save_to_disk writes it
    .jsonl, .ndjson, .json           an object a line, or one array of objects, which is read at once
    .csv, .tsv                       column names in the first line; separated by commas, semicolons or tabs
    .txt, .md                        one document
    .gz, .zst, .bz2, .xz after them  compressed; not after tables

With a separator, the text of a .txt, or of each row of a .jsonl or .csv, is the documents between separators. A null
or a value that is not text is skipped and counted; an empty text is a document like any other. Files but tables are
UTF-8 or in a stated encoding, or a byte-order mark decides (decode_pieces); line ends stay as they are.
Invalid UTF-8 in a table becomes U+FFFD, as lone surrogates in JSON do. Blank lines of a .jsonl are skipped; any other
line that is not a JSON object is an error. A .txt file that is one document is held in memory with its tokens, at four
times its size; with a separator, a piece of the file at a time.
"""

import lzma
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path, PurePath
from typing import BinaryIO

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from prepare.common.cli import UserError
from prepare.common.files import check_content, decode_pieces, parse_csv, parse_json_lines, split_pieces
from prepare.sources.batches import BATCH_BYTES, BINARY, Batch, arrow_batch, group, resize

COMPRESSED = {".gz": "gzip", ".zst": "zstd", ".bz2": "bz2", ".xz": "xz"}
TABLES, PLAIN = (".parquet", ".arrow"), (".txt", ".md")
TEXTS = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", *PLAIN)
SUFFIXES = (*TABLES, *(text + packed for text in TEXTS for packed in ("", *COMPRESSED)))
KNOWN = f"{', '.join((*TABLES, *TEXTS))}, and text compressed as {', '.join(COMPRESSED)}"

READ_ROWS, READ_BYTES = 1000, 1 << 15  # of a parquet file at a time, at most; READ_BYTES if its row groups are large
SMALL_GROUP = 16 << 20  # bytes of a row group that may be read BATCH_BYTES at a time
FIRST_LINES = 100  # of a .jsonl file, one of which must have the column
TEXT = (pa.string(), pa.large_string(), pa.string_view(), *BINARY)  # Arrow's types that hold text


class RemoteFile:
    """A file at a URL that fsspec knows (s3://, hf://, ...), with the part of pathlib's interface that readers use."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.system, self.path = fsspec.core.url_to_fs(url)
        self.name = self.path.rsplit("/", 1)[-1]

    def __str__(self) -> str:
        return self.url

    def open(self, mode: str) -> BinaryIO:
        return self.system.open(self.path, mode)


def kind_of(path: Path | RemoteFile) -> str:
    """What a file holds, by its name: the last suffix, or the one before a compression's."""
    name = PurePath(path.name)
    return PurePath(name.stem).suffix if name.suffix in COMPRESSED else name.suffix


def check_documents(path: Path | RemoteFile, column: str, encoding: str | None = None) -> None:
    """Check a file's start (a table's schema). UserError if it has no documents in `column`."""
    with read_errors(path):
        check_content(path)
        kind = kind_of(path)
        if kind == ".parquet":
            with _open_parquet(path) as table:
                _check_schema(path, table.schema_arrow, column)
            return
        with _open_decompressed(path) as (file, _):
            if kind == ".arrow":
                _check_schema(path, pa.ipc.open_stream(file).schema, column)
            elif kind in PLAIN:
                next(decode_pieces(file, path, encoding), "")
            else:
                records = [record for _, record in islice(_parse_records(file, path, encoding), FIRST_LINES)]
                if records and not any(column in record for record in records):
                    raise UserError(f"{path} has no {column!r}, but {', '.join(records[0])}: choose with --column")


def read_documents(
    path: Path | RemoteFile, column: str, start: int = 0, separator: str | None = None, encoding: str | None = None
) -> Iterator[Batch]:
    """Read a file's documents, the texts of `column`, from row `start` on. UserError names the file (and a line)."""
    with read_errors(path):
        kind = kind_of(path)
        if kind == ".parquet":
            with _open_parquet(path) as table:
                _check_schema(path, table.schema_arrow, column)
                yield from _parquet_batches(table, column, start)
            return
        with _open_decompressed(path) as (file, done):
            if kind == ".arrow":
                table = pa.ipc.open_stream(file)
                _check_schema(path, table.schema, column)
                yield from _array_batches((batch.column(column) for batch in table), start, lambda _: done())
                return
            if kind not in PLAIN:
                values = (record.get(column) for _, record in _parse_records(file, path, encoding))
                if separator is not None:
                    values = (part for value in values for part in _split(value, separator))
            elif separator is None:
                values = ("".join(decode_pieces(file, path, encoding)) for _ in range(1))
            else:
                values = split_pieces(decode_pieces(file, path, encoding), separator)
            yield from group(values, done, start)


def read_records(path: Path, encoding: str | None = None) -> list[tuple[str, dict]]:
    """The place (file:line, or a number) and the values of each object of a .json(l), or row of a .csv or .parquet.

    Raises:
        UserError: names the file, and the line that is not valid.
    """
    with read_errors(path):
        check_content(path)
        if kind_of(path) == ".parquet":
            return [(f"{path}, row {number}", row) for number, row in enumerate(pq.read_table(path).to_pylist(), 1)]
        with _open_decompressed(path) as (file, _):
            return list(_parse_records(file, path, encoding))


def _parse_records(file: BinaryIO, path: Path | RemoteFile, encoding: str | None) -> Iterator[tuple[str, dict]]:
    pieces = decode_pieces(file, path, encoding)
    delimiters = {".csv": ",;\t", ".tsv": "\t"}.get(kind_of(path))
    return parse_csv(pieces, path, delimiters) if delimiters else parse_json_lines(pieces, path)


def _split(value: object, separator: str) -> Iterable[object]:
    return split_pieces([value], separator) if isinstance(value, str) and value else [value]


@contextmanager
def read_errors(path: Path | RemoteFile | str) -> Iterator[None]:
    """Turn an error of reading a file into a UserError that names the file."""
    try:
        yield
    except UserError:
        raise
    except Exception as failure:
        if "://" in str(path) and not isinstance(failure, pa.ArrowException):  # the libraries of stores raise their own
            remedy = "check the address, the network and the credentials"
        elif isinstance(failure, (OSError, EOFError, lzma.LZMAError, pa.ArrowException)):
            missing = isinstance(failure, FileNotFoundError)
            remedy = "name a file that is there" if missing else "fix it, or fetch it again if it is corrupt"
        else:
            raise
        raise UserError(f"cannot read {path} ({failure}): {remedy}") from failure


def _open_parquet(path: Path | RemoteFile) -> pq.ParquetFile:
    # with a buffer, even a large column of a row group is read in small pieces
    return pq.ParquetFile(path if isinstance(path, Path) else path.open("rb"), buffer_size=1 << 17)


def _check_schema(path: Path | RemoteFile, schema: pa.Schema, column: str) -> None:
    if column not in schema.names:
        found = ", ".join(schema.names)
        raise UserError(f"{path} has no column {column!r}; it has {found}: choose one with --column")
    kind = schema.field(column).type
    if (kind.value_type if pa.types.is_dictionary(kind) else kind) not in (*TEXT, pa.null()):
        raise UserError(f"{path}: column {column!r} holds {kind}, not text: choose another with --column")


def _parquet_batches(file: pq.ParquetFile, column: str, start: int) -> Iterator[Batch]:
    groups = [file.metadata.row_group(i) for i in range(file.metadata.num_row_groups)]
    # rows to read at a time: few, since the size of a group does not tell the length of its longest document, nor how
    # often a dictionary repeats it; but no document is longer than its group
    leaves = [i for i in range(len(file.schema)) if file.schema.column(i).path == column]
    sizes = [sum(group.column(leaf).total_uncompressed_size for leaf in leaves) for group in groups]
    average = max((size / max(1, group.num_rows) for size, group in zip(sizes, groups, strict=True)), default=0)
    read_bytes = BATCH_BYTES if max(sizes, default=0) <= SMALL_GROUP else READ_BYTES
    rows = int(min(READ_ROWS, max(1, read_bytes // (average + 1))))
    # the row group with row `start`, and the rows to skip in it
    ends = np.cumsum([group.num_rows for group in groups], dtype=np.int64)
    first = int(np.searchsorted(ends, start, "right"))
    skip = start - (int(ends[first - 1]) if first else 0)
    batches = file.iter_batches(rows, row_groups=range(first, len(groups)), columns=[column], use_threads=False)
    arrays = (batch.column(column) for batch in batches)
    yield from _array_batches(arrays, skip, lambda read: (start - skip + read) / file.metadata.num_rows)


def _array_batches(arrays: Iterable[pa.Array], skip: int, done: Callable[[int], float]) -> Iterator[Batch]:
    """Batches of a table's column, without its first `skip` rows; done(rows read here) is the share that is read."""
    read = 0
    for array in resize(arrays):
        kept = array.slice(max(0, skip - read))
        read += len(array)
        if len(kept):
            yield arrow_batch(kept, done(read))


@contextmanager
def _open_decompressed(path: Path | RemoteFile) -> Iterator[tuple[BinaryIO, Callable[[], float]]]:
    """A file's decompressed bytes, and a function that returns the share of the file that is read."""
    with pa.OSFile(str(path)) if isinstance(path, Path) else pa.PythonFile(path.open("rb"), "r") as file:
        size = max(1, file.size())
        codec = COMPRESSED.get(PurePath(path.name).suffix)
        # Arrow's streams, unlike zstandard's, raise an error at a truncated file; they do not support xz
        stream = pa.CompressedInputStream(file, codec) if codec not in (None, "xz") else file
        stream = lzma.LZMAFile(file) if codec == "xz" else stream  # noqa: SIM115
        yield stream, lambda: file.tell() / size  # ty: ignore[invalid-yield]
