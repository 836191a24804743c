"""Documents out of every kind of file, the odd ones, and the damaged ones."""

import gzip
import io
import json
import os
import random
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zstandard

from prepare.common.cli import UserError
from prepare.sources import readers as sources
from prepare.sources.readers import LocalFile, check_documents, find_inputs, group, read_documents

TEXTS = ["one", "", "two\r\nlines", "naïve 日本 😀", "<|endoftext|>", "x" * 10_000]


def write(path: Path, records: list[dict]) -> Path:
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines))
    else:
        path.write_bytes(lines)
    return path


def read(path: Path, column: str = "text") -> tuple[list[str], int]:
    batches = list(read_documents(path, column))
    assert [batch.done for batch in batches] == sorted(batch.done for batch in batches)
    return [text for batch in batches for text in batch.texts.to_pylist()], sum(batch.skipped for batch in batches)


@pytest.fixture(params=["parquet", "jsonl", "jsonl.gz", "jsonl.zst"])
def path(request, tmp_path) -> Path:
    return tmp_path / f"a.{request.param}"


def test_every_kind_gives_its_texts_in_order(path):
    write(path, [{"id": i, "text": text} for i, text in enumerate(TEXTS)])
    check_documents(path, "text")
    assert read(path) == (TEXTS, 0)


def test_another_column_and_nulls(path):
    write(path, [{"text": "no", "body": text} for text in ["a", None, "b", None]])
    assert read(path, "body") == (["a", "b"], 2)


def test_small_batches_hold_the_same(path, monkeypatch):
    texts = [f"document {i} " * (i % 50) for i in range(3000)]
    write(path, [{"text": text} for text in texts])
    whole = read(path)
    monkeypatch.setattr(sources, "BATCH_BYTES", 5000)
    assert len(list(read_documents(path, "text"))) > 50
    assert read(path) == whole == (texts, 0)


def test_a_missing_column_is_named_before_and_while_reading(path):
    write(path, [{"body": "a", "url": "b"}])
    with pytest.raises(UserError, match=r"a\.\w+.* 'text'.*body, url.*--column"):
        check_documents(path, "text")
    if "json" in path.name:
        write(path, [{"body": "a"}, {"text": "b"}])
        check_documents(path, "text")
        assert read(path) == (["b"], 1)


def test_cut_short_or_damaged_files_are_named(path):
    write(path, [{"text": f"some text {i * i}"} for i in range(20_000)])
    whole = path.read_bytes()
    for damaged in (whole[: len(whole) // 2], whole[:-3], b"not this kind of file, surely"):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match=str(path)):
            read(path)


def test_concatenated_archives(tmp_path):
    line = b'{"text": "a"}\n'
    (tmp_path / "a.jsonl.gz").write_bytes(gzip.compress(line) + gzip.compress(line))
    (tmp_path / "a.jsonl.zst").write_bytes(zstandard.compress(line) + zstandard.compress(line))
    assert read(tmp_path / "a.jsonl.gz") == read(tmp_path / "a.jsonl.zst") == (["a", "a"], 0)


def test_a_window_that_is_too_large_is_no_damage(tmp_path):
    """As `zstd --long=30` writes it."""
    parameters = zstandard.ZstdCompressionParameters(window_log=28, compression_level=1)
    stream = zstandard.ZstdCompressor(compression_params=parameters).compressobj()  # whose length is not said before
    path = tmp_path / "a.jsonl.zst"
    path.write_bytes(stream.compress(b'{"text": "a"}\n') + stream.flush())
    for work in (check_documents, read):
        with pytest.raises(UserError, match=r"a\.jsonl\.zst .*: recompress it without --long$"):
            work(path, "text")


def test_jsonl_oddities(tmp_path):
    path = tmp_path / "a.jsonl"
    lines = [
        b'\xef\xbb\xbf{"text": "after a byte-order mark"}\r',
        b"",
        b"   ",
        b'{"text": 5}',
        b'{"text": ["list"]}',
        b'{"other": "no text"}',
        b'{"text": "bad \xff utf-8"}',
        b'{"text": "lone \\ud800 surrogate", "id": NaN}',
        b'{"text": "no line end"}',
    ]
    path.write_bytes(b"\n".join(lines))
    check_documents(path, "text")
    texts = ["after a byte-order mark", "bad \ufffd utf-8", "lone \ufffd surrogate", "no line end"]
    assert read(path) == (texts, 3)


@pytest.mark.parametrize("bad", [b"{", b'{"text": "a"', b"[1]", b'"text"', b"7", b"nonsense", b"[" * 100_000])
def test_malformed_lines_are_named_by_file_and_line(tmp_path, bad):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "a"}\n\n{"text": "b"}\n' + bad + b"\n")
    check_documents(path, "text")
    with pytest.raises(UserError, match=r"a\.jsonl, line 4: .*mend or delete"):
        read(path)


def test_text_is_one_document(tmp_path):
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbfone\r\n\r\ntwo \xff\n")
    check_documents(path, "text")
    assert read(path) == (["one\r\n\r\ntwo \ufffd\n"], 0)
    path.write_bytes(b"")
    assert read(path) == ([""], 0)


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


def test_parquet_with_two_columns_of_a_name(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "one"]), path)
    with pytest.raises(UserError, match=r"a\.parquet has 2 columns 'text'"):
        check_documents(path, "text")
    assert read(path, "one") == (["c"], 0)


def test_parquet_with_a_column_whose_name_is_no_utf8(tmp_path):
    path = tmp_path / "a.parquet"
    pq.write_table(pa.table({"text": ["a"], "naïve": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace("ï".encode(), b"\xefx"))
    with pytest.raises(UserError, match=r"cannot read .*a\.parquet \('utf-8' codec .*get it again"):
        check_documents(path, "text")


def test_parquet_columns_with_dots_in_their_names(tmp_path):
    """Parquet's paths do not tell them from the fields of a struct."""
    path, texts, wrong = tmp_path / "a.parquet", ["a", "b"], ["wrong", "wrong"]
    for columns, column in (
        ({"a": [{"b": "wrong"}] * 2, "a.b": texts}, "a.b"),
        ({"a.b": texts, "a": [{"b": "wrong"}] * 2}, "a.b"),
        ({"text.clean": wrong, "text": texts}, "text"),
        ({"text": texts, "text.clean": wrong}, "text"),
    ):
        pq.write_table(pa.table(columns), path)
        check_documents(path, column)
        assert read(path, column) == (texts, 0)


@pytest.mark.parametrize("kind", [pa.string(), pa.null()])
@pytest.mark.parametrize("rows", [0, 2])
def test_parquet_without_any_text(tmp_path, kind, rows):
    pq.write_table(pa.table({"text": pa.array([None] * rows, kind)}), tmp_path / "a.parquet")
    check_documents(tmp_path / "a.parquet", "text")
    assert read(tmp_path / "a.parquet") == ([], rows)


def test_group_counts_what_is_no_text():
    batches = list(group(["a", None, 3, b"x", "", float("nan")], lambda: 0.5))
    assert [(batch.texts.to_pylist(), batch.skipped, batch.done) for batch in batches] == [(["a", ""], 4, 0.5)]
    assert list(group([], lambda: 1.0)) == []


def test_find_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("b.jsonl", "a.jsonl", "[x].txt", "c.csv"):
        Path(name).touch()
    known = [f"{tmp_path}/{name}" for name in ("[x].txt", "a.jsonl", "b.jsonl")]
    assert [str(path) for path in find_inputs([tmp_path])] == known
    assert [str(path) for path in find_inputs(["[x].txt", "*.jsonl", "b.jsonl"])] == [
        "[x].txt",
        "a.jsonl",
        "b.jsonl",
        "b.jsonl",
    ]
    for wrong, said in (
        ("d.txt", "no such file"),
        ("*.zst", "no such file"),
        ("empty", "is a folder without"),
        ("nosuch://a/b.txt", "nosuch"),
        ("memory://nothing/*.jsonl", "no such file"),
        ("c.csv", "unknown kind"),
    ):
        with pytest.raises(UserError, match=said):
            find_inputs([wrong])


def test_hidden_files_of_a_folder_are_left_out_and_names_must_be_utf8(tmp_path):
    seen = write(tmp_path / "a.jsonl", [{"text": "a"}])
    for name in ("._a.jsonl", ".ipynb_checkpoints/a.jsonl"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, [{"text": "a copy"}])
    assert find_inputs([tmp_path]) == [seen]
    assert [Path(file.path) for file in find_inputs([f"file://{tmp_path}"])] == [seen]
    assert find_inputs([tmp_path / "._a.jsonl"]) == [tmp_path / "._a.jsonl"]
    strange = Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff.txt"))
    strange.touch()
    with pytest.raises(UserError, match=r"udcff\.txt': the name is no UTF-8: rename it"):
        find_inputs([tmp_path])


def test_links_to_folders_are_followed(tmp_path):
    """A corpus that is spread over disks; each folder once, whatever links to it."""
    corpus = tmp_path / "corpus"
    files = ("corpus/b/1.jsonl", "disk1/2.jsonl", "disk1/sub/3.jsonl", "disk2/4.jsonl", "disk2/.cache/5.jsonl")
    for name in (*files, "hidden/6.jsonl"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        write(tmp_path / name, [{"text": name}])
    for link, target in (
        ("corpus/c", "disk1"),
        ("corpus/b/again", "corpus/b"),  # what is there itself goes before links to it
        ("corpus/a", "corpus/b"),
        ("corpus/b/up", "corpus"),
        ("corpus/.d", "hidden"),
        ("disk1/sub/next", "disk2"),
        ("disk2/back", "disk1"),
        ("corpus/e", "nowhere"),
    ):
        (tmp_path / link).symlink_to(tmp_path / target)
    found = find_inputs([corpus])
    assert found == [corpus / name for name in ("b/1.jsonl", "c/2.jsonl", "c/sub/3.jsonl", "c/sub/next/4.jsonl")]
    (corpus / "f.jsonl").symlink_to(tmp_path / "hidden/6.jsonl")
    assert find_inputs([corpus]) == [*found, corpus / "f.jsonl"]
    assert [Path(file.path) for file in find_inputs([f"file://{corpus}"])] == find_inputs([corpus])


def test_a_hidden_file_that_is_all_suffix(tmp_path):
    for suffix in (".txt", ".jsonl", ".jsonl.gz", ".parquet"):
        path = write(tmp_path / f"a{suffix}", [{"text": "a"}, {"text": "b"}]).rename(tmp_path / suffix)
        (found,) = find_inputs([path])
        check_documents(found, "text")
        assert read(found)[0] == ([path.read_text()] if suffix == ".txt" else ["a", "b"])


def test_a_gzip_file_with_zeros_behind_its_last_member_is_refused(tmp_path):
    path = write(tmp_path / "a.jsonl.gz", [{"text": "a"}])
    path.write_bytes(2 * path.read_bytes())
    assert read(path) == (["a", "a"], 0)
    path.write_bytes(path.read_bytes() + bytes(512))
    with pytest.raises(UserError, match=r"cannot read .*a\.jsonl\.gz \(.*get it again"):
        read(path)


def test_folders_that_are_named_as_files(tmp_path):
    """As Spark and Dask write them."""
    folder = tmp_path / "all" / "out.parquet"
    folder.mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    parts = [write(folder / f"part-{number}.snappy.parquet", [{"text": "a"}]) for number in range(2)]
    for pattern in (tmp_path, tmp_path / "all", folder, tmp_path / "all/*.parquet", tmp_path / "**/*.parquet"):
        assert find_inputs([pattern]) == parts
        assert [Path(file.path) for file in find_inputs([f"file://{pattern}"])] == parts


def test_identity_tells_files_apart(tmp_path):
    path = tmp_path / "a.txt"
    seen = set()
    for content in (b"", b"a", b"b", b"a" * 200_000, b"a" * 199_999 + b"b", b"b" + b"a" * 199_999):
        path.write_bytes(content)
        identity = LocalFile(path, "text").identity()
        assert identity["name"] == "a.txt"
        assert identity["size"] == len(content)
        seen.add(json.dumps(identity))
    assert len(seen) == 6


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
        assert sum(buffer.size for buffer in batch.texts.buffers() if buffer) <= sources.BATCH_BYTES
        assert pa.total_allocated_bytes() - before < 128 << 20
    assert row == len(texts)


@pytest.mark.parametrize("start", [0, 1, 7, 1999, 2000, 2001, 2999, 3000, 5000])
def test_reading_goes_on_at_any_row(path, start, monkeypatch):
    values = [None if i % 7 == 3 else f"document {i} " * (i % 50) for i in range(3000)]
    write(path, [{"text": value} for value in values])
    monkeypatch.setattr(sources, "BATCH_BYTES", 5000)
    row, found = start, {}
    for batch in read_documents(path, "text", start):
        found |= {row + place: text for place, text in zip(batch.rows, batch.texts.to_pylist(), strict=True)}
        assert batch.lengths().tolist() == [len(text) for text in batch.texts.to_pylist()]
        row += batch.read
    assert found == {i: value for i, value in enumerate(values) if value is not None and i >= start}
    assert row == max(start, len(values))


@pytest.mark.parametrize("separator", ["\n\n", "<|endoftext|>", "日"])
@pytest.mark.parametrize("batch", [1, 2, 3, 1000])
def test_separated_documents(tmp_path, monkeypatch, separator, batch):
    monkeypatch.setattr(sources, "BATCH_BYTES", batch)
    texts = ["one\r\n1", "", "two 本", "three", "four"]
    path = tmp_path / "a.txt"
    for end in ("", separator):
        path.write_bytes(b"\xef\xbb\xbf" + (separator.join(texts) + end).encode())
        for start in range(6):
            found = [text for part in read_documents(path, "text", start, separator) for text in part.texts.to_pylist()]
            assert found == texts[start:]


@pytest.mark.parametrize("separator", [b"a", b"ab", b"aab", b"abab", b"\n\n\n\n\n"])
def test_separators_wherever_the_reads_end(monkeypatch, separator):
    rng = random.Random(0)
    for _ in range(200):
        data = bytes(rng.choices(separator + b"c", k=rng.randrange(100)))
        monkeypatch.setattr(sources, "BATCH_BYTES", rng.randrange(1, 12))
        *whole, last = data.decode().split(separator.decode())
        assert list(sources._pieces(io.BytesIO(data), separator)) == whole + [last] * bool(last)


def test_a_long_document_before_its_separator_is_looked_through_once(monkeypatch):
    class Counted(io.BytesIO):
        """Its bytes count how many of them are searched."""

        searched = 0

        def read(self, size: int = -1) -> bytes:
            return Chunk(super().read(size))

    class Chunk(bytes):
        def __radd__(self, rest: bytes) -> bytes:
            Counted.searched += len(rest) + len(self)
            return rest + bytes(self)

    monkeypatch.setattr(sources, "BATCH_BYTES", 10)
    data = b"x" * 10_000
    assert list(sources._pieces(Counted(data + b"--y"), b"--")) == [data.decode(), "y"]
    assert len(data) < Counted.searched < 2 * len(data)


@pytest.mark.parametrize("end", ["", "\n", "\nc"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_separated_documents_of_a_few_bytes(tmp_path, mark, end):
    path = tmp_path / "a.txt"
    for text in ("a", "", "a\nb"):
        path.write_text(mark + text + end)
        found = [text for part in read_documents(path, "text", 0, "\n") for text in part.texts.to_pylist()]
        assert found == (text + end).removesuffix("\n").split("\n") if text + end else found == []


def test_some_malformed_lines_may_be_allowed(tmp_path, capsys):
    path = tmp_path / "a.jsonl"
    path.write_text('{\n{"text": "a"}\nnonsense\n{"text": "b"}\n[]\n')
    check_documents(path, "text")
    batches = list(read_documents(path, "text", max_bad=3))
    assert [(batch.texts.to_pylist(), batch.skipped) for batch in batches] == [(["a", "b"], 3)]
    said = capsys.readouterr().err
    assert [f"line {number}" in said for number in range(1, 6)] == [True, False, True, False, True]
    with pytest.raises(UserError, match=r"line 5: .*3 such lines are more than --max-bad 2"):
        list(read_documents(path, "text", max_bad=2))
    with pytest.raises(UserError, match=r"line 1: "):
        list(read_documents(path, "text"))


def test_files_behind_urls(path):
    write(path, [{"text": text} for text in TEXTS])
    system = fsspec.filesystem("memory")
    system.pipe(f"/bucket/{path.name}", path.read_bytes())
    try:
        for pattern in (f"memory://bucket/{path.name}", f"memory://bucket/*.{path.name[2:]}", "memory://bucket"):
            (found,) = find_inputs([pattern])
            check_documents(found, "text")
            assert str(found).startswith("memory://")
            assert [text for b in read_documents(found, "text") for text in b.texts.to_pylist()] == TEXTS
            assert LocalFile(found, "text").identity() == LocalFile(path, "text").identity()
    finally:
        system.rm("/bucket", recursive=True)


class Refusing(fsspec.AbstractFileSystem):
    """A store whose library, as botocore does, raises what is no OSError: at the first look, or when it is read."""

    protocol = "refusing"

    def info(self, path: str, **_: object) -> dict:
        if "locked" in path:
            raise RuntimeError("Unable to locate credentials")
        return {"name": path, "size": 1000, "type": "file"}

    def _open(self, *_: object, **__: object) -> None:
        raise RuntimeError("Could not connect to the endpoint")

    cat_file = _open


def test_what_a_store_s_library_raises_is_one_line(path):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    with pytest.raises(UserError, match=r"http://127\.0\.0\.1:9/a.*: check address, network and credentials"):
        find_inputs([f"http://127.0.0.1:9/{path.name}"])
    with pytest.raises(UserError, match=f"refusing://locked/{path.name}.*Unable to locate.*credentials"):
        find_inputs([f"refusing://locked/{path.name}"])
    (found,) = find_inputs([f"refusing://bucket/{path.name}"])
    for work in (lambda: check_documents(found, "text"), lambda: list(read_documents(found, "text"))):
        with pytest.raises(UserError, match=f"refusing://bucket/{path.name}.*Could not connect.*network"):
            work()


def test_batches_of_values_without_text_have_an_end():
    most = sources.BATCH_BYTES // 64
    assert [batch.read for batch in group([None] * (most + 1), lambda: 0.5)] == [most, 1]
