"""What --input names: files, folders, globs, URLs; and how an input is identified."""

import json
from pathlib import Path

import datasets
import fsspec
import pytest

from prepare.common.cli import UserError
from prepare.sources.inputs import LocalFile, find_inputs
from prepare.sources.readers import check_documents, read_documents
from tests.helpers.documents import write_documents

TEXTS = ["one", "", "naïve 日本 😀"]


def test_find_inputs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    for name in ("b.jsonl", "a.jsonl", "[x].txt", "c.doc"):
        Path(name).touch()
    known = [f"{tmp_path}/{name}" for name in ("[x].txt", "a.jsonl", "b.jsonl")]
    assert [str(path) for path in find_inputs([tmp_path])] == known
    Path("link.jsonl").symlink_to("a.jsonl")
    once = ["[x].txt", "b.jsonl", "a.jsonl"]  # a file is never taken twice
    assert [str(path) for path in find_inputs(["[x].txt", "b.jsonl", "*.jsonl", tmp_path / "b.jsonl"])] == once
    Path("link.jsonl").unlink()
    for wrong, message in (
        ("d.txt", "no such file"),
        ("*.zst", "no such file"),
        ("empty", "no such file, or none of .parquet"),
        ("nosuch://a/b.txt", "nosuch"),
        ("memory://nothing/*.jsonl", "no such file"),
        ("http://127.0.0.1:9/a.jsonl", "http://127.0.0.1:9/a.jsonl: no such file"),
        ("c.doc", "unknown kind"),
    ):
        with pytest.raises(UserError, match=message):
            find_inputs([wrong])


def test_what_a_folder_passes_over_is_printed(tmp_path, capsys):
    folder = tmp_path / "c4 [en]*"
    folder.mkdir()
    files = [write_documents(folder / f"c4-train.{i}.json.gz", [{"text": "a"}]) for i in range(2)]
    for name in ("LICENSE.txt", "README.md", "state.json", "manifest.json", "cache-1f.arrow", "a.pdf"):
        (folder / name).write_text("not documents")
    for pattern in (folder, f"file://{tmp_path}"):
        assert [Path(getattr(found, "path", found)) for found in find_inputs([pattern])] == files
        assert "2 files read, 6 passed over: LICENSE.txt, README.md, a.pdf" in capsys.readouterr().err
    for pattern in (folder / "*.gz", tmp_path / "c4*" / "*.gz", files[0]):
        assert find_inputs([pattern])[0] == files[0]
    assert find_inputs([folder / "README.md"]) == [folder / "README.md"]
    assert not capsys.readouterr().err


def test_a_saved_data_set(tmp_path):
    """datasets.save_to_disk's folders."""
    texts = ["one", "", "naïve 日本"]
    datasets.Dataset.from_dict({"text": texts}).save_to_disk(tmp_path / "saved")
    (found,) = find_inputs([tmp_path])
    check_documents(found, "text")
    assert [text for batch in read_documents(found, "text", 1) for text in batch.texts.to_pylist()] == texts[1:]


def test_folders_named_as_files_and_hidden_files(tmp_path):
    """As Spark and Dask write them."""
    folder = tmp_path / "all" / "out.parquet"
    folder.mkdir(parents=True)
    (folder / "_SUCCESS").touch()
    parts = [write_documents(folder / f"part-{number}.snappy.parquet", [{"text": "a"}]) for number in range(2)]
    for pattern in (tmp_path, tmp_path / "all", folder, tmp_path / "all/*.parquet", tmp_path / "**/*.parquet"):
        assert find_inputs([pattern]) == parts
        assert [Path(file.path) for file in find_inputs([f"file://{pattern}"])] == parts
    for hidden in ("._part-0.parquet", ".ipynb_checkpoints/part-0.parquet"):
        (folder / hidden).parent.mkdir(exist_ok=True)
        write_documents(folder / hidden, [{"text": "a copy"}])
    assert find_inputs([tmp_path]) == parts
    assert [Path(file.path) for file in find_inputs([f"file://{tmp_path}"])] == parts
    (tmp_path / "link").symlink_to(folder)
    assert find_inputs([tmp_path / "link"]) == [tmp_path / "link" / part.name for part in parts]


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


@pytest.mark.parametrize("kind", ["parquet", "jsonl.gz"])
def test_files_at_urls(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    write_documents(path, [{"text": text} for text in TEXTS])
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
    """A store whose library raises exceptions of its own, as botocore does."""

    protocol = "refusing"

    def info(self, path: str, **_: object) -> dict:
        return {"name": path, "size": 1000, "type": "file"}

    def _open(self, *_: object, **__: object) -> None:
        raise RuntimeError("Unable to locate credentials")

    cat_file = _open


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "txt"])
def test_an_error_of_a_store_s_library_is_one_line(kind):
    fsspec.register_implementation("refusing", Refusing, clobber=True)
    (found,) = find_inputs([f"refusing://bucket/a.{kind}"])
    for work in (lambda: check_documents(found, "text"), lambda: list(read_documents(found, "text"))):
        with pytest.raises(UserError, match=f"refusing://bucket/a.{kind}.*Unable to locate credentials"):
            work()
