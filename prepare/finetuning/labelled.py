"""Texts with labels out of a file: .csv with column names, .jsonl, .parquet, and lines of label<TAB>text.

Lines with tabs are taken as they are, without quotes; a first line that names the column of the labels and that of the
texts, or that of the texts behind another, is a header, and without one the label stands first. Labels are text: 1 in
JSON is "1". Bytes that are no UTF-8 become U+FFFD, as lone surrogates in JSON do. null and NaN are empty.
"""

import csv
import io
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from prepare.common.cli import UserError, first_line, replace_surrogates
from prepare.common.files import read_json_lines
from prepare.sources.readers import TEXT

csv.field_size_limit(2**31 - 1)


def read_labelled(path: Path, text: str, label: str) -> tuple[list[tuple[str, str]], int]:
    """The (label, text) pairs of a file, in order, and how many were left out because their text is empty.

    Args:
        text, label: the names of the columns.

    Raises:
        UserError: names the file, the line and what is wrong: no such column, a line without a tab, no JSON, no label.
    """
    rows = list(_rows(path, {"text": text, "label": label}))
    for place, name, _ in rows:
        if not name.strip():
            raise UserError(f"{place}: the label is empty: label it, or remove it")
    pairs = [(name.strip(), words) for _, name, words in rows if words.strip()]
    if not pairs:
        raise UserError(f"{path} holds no text: give a file with a label and a text in each line")
    return pairs, len(rows) - len(pairs)


def read_texts(path: Path, text: str, label: str) -> tuple[list[str], list[str] | None]:
    """The texts of a file to be classified, and their labels where it has them.

    Other than in read_labelled, the label may be missing: where the first line has no tab, every line is a text. An
    empty text is an error, and so is a file without texts.
    """
    columns = {"text": text, "label": label}
    if path.suffix not in (".csv", ".jsonl", ".parquet"):
        lines = _lines(path)
        columns = columns if lines and "\t" in lines[0][1] else {"text": text}
    rows = list(_rows(path, columns, optional=("label",)))
    if not rows:
        raise UserError(f"{path} holds no text: give a file with a text in each line")
    for place, _, words in rows:
        if not words.strip():
            raise UserError(f"{place}: the text is empty: remove it")
    labels = [name.strip() for _, name, _ in rows]
    return [words for *_, words in rows], labels if all(labels) else None


def _rows(path: Path, columns: Mapping[str, str], optional: tuple[str, ...] = ()) -> Iterator[tuple[str, str, str]]:
    """The place (file and line, for messages), label and text of each row."""
    try:
        if path.suffix == ".parquet":
            records = _parquet(path, columns, optional)
        elif path.suffix == ".csv":
            records = _csv(path, columns)
        elif path.suffix == ".jsonl":
            records = _jsonl(path)
        else:
            records = _tabs(path, columns)
        for place, record in records:
            _check_there(place, record, columns, optional)
            label, text = record.get(columns.get("label", "")), record[columns["text"]]
            yield place, _text(label, place), _text(text, place)
    except OSError as failure:
        raise UserError(f"{path} cannot be read ({failure.strerror or failure}): name a file that is there") from None


def _check_there(place: str, names: Collection[str], columns: Mapping[str, str], optional: tuple[str, ...]) -> None:
    """UserError if a column that is wanted, and not optional, is not there."""
    if missing := [name for kind, name in columns.items() if name not in names and kind not in optional]:
        raise UserError(
            f"{place}: there is no column {' and no column '.join(missing)}, but {', '.join(names) or 'nothing'}: name "
            "them (data.text and data.label, or --text-column and --label-column)"
        )


def _text(value: object, place: str) -> str:
    """A value as text: null and NaN are empty, and lone surrogates (as JSON's escapes can produce) become U+FFFD.

    Raises:
        UserError: it is a list, an object, infinite, or otherwise no text.
    """
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    if isinstance(value, str):
        return replace_surrogates(value)
    if value is None or value != value:
        return ""
    if isinstance(value, int | float) and abs(value) != math.inf:
        return str(value)
    raise UserError(f"{place}: {str(value)[:40]!r} is no text: write texts and labels as texts or numbers")


def _lines(path: Path) -> list[tuple[int, str]]:
    """The numbered lines of a file that are not blank."""
    try:
        text = path.read_bytes().decode("utf-8-sig", errors="replace")
    except OSError as failure:
        raise UserError(f"{path} cannot be read ({failure.strerror or failure}): name a file that is there") from None
    lines = enumerate((line.rstrip("\r") for line in text.split("\n")), 1)
    return [(number, line) for number, line in lines if line.strip()]


def _tabs(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    lines = _lines(path)
    if "label" not in columns:
        yield from ((f"{path}:{number}", {columns["text"]: line}) for number, line in lines)
        return
    names = lines[0][1].split("\t") if lines else []
    if columns["text"] in (names if columns["label"] in names else names[1:]):
        _check_names(f"{path}:{lines[0][0]}", names, columns)
        lines = lines[1:]
    else:
        names = [columns["label"], columns["text"]]
    for number, line in lines:
        fields = line.split("\t", len(names) - 1)
        if len(fields) < len(names):
            raise UserError(
                f"{path}:{number} has {len(fields)} of {len(names)} columns ({line[:40]!r}): write "
                f"{'<TAB>'.join(names)} in each line"
            )
        yield f"{path}:{number}", dict(zip(names, fields, strict=True))


def _check_names(place: str, names: Sequence[str], columns: Mapping[str, str]) -> None:
    """UserError if a column that is wanted is there twice."""
    if twice := [name for name in columns.values() if names.count(name) > 1]:
        raise UserError(f"{place} names {names.count(twice[0])} columns {twice[0]!r}: give each a name of its own")


def _csv(path: Path, columns: Mapping[str, str]) -> Iterator[tuple[str, dict[str, str]]]:
    text = path.read_bytes().decode("utf-8-sig", errors="replace")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    remedy = "put texts with commas, quotes or line breaks into quotes, and double the quotes inside them"
    names, place = [], f"{path}:1"  # where a row begins, which may have several lines
    try:
        for fields in reader:
            if fields and not names:
                names = fields
                _check_names(place, names, columns)
            elif fields:
                if len(fields) != len(names):
                    found = f"{len(fields)} columns, but the header has {len(names)}"
                    raise UserError(f"{place} has {found} ({','.join(fields)[:40]!r}): {remedy}")
                yield place, dict(zip(names, fields, strict=True))
            place = f"{path}:{reader.line_num + 1}"
    except csv.Error as failure:
        raise UserError(f"{place} is no CSV ({failure}): {remedy}") from None


def _jsonl(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    return ((f"{path}:{number}", record) for number, record in read_json_lines(path))


def _parquet(path: Path, columns: Mapping[str, str], optional: tuple[str, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    try:
        dataset = pq.ParquetDataset(path)
        names = dataset.schema.names
        _check_names(str(path), names, columns)
        _check_there(str(path), names, columns, optional)
        # no more than these: Python's objects cannot hold all that other columns may have
        table = dataset.read([name for name in names if name in columns.values()])
    except (pa.ArrowException, UnicodeDecodeError) as failure:  # of a column's name
        raise UserError(f"{path} is no parquet file ({first_line(failure)}): write it again") from None
    fields = [(field.name, _readable(path, field)) for field in table.schema]
    records = table.cast(pa.schema(fields)).to_pylist()
    yield from ((f"{path}, row {row}", record) for row, record in enumerate(records, 1))


def _readable(path: Path, field: pa.Field) -> pa.DataType:
    """The kind to read a column as: text as bytes, which need not be UTF-8. UserError if it holds no text or number."""
    kind = field.type.value_type if pa.types.is_dictionary(field.type) else field.type
    if kind in TEXT or pa.types.is_fixed_size_binary(kind):
        return pa.large_binary()
    if pa.types.is_null(kind) or (pa.types.is_primitive(kind) and not pa.types.is_temporal(kind)):
        return kind
    raise UserError(
        f"{path}: column {field.name!r} holds {field.type}, no text: write texts and labels as texts or numbers"
    )
