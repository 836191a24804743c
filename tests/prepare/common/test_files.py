"""Files that are whole or not there."""

import hashlib
import os
from pathlib import Path

import pytest

from prepare.common.files import atomic_write_json, atomic_write_text, file_sha256, naming, read_json_object


def test_a_file_has_its_name_when_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, before = tmp_path / "a.json", []
    atomic_write_text(path, "old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: before.append(path.read_text()) or fsync(handle))
    atomic_write_json(path, {"a": 1})
    assert before == ["old", '{\n "a": 1\n}\n']  # the file's bytes, then its name
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert file_sha256(path) == hashlib.sha256(b'{\n "a": 1\n}\n').hexdigest()


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff", b"[" * 100_000])
def test_what_is_no_object_is_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json_object(path) == {}


def test_a_write_that_fails_names_its_file() -> None:
    path = Path("/dev/full")
    with pytest.raises(OSError, match="No space left on device: '/dev/full'"), naming(path), path.open("w") as file:
        file.write("x")
