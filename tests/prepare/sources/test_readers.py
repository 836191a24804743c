"""Documents from every kind of file: unusual values, corrupt files, batches, resuming at a row."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prepare.common.cli import UserError
from prepare.sources.batches import BATCH_BYTES, group
from prepare.sources.readers import check_documents, read_documents
from tests.helpers.documents import COMPRESS, write_documents

TEXTS = ["one", "", "two\r\nlines", "naïve 日本 😀", "<|endoftext|>", "x" * 10_000]


def read(path: Path, column: str = "text") -> tuple[list[str], int]:
    batches = list(read_documents(path, column))
    assert [batch.done for batch in batches] == sorted(batch.done for batch in batches)
    return [text for batch in batches for text in batch.texts.to_pylist()], sum(batch.skipped for batch in batches)


KINDS = [
    "parquet",
    "arrow",
    "jsonl",
    "jsonl.gz",
    "ndjson.zst",
    "jsonl.bz2",
    "jsonl.xz",
    "json",
    "json.gz",
    "csv",
    "csv.xz",
]


LFS_POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 146946961\n"


@pytest.fixture(params=KINDS)
def path(request, tmp_path) -> Path:
    return tmp_path / f"a.{request.param}"


def test_every_kind_gives_its_texts_in_order(path):
    write_documents(path, [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    check_documents(path, "text")
    assert read(path) == (TEXTS, 0)


def test_another_column_and_nulls(path):
    write_documents(path, [{"text": "no", "body": text} for text in ["a", None, "b", None]])
    assert read(path, "body") == ((["a", "", "b", ""], 0) if ".csv" in path.name else (["a", "b"], 2))


def test_a_missing_column_is_named_before_and_while_reading(path):
    write_documents(path, [{"body": "a", "url": "b"}])
    with pytest.raises(UserError, match=r"a\.\w+.* 'text'.*body, url.*--column"):
        check_documents(path, "text")
    if "json" in path.name and ".csv" not in path.name:
        write_documents(path, [{"body": "a"}, {"text": "b"}])
        check_documents(path, "text")
        assert read(path) == (["b"], 1)


def test_truncated_or_corrupt_files_are_named(path):
    if path.suffix == ".csv":
        return  # any text will do
    write_documents(path, [{"text": f"some text {i * i}"} for i in range(20_000)])
    content = path.read_bytes()
    for corrupt in (content[: len(content) // 2], content[:-3], b"not this kind of file, surely"):
        path.write_bytes(corrupt)
        with pytest.raises(UserError, match=str(path)):
            read(path)


def test_concatenated_archives(tmp_path):
    for suffix, compress in COMPRESS.items():
        path = tmp_path / f"a.jsonl{suffix}"
        path.write_bytes(compress(b'{"text": "a"}\n') * 2)
        assert read(path) == (["a", "a"], 0)


def test_text_is_read_from_every_compression(tmp_path):
    for suffix, compress in {"": bytes, **COMPRESS}.items():
        path = tmp_path / f"a.md{suffix}"
        path.write_bytes(compress(b"\xef\xbb\xbfone\r\n\r\ntwo"))
        check_documents(path, "text")
        assert read(path) == (["one\r\n\r\ntwo"], 0)  # a document
        parts = [text for part in read_documents(path, "text", 1, "\r\n\r\n") for text in part.texts.to_pylist()]
        assert parts == ["two"]
    path = tmp_path / "empty.txt"
    path.touch()
    assert read(path) == ([""], 0)


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.csv", ";"), ("a.csv", "\t"), ("a.tsv", "\t")])
def test_csv_of_every_spreadsheet(tmp_path, name, delimiter):
    path = tmp_path / name
    rows = ["id;text;more", '1;"two\r\nlines; ""quoted""";x', "2.5;;", "x;naïve;1"]
    path.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(rows).replace(";", delimiter).encode())
    check_documents(path, "text")
    assert read(path) == ([f'two\r\nlines{delimiter} "quoted"', "", "naïve"], 0)
    assert read(path, "id") == (["1", "2.5", "x"], 0)
    if name == "a.tsv":
        path.write_text("text\nno tab, but a comma\n")
        assert read(path) == (["no tab, but a comma"], 0)


def test_jsonl_oddities(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "after a byte-order mark"}\r',
        b"",
        b"   ",
        b'{"text": 5}',
        b'{"text": ["list"]}',
        b'{"other": "no text"}',
        b'{"text": "lone \\ud800 surrogate", "id": NaN}',
        b'{"text": "no line end"}',
    ]
    path.write_bytes(b"\n".join(lines))
    check_documents(path, "text")
    texts = ["after a byte-order mark", "lone \ufffd surrogate", "no line end"]
    assert read(path) == (texts, 3)


def test_malformed_lines_are_named_by_file_and_line(tmp_path):
    path = tmp_path / "a.jsonl"
    for bad in (b"{", b"[1]"):
        path.write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n' + bad + b"\n")
        for work in (check_documents, read):
            with pytest.raises(UserError, match=r"a\.jsonl:4 is not"):
                work(path, "text")


def test_json_that_is_neither_lines_nor_an_array_of_objects(tmp_path):
    path = tmp_path / "a.json"
    for bad, place in ((b'[{"text": "a"},\n {"text" "b"}]', "json:2"), (b"[[1]]", "json, entry 1"), (b"{\n", "json:1")):
        path.write_bytes(b"\xef\xbb\xbf" + bad)
        for work in (check_documents, read):
            with pytest.raises(UserError, match=rf"a\.{place} is not"):
                work(path, "text")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        *(
            (f"a.{kind}", LFS_POINTER, "Git LFS pointer.*git lfs pull")
            for kind in ("txt", "jsonl", "parquet", "txt.gz")
        ),
        ("a.txt", b"<!DOCTYPE html>\n<html></html>", "a web page.*again"),
        ("a.jsonl.gz", b"\n<html></html>", "a web page.*again"),
        *(
            (f"a{kind}", compress(b"text"), compressed)
            for compressed, compress in COMPRESS.items()
            for kind in (".txt", ".csv")
        ),
        ("a.txt", b"PK\x03\x04...", ".zip"),
        ("a.jsonl", b"PAR1...", ".parquet"),
    ],
)
def test_what_a_file_holds_decides_over_its_name(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError, match=message):
        check_documents(tmp_path / name, "text")


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_text_in_another_encoding_is_refused_unless_it_is_stated(tmp_path, name):
    path, content = tmp_path / name, '{"text": "café"}\n'
    for encoding in ("utf-16", "cp1252"):
        path.write_bytes(content.encode(encoding))
        stated = None if encoding == "utf-16" else encoding
        check_documents(path, "text", stated)
        found = [text for batch in read_documents(path, "text", encoding=stated) for text in batch.texts.to_pylist()]
        assert found == ["café" if name == "a.jsonl" else content]
    for work in (check_documents, read):
        with pytest.raises(UserError, match=r"byte 13 \(0xe9\)"):
            work(path, "text")


def test_parquet_kinds_of_text(tmp_path):
    path = tmp_path / "a.parquet"
    values = ["a", None, "é"]
    for kind in (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int32(), pa.string())):
        pq.write_table(pa.table({"text": pa.array(values, pa.string()).cast(kind)}), path)
        check_documents(path, "text")
        assert read(path) == (["a", "é"], 1), kind
    bad = pa.array([b"bad \xff", None, "é".encode()], pa.binary())
    for array in (bad, bad.cast(pa.large_binary()), bad.cast(pa.binary_view()), bad.view(pa.string())):
        pq.write_table(pa.table({"nested": [{"a": 1, "b": 2}] * 3, "text": array}), path)
        check_documents(path, "text")
        assert read(path) == (["bad \ufffd", "é"], 1)
    for array, kind in ((pa.array([1, 2]), "int64"), (pa.array([["a"], ["b"]]), "list")):
        pq.write_table(pa.table({"text": array}), path)
        with pytest.raises(UserError, match=f"'text' holds {kind}.*not text"):
            check_documents(path, "text")


@pytest.mark.parametrize("kind", [pa.string(), pa.null()])
@pytest.mark.parametrize("rows", [0, 2])
def test_parquet_without_any_text(tmp_path, kind, rows):
    pq.write_table(pa.table({"text": pa.array([None] * rows, kind)}), tmp_path / "a.parquet")
    check_documents(tmp_path / "a.parquet", "text")
    assert read(tmp_path / "a.parquet") == ([], rows)


def test_group_counts_what_is_not_text():
    batches = list(group(["a", None, 3, b"x", "", float("nan")], lambda: 0.5))
    assert [(batch.texts.to_pylist(), batch.skipped, batch.done) for batch in batches] == [(["a", ""], 4, 0.5)]
    assert list(group([], lambda: 1.0)) == []
    most = BATCH_BYTES // 64
    assert [batch.read for batch in group([None] * (most + 1), lambda: 0.5)] == [most, 1]


def test_long_documents_come_few_at_a_time(tmp_path):
    texts = [chr(97 + i) * 3_000_000 for i in range(8)]
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=False)
    batches = list(read_documents(tmp_path / "a.parquet", "text"))
    assert [batch.texts.to_pylist() for batch in batches] == [[text] for text in texts]


@pytest.mark.parametrize("dictionary", [True, False])
def test_batches_are_small_whatever_the_row_group_s_size_says(tmp_path, dictionary):
    """A dictionary's text counts once in it, and few long documents do not tell among many empty ones."""
    texts = ["a" * 80_000, "b" * 80_000] * 1000 if dictionary else [""] * 50_000 + ["c" * 1_000_000] * 20
    pq.write_table(pa.table({"text": texts}), tmp_path / "a.parquet", use_dictionary=dictionary)
    before, row = pa.total_allocated_bytes(), 0
    for batch in read_documents(tmp_path / "a.parquet", "text"):
        assert batch.texts.to_pylist() == texts[row : row + batch.read]
        row += batch.read
        assert sum(buffer.size for buffer in batch.texts.buffers() if buffer) <= BATCH_BYTES
        assert pa.total_allocated_bytes() - before < 128 << 20
    assert row == len(texts)


def test_small_batches_hold_the_same_and_reading_resumes_at_any_row(path, monkeypatch):
    skipped = "" if ".csv" in path.name else None  # a .csv has no nulls
    values = [skipped if i % 7 == 3 else f"document {i} " * (i % 50) for i in range(3000)]
    write_documents(path, [{"text": value} for value in values])
    monkeypatch.setattr("prepare.sources.batches.BATCH_BYTES", 5000)
    for start in (0, 1, 7, 2000, 2001, 2999, 3000, 5000):
        row, found, batches = start, {}, list(read_documents(path, "text", start))
        for batch in batches:
            found |= {row + place: text for place, text in zip(batch.rows, batch.texts.to_pylist(), strict=True)}
            assert batch.lengths().tolist() == [len(text) for text in batch.texts.to_pylist()]
            row += batch.read
        assert found == {i: value for i, value in enumerate(values) if value is not None and i >= start}
        assert row == max(start, len(values))
        assert start or len(batches) > 50


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "日"])
@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_separated_documents(tmp_path, monkeypatch, separator, batch):
    monkeypatch.setattr("prepare.sources.batches.BATCH_BYTES", batch)
    texts = ["one\r\n1", "", "two 本", "three", "four"]
    path = tmp_path / "a.txt"
    for end in ("", separator):
        path.write_bytes(b"\xef\xbb\xbf" + (separator.join(texts) + end).encode())
        for start in range(6):
            found = [text for part in read_documents(path, "text", start, separator) for text in part.texts.to_pylist()]
            assert found == texts[start:]
    path = tmp_path / "a.jsonl"  # here each text is divided
    values = [separator.join(texts[:3]), None, "", separator.join(texts[3:])]
    path.write_text("".join(json.dumps({"text": value}) + "\n" for value in values))
    for start, expected in ((0, [*texts[:3], "", *texts[3:]]), (2, [texts[2], "", *texts[3:]]), (5, texts[3:])):
        found = [text for part in read_documents(path, "text", start, separator) for text in part.texts.to_pylist()]
        assert found == expected
