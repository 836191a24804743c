"""Atomic writes, locks, text in any encoding, JSON lines, checksums."""

import errno
import fcntl
import hashlib
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from prepare.common import files
from prepare.common.cli import ArgumentError, UserError
from prepare.common.files import (
    FileLock,
    atomic_write,
    atomic_write_json,
    atomic_write_text,
    file_sha256,
    name_in_errors,
    read_json_lines,
    read_json_object,
    read_text,
    split_pieces,
)
from tests.helpers.commands import ROOT


def test_atomic_write_replaces_a_file_when_its_bytes_are_on_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, before = tmp_path / "a.json", []
    atomic_write_text(path, "old")
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: before.append(path.read_text()) or fsync(handle))
    atomic_write_json(path, {"a": 1})
    assert before == ["old", '{\n "a": 1\n}\n']  # the file's bytes, then its name
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert file_sha256(path) == hashlib.sha256(b'{\n "a": 1\n}\n').hexdigest()


def test_a_failed_atomic_write_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a"
    atomic_write_text(path, "old")
    with pytest.raises(ZeroDivisionError), atomic_write(path) as file:
        file.write(b"new" * (1 // 0))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [("a", "old")]


def test_a_failed_write_names_its_file() -> None:
    path = Path("/dev/full")
    with (
        pytest.raises(OSError, match="No space left on device: '/dev/full'"),
        name_in_errors(path),
        path.open("w") as file,
    ):
        file.write("x")


def test_a_lock_names_its_holder_and_ends_with_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    code = "import sys, time; from pathlib import Path; from prepare.common.files import FileLock\n"
    code += "lock = FileLock(Path(sys.argv[1]), 'x'); print(flush=True); time.sleep(10**6)"
    with subprocess.Popen([sys.executable, "-c", code, path], cwd=ROOT, stdout=subprocess.PIPE) as holder:
        holder.stdout.readline()
        with pytest.raises(UserError, match=f"runs/x is in use by process {holder.pid} on {socket.gethostname()}: no"):
            FileLock(path, "runs/x", "no")
        holder.send_signal(signal.SIGKILL)
        with FileLock(path, "runs/x", wait=True), pytest.raises(UserError, match=f"process {os.getpid()} on"):
            FileLock(path, "runs/x")
        FileLock(path, "runs/x").release()


def test_a_file_system_without_locks_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    def unsupported(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", unsupported)
    with FileLock(tmp_path / "lock", "runs/x"):
        assert "runs/x: this file system has no locks (No locks available)" in capsys.readouterr().err


def test_json_lines(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'\xef\xbb\xbf{"a": 1}\r\n\n{"a": "\xc3\xa9"}\n \n{"a": 3}')
    assert list(read_json_lines(path)) == [(f"{path}:1", {"a": 1}), (f"{path}:3", {"a": "é"}), (f"{path}:5", {"a": 3})]
    for line, reason in ((b"{", "is not valid JSON"), (b"[1]", "is not a JSON object")):
        path.write_bytes(b'{"a": 1}\n' + line)
        with pytest.raises(UserError, match=rf"a.jsonl:2 {reason} \(.*: fix or delete"):
            list(read_json_lines(path))
    for other in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=f"{other} "):
            list(read_json_lines(other))


@pytest.mark.parametrize("piece", [1, 3, 1000])
def test_text_is_utf_8_or_as_a_mark_or_the_user_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, piece: int
) -> None:
    monkeypatch.setattr(files, "PIECE_BYTES", max(piece, 4))
    path, text = tmp_path / "a.txt", "“naïve”\r\n我 😀\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):  # all but the first write a mark
        path.write_bytes(text.encode(encoding))
        assert read_text(path) == read_text(path, "cp1252" if encoding != "utf-8" else None) == text
    for encoding, stated in (("gb18030", "gb18030"), ("utf-16-le", "utf-16"), ("utf-8", "utf8")):
        path.write_bytes((text + "\0").encode(encoding))
        assert read_text(path, stated) == text + "\0"
    prefix = "12345é".encode()
    for bad, encoding, place in (
        ("é".encode("cp1252") + b"1", None, r"byte 7 \(0xe9\) is not utf-8 text"),
        ("我".encode("gbk") + b"1", None, r"byte 7 \(0xce\)"),
        ("é".encode()[:1], None, r"byte 7 \(0xc3\)"),  # truncated
        (b"a\0b\0", None, r"byte 8 \(0x00\)"),  # UTF-16 without a mark
        (b"\x81\x20\x20", "gbk", r"byte 7 \(0x81\) is not gbk text"),
    ):
        path.write_bytes(prefix + bad)
        with pytest.raises(UserError, match=rf"a\.txt: {place}.*: state .*--encoding.* convert it to UTF-8"):
            read_text(path, encoding)
    with pytest.raises(ArgumentError, match="'klingon' is unknown: give"):
        read_text(path, "klingon")


def test_pieces_are_split_wherever_a_separator_lies() -> None:
    for separator in ("\n", "<|end|>", "aab"):
        for text in ("a", f"a{separator}aa{separator}{separator}b", f"a{separator}b{separator}"):
            parts = text.split(separator)
            for size in range(1, 9):
                pieces = [text[i : i + size] for i in range(0, len(text), size)]
                assert list(split_pieces(pieces, separator)) == (parts if parts[-1] else parts[:-1])


@pytest.mark.parametrize("content", [None, b"", b"[1]", b"{", b"\xff"])
def test_a_missing_or_corrupt_object_is_an_empty_one(tmp_path: Path, content: bytes | None) -> None:
    path = tmp_path / "a.json"
    if content is not None:
        path.write_bytes(content)
    assert read_json_object(path) == {}
