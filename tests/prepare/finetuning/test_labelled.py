"""Labelled texts: every format gives the same pairs, and every mistake names its line."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prepare.common.cli import UserError
from prepare.finetuning.labelled import read_labelled, read_texts

PAIRS = [("ham", 'say "hi", then\tgo'), ("spam", "WIN £900 now"), ("ham", "né à 9h")]


def write(folder: Path, suffix: str) -> Path:
    path = folder / f"texts{suffix}"
    records = [{"text": text, "label": label} for label, text in PAIRS]
    if suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path)
    elif suffix == ".jsonl":
        path.write_text("".join(json.dumps(record) + "\n\n" for record in records))
    elif suffix == ".csv":
        quoted = "".join('"{}",{}\n'.format(text.replace('"', '""'), label) for label, text in PAIRS)
        path.write_text("text,label\n" + quoted)
    elif suffix == ".tsv":
        path.write_text("label\ttext\r\n" + "".join(f"{label}\t{text}\r\n" for label, text in PAIRS))
    else:
        path.write_text("".join(f"{label}\t{text}\n" for label, text in PAIRS))
    return path


@pytest.mark.parametrize("suffix", [".parquet", ".jsonl", ".csv", ".tsv", ""])
def test_every_format_gives_the_same_pairs(tmp_path: Path, suffix: str) -> None:
    path = write(tmp_path, suffix)
    assert read_labelled(path, "text", "label") == (PAIRS, 0)
    assert read_texts(path, "text", "label") == ([text for _, text in PAIRS], [label for label, _ in PAIRS])


def test_empty_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text("ham\tone\nspam\t\nham\t  \nspam\ttwo\n")
    assert read_labelled(path, "text", "label") == ([("ham", "one"), ("spam", "two")], 2)


def test_a_csv_may_hold_unnamed_columns_blank_lines_and_long_texts(tmp_path: Path) -> None:
    path, long = tmp_path / "texts.csv", "word " * 100_000
    path.write_text(f'label,text,,\r\n\r\nham,"one, two\n",,\r\nspam,{long},,\r\n')
    assert read_labelled(path, "text", "label") == ([("ham", "one, two\n"), ("spam", long)], 0)


def test_values_that_are_no_texts_become_what_they_say(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    texts = [b"one", "né".encode(), b"\xff", None]
    pq.write_table(pa.table({"label": [0.0, 1.0, 0.0, 1.0], "text": pa.array(texts, pa.binary())}), table)
    assert read_labelled(table, "text", "label") == ([("0.0", "one"), ("1.0", "né"), ("0.0", "\ufffd")], 1)
    records = [{"label": 1, "text": "\ud83d"}, {"label": True, "text": 2.5}, {"label": "a\ud83d", "text": "\U0001f600"}]
    lines.write_text("".join(json.dumps({"text": None, **record}) + "\n" for record in [*records, {"label": "b"}]))
    expected = [("1", "\ufffd"), ("True", "2.5"), ("a\ufffd", "\U0001f600")]
    assert read_labelled(lines, "text", "label") == (expected, 1)


NO_UTF8 = pa.array([b"bad \xff", b"ok"])


@pytest.mark.parametrize(
    "neighbour",
    [
        pa.array([2**62, 1], pa.timestamp("us")),
        pa.array([2**30, 1], pa.date32()),
        pa.array([2**62, 1], pa.duration("s")),
        pa.array([1, 1], pa.timestamp("us", tz="Mars/Base")),
        NO_UTF8.view(pa.string()),
    ],
    ids=lambda array: str(array.type),
)
def test_what_a_parquet_holds_beside_texts_and_labels_is_not_looked_at(tmp_path: Path, neighbour: pa.Array) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one", "two"], "other": neighbour, "label": ["ham", "spam"]}), path)
    assert read_labelled(path, "text", "label") == ([("ham", "one"), ("spam", "two")], 0)
    with pytest.raises(UserError, match=r"a\.parquet: there is no column kind, but text, other, label"):
        read_labelled(path, "text", "kind")


@pytest.mark.parametrize(
    "texts",
    [
        NO_UTF8,
        NO_UTF8.cast(pa.binary_view()),
        NO_UTF8.view(pa.string()),
        NO_UTF8.cast(pa.large_binary()).view(pa.large_string()),
        NO_UTF8.view(pa.string()).dictionary_encode(),
        pa.array([b"bad \xff", b"ok   "], pa.binary(5)),
    ],
    ids=lambda array: str(array.type),
)
def test_a_parquet_s_text_that_is_no_utf8(tmp_path: Path, texts: pa.Array) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": texts, "label": texts}), path)
    (label, text), (_, other) = read_labelled(path, "text", "label")[0]
    assert label == text.strip() == "bad \ufffd"
    assert other.strip() == "ok"


def test_two_columns_of_a_parquet_with_one_name(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["one"], ["two"], ["1"], ["2"], ["ham"]], names=["text", "text", "x", "x", "label"]), path)
    with pytest.raises(UserError, match=r"a\.parquet names 2 columns 'text': give each a name"):
        read_labelled(path, "text", "label")
    assert read_texts(path, "label", "none") == (["ham"], None)
    with pytest.raises(
        UserError, match=r"a\.parquet: there is no column a and no column b, but text, text, x, x, label"
    ):
        read_labelled(path, "a", "b")


@pytest.mark.parametrize(
    "values", [pa.array([2**62], pa.timestamp("us")), pa.array([["one"]])], ids=lambda array: str(array.type)
)
def test_a_column_of_a_parquet_that_holds_no_text(tmp_path: Path, values: pa.Array) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": values, "label": ["ham"]}), path)
    with pytest.raises(UserError, match=r"a\.parquet: column 'text' holds (timestamp|list).*, no text"):
        read_labelled(path, "text", "label")


def test_texts_to_classify_need_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo words\n")
    assert read_texts(path, "text", "label") == (["one", "two words"], None)


def test_a_header_of_tabs_may_name_no_label(tmp_path: Path) -> None:
    path = tmp_path / "lines.tsv"
    path.write_text("id\ttext\n1\tone\n2\ttwo\twords\n")
    assert read_texts(path, "text", "label") == (["one", "two\twords"], None)
    with pytest.raises(UserError, match=r"lines\.tsv:2: there is no column label, but id, text"):
        read_labelled(path, "text", "label")
    path.write_text("text\tabout texts\nother\ttext\n")  # no header: a label like the column's name
    assert read_texts(path, "text", "label") == (["about texts", "text"], ["text", "other"])


@pytest.mark.parametrize(("name", "text"), [("a.csv", ""), ("a.csv", "text,label\n"), ("a.tsv", ""), ("a.jsonl", "\n")])
def test_a_file_without_texts_is_an_error(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=f"{name} holds no text"):
        read_texts(tmp_path / name, "text", "label")


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "message,kind\nhi,ham\n", ["a.csv:2", "no column text and no column label", "message, kind"]),
        ("a.jsonl", '{"text": "hi", "label": "ham"}\n{"text": "ho"}\n', ["a.jsonl:2", "no column label"]),
        ("a.jsonl", '{"text": "hi", "label": "ham"}\n{"text" "ho"}\n', ["a.jsonl:2", "not valid JSON", "column 9"]),
        ("a.jsonl", "[1]\n", ["a.jsonl:1", "not a JSON object"]),
        ("a", "ham\thi\nno tab here\n", ["a:2", "1 of 2 columns", "label<TAB>text"]),
        ("a", "ham\thi\n\tho\n", ["a:2", "the label is empty"]),
        ("a", "\n", ["holds no text"]),
        ("a.jsonl", '{"text": {"a": 1}, "label": "ham"}\n', ["a.jsonl:1", "is no text"]),
        ("a.jsonl", '{"text": "hi", "label": ["ham"]}\n', ["a.jsonl:1", "['ham']", "is no text"]),
        ("a.jsonl", '{"text": "hi", "label": 1e999}\n', ["a.jsonl:1", "'inf' is no text"]),
        ("a.jsonl", '{"text": "hi", "label": NaN}\n', ["a.jsonl:1", "the label is empty"]),
        ("a.csv", "text,label\nhi,ham\nhi, there,ham\n", ["a.csv:3 has 3 columns", "header has 2", "into quotes"]),
        ("a.csv", "label,text\nham,hi\nspam\n", ["a.csv:3 has 1 columns", "header has 2"]),
        ("a.csv", 'text,label\nhi,ham\n"ho,ham\nhi,ham\nho,spam\n', ["a.csv:3 is no CSV", "into quotes"]),
        ("a.csv", 'text,label\n"one\ntwo",ham\n"ho"ho,ham\n', ["a.csv:4 is no CSV", "double the quotes"]),
        ("a.csv", "text,label,text\nhi,ham,ho\n", ["a.csv:1 names 2 columns 'text'"]),
        ("a.tsv", "text\tlabel\ttext\nhi\tham\tho\n", ["a.tsv:1 names 2 columns 'text'"]),
        ("a.parquet", "PAR0", ["no parquet file"]),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(UserError) as failure:
        read_labelled(path, "text", "label")
    for word in words:
        assert word in str(failure.value)


def test_a_parquet_s_column_whose_name_is_no_utf8(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["one"], "label": ["ham"], "naïve": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace("ï".encode(), b"\xefx"))
    with pytest.raises(UserError, match=r"a\.parquet is no parquet file \('utf-8' codec"):
        read_labelled(path, "text", "label")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        read_labelled(tmp_path / "none.csv", "text", "label")
