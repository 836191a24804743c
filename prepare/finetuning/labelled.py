"""Read labelled texts from a file: .csv with column names, .jsonl or .json, .parquet, or lines of label<TAB>text.

In lines with tabs, quotes are ordinary characters. The first line is a header if it names the columns; without one the
label comes first. Labels that are numbers become text, null and NaN are empty. All but .parquet are UTF-8 or in a
stated encoding, or a byte-order mark decides.
"""

from itertools import chain
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import read_text
from prepare.sources.readers import kind_of, read_records


def read_labelled(path: Path, text: str, label: str, encoding: str | None = None) -> tuple[list[tuple[str, str]], int]:
    """The (label, text) pairs of a file, in order, and the number of rows that were left out because the text is empty.

    Args:
        text, label: the names of the columns.

    Raises:
        UserError: names the file, and the missing column, the row without a label, or the invalid line.
    """
    columns = _read_columns(path, text, label, encoding, needed=(text, label))
    rows = [
        (_as_text(kind).strip(), _as_text(words)) for kind, words in zip(columns[label], columns[text], strict=True)
    ]
    for number, (kind, _) in enumerate(rows, 1):
        if not kind:
            raise UserError(f"{path}, row {number}: the label is empty: label it, or remove it")
    pairs = [(kind, words) for kind, words in rows if words.strip()]
    if not pairs:
        raise UserError(f"{path} holds no text: give a file with a label and a text in each line")
    return pairs, len(rows) - len(pairs)


def read_texts(path: Path, text: str, label: str, encoding: str | None = None) -> tuple[list[str], list[str] | None]:
    """The texts of a file to classify, and their labels if all have one.

    Unlike in read_labelled the label may be missing, and lines without tabs are texts; an empty text is an error.
    """
    columns = _read_columns(path, text, label, encoding, needed=(text,))
    texts = [_as_text(words) for words in columns[text]]
    if not texts:
        raise UserError(f"{path} holds no text: give a file with a text in each line")
    for number, words in enumerate(texts, 1):
        if not words.strip():
            raise UserError(f"{path}, row {number}: the text is empty: remove it")
    labels = [_as_text(kind).strip() for kind in columns.get(label, [])]
    return texts, labels if labels and all(labels) else None


def _read_columns(path: Path, text: str, label: str, encoding: str | None, needed: tuple[str, ...]) -> dict[str, list]:
    """All columns of a file by name. UserError if it lacks one of `needed`."""
    if kind_of(path) in (".parquet", ".jsonl", ".ndjson", ".json", ".csv"):
        records = [record for _, record in read_records(path, encoding)]
        columns = {name: [record.get(name) for record in records] for name in dict.fromkeys(chain(*records))}
    else:
        columns = _read_tabs(path, text, label, encoding)
    for name in needed:
        if name not in columns:
            raise UserError(
                f"{path} has no column {name}, but {', '.join(columns) or 'nothing'}: name the columns (data.text and "
                "data.label, or --text-column and --label-column)"
            )
    return columns


def _read_tabs(path: Path, text: str, label: str, encoding: str | None) -> dict[str, list]:
    lines = [line.rstrip("\r") for line in read_text(path, encoding).split("\n")]
    numbered = [(number, line) for number, line in enumerate(lines, 1) if line.strip()]
    names = numbered[0][1].split("\t") if numbered else []
    if text in (names if label in names else names[1:]):
        numbered = numbered[1:]
    elif len(names) == 1:
        return {text: [line for _, line in numbered]}
    else:
        names = [label, text]
    for number, line in numbered:
        if line.count("\t") + 1 < len(names):
            raise UserError(f"{path}:{number} ({line[:40]!r}): write {'<TAB>'.join(names)} in each line")
    rows = [line.split("\t", len(names) - 1) for _, line in numbered]
    return {name: [row[column] for row in rows] for column, name in enumerate(names)}


def _as_text(value: Any) -> str:
    """A value as text; null and NaN are empty."""
    if isinstance(value, bytes):
        return value.decode("utf-8", errors="replace")
    return "" if value is None or value != value else str(value)
