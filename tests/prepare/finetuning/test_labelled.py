"""Labelled texts: every format gives the same pairs, and every mistake names its place."""

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


def test_the_sms_spam_collection(real_data: Path) -> None:
    path = real_data / "SMSSpamCollection"
    pairs, empty = read_labelled(path, "text", "label")
    assert (len(pairs), empty, sum(label == "spam" for label, _ in pairs)) == (5574, 0, 747)
    assert "".join(f"{label}\t{text}\n" for label, text in pairs) == path.read_text()


def test_empty_texts_are_counted_and_left_out(tmp_path: Path) -> None:
    path = tmp_path / "texts"
    path.write_text("ham\tone\nspam\t\nham\t  \nspam\ttwo\n")
    assert read_labelled(path, "text", "label") == ([("ham", "one"), ("spam", "two")], 2)


def test_a_csv_as_spreadsheets_write_it(tmp_path: Path) -> None:
    """Unnamed columns, blank lines, a long text, Latin-1, and labels that begin with a zero."""
    path, long = tmp_path / "texts.csv", "word " * 1_000_000
    path.write_bytes(f'v1,v2,,\r\n\r\n01,"one, two\n",,\r\n1,{long},,\r\n1,\xa3900,,\r\n'.encode("latin-1"))
    pairs = [("01", "one, two\n"), ("1", long), ("1", "£900")]
    assert read_labelled(path, "v2", "v1", "latin-1") == (pairs, 0)
    with pytest.raises(UserError, match=r"texts\.csv: byte [\d,]+ \(0xa3\)"):
        read_labelled(path, "v2", "v1")
    content = "label\ttext\nham\tsee you at the café\n"
    for encoding in ("utf-8-sig", "utf-16"):
        path.with_suffix("").write_bytes(content.encode(encoding))
        assert read_labelled(path.with_suffix(""), "text", "label") == ([("ham", "see you at the café")], 0)


def test_values_that_are_not_text_become_text(tmp_path: Path) -> None:
    table, lines = tmp_path / "a.parquet", tmp_path / "a.jsonl"
    texts = pa.array([b"one", "né".encode(), b"\xff", None], pa.binary())
    pq.write_table(pa.table({"label": [0.0, 1.0, 0.0, 1.0], "text": texts}), table)
    assert read_labelled(table, "text", "label") == ([("0.0", "one"), ("1.0", "né"), ("0.0", "\ufffd")], 1)
    records = [{"label": 1, "text": "one"}, {"label": True, "text": 2.5}, {"label": "b", "text": None}]
    lines.write_text("".join(json.dumps(record) + "\n" for record in records))
    assert read_labelled(lines, "text", "label") == ([("1", "one"), ("True", "2.5")], 1)


def test_texts_to_classify_need_no_labels(tmp_path: Path) -> None:
    path = tmp_path / "lines.txt"
    path.write_text("one\n\ntwo words\n")
    assert read_texts(path, "text", "label") == (["one", "two words"], None)
    path.write_text("id\ttext\n1\tone\n2\ttwo\twords\n")
    assert read_texts(path, "text", "label") == (["one", "two\twords"], None)
    with pytest.raises(UserError, match=r"lines\.txt has no column label, but id, text"):
        read_labelled(path, "text", "label")
    path.write_text("text\tabout texts\nother\ttext\n")  # no header: a label like the column's name
    assert read_texts(path, "text", "label") == (["about texts", "text"], ["text", "other"])


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "message,kind\nhi,ham\n", r"a\.csv has no column text, but message, kind"),
        ("a.csv", "text,label\nhi,ham\nhi, there,ham\n", r"a\.csv:3 is not valid CSV \(expected 2 columns, got 3\)"),
        ("a.jsonl", '{"text": "hi"}\n', r"a\.jsonl has no column label, but text"),
        ("a.jsonl", '{"text": "hi", "label": "ham"}\n{"text": "ho"}\n', r"a\.jsonl, row 2: the label is empty"),
        ("a.jsonl", '{"text": "hi", "label": "ham"}\n{"text" "ho"}\n', r"a\.jsonl:2 is not valid JSON"),
        ("a", "ham\thi\nno tab here\n", "a:2 .*label<TAB>text"),
        ("a", "ham\thi\n\tho\n", "a, row 2: the label is empty"),
        ("a.parquet", "PAR0", r"cannot read .*a\.parquet"),
        ("a.tsv", "label\ttext\n", "holds no text"),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_labelled(tmp_path / name, "text", "label")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "text,label\n", "has no column text"),
        ("a.jsonl", '{"text": " "}\n', r"a\.jsonl, row 1: the text is empty"),
    ],
)
def test_every_text_to_classify_is_needed(tmp_path: Path, name: str, text: str, message: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError, match=message):
        read_texts(tmp_path / name, "text", "label")


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("absent", "absent.csv", "absent.jsonl", "absent.parquet"):
        with pytest.raises(UserError, match=f"cannot read .*{name}.*: name a file that is there"):
            read_labelled(tmp_path / name, "text", "label")
