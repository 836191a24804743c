"""Token shards: the format as llm.c and modded-nanogpt read it, cutting, finding, opening, refusing."""

import os
import struct
from pathlib import Path

import numpy as np
import pytest

from prepare.common.cli import UserError
from prepare.common.files import file_sha256
from prepare.tokens import shards
from prepare.tokens.shards import ShardWriter, find_shards, open_shard, shard_name, shard_number, write_shard
from prepare.tokens.tokenizer import EOT, join_documents


def llm_c_tokens(path: Path) -> list[int]:
    """What llm.c's dataloader.h reads, with its checks, field by field."""
    data = path.read_bytes()
    header = struct.unpack("<256i", data[:1024])
    assert header[0] == 20240520
    assert header[1] == 1
    assert not any(header[3:])
    assert len(data) == 1024 + 2 * header[2]
    return list(struct.unpack(f"<{header[2]}H", data[1024:]))


def random_documents(count: int, seed: int) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(0, EOT, rng.integers(0, 30)).astype(np.uint16) for _ in range(count)]


@pytest.mark.parametrize(("shard_tokens", "together"), [(7, 1), (7, 3), (64, 100), (1000, 3), (10**6, 1)])
def test_writer_cuts_a_stream_however_it_arrives(tmp_path, shard_tokens, together):
    documents = random_documents(60, seed=shard_tokens)
    stream = [token for document in documents for token in (EOT, *document.tolist())]
    writer = ShardWriter(tmp_path / "absent", "x")
    writer.finish_shard()  # nothing is created before the first token
    writer = ShardWriter(tmp_path, "x", 2, shard_tokens)
    for start in range(0, len(documents), together):
        writer.write(*join_documents(documents[start : start + together], EOT))
    writer.finish_shard()
    paths = find_shards(str(tmp_path / "*.bin"))
    parts = [llm_c_tokens(path) for path in paths]
    assert [token for part in parts for token in part] == stream
    assert {len(part) for part in parts[:-1]} <= {shard_tokens}
    assert 0 < len(parts[-1]) <= shard_tokens
    assert [path.name for path in paths] == [f"x_train_{2000 + part:06d}.bin" for part in range(len(paths))]
    assert writer.records == [
        {"file": path.name, "tokens": len(part), "documents": part.count(EOT), "sha256": file_sha256(path)}
        for path, part in zip(paths, parts, strict=True)
    ]
    assert sorted(tmp_path.iterdir()) == paths


def test_only_the_very_first_shard_is_held_out_unless_a_split_is_given():
    names = [shard_name("x", file, part) for file, part in ((0, 0), (0, 1), (1, 0), (12, 999), (1234, 5))]
    expected = ["x_val_000000", "x_train_000001", "x_train_001000", "x_train_012999", "x_train_1234005"]
    assert names == [f"{name}.bin" for name in expected]
    assert [shard_number(name) for name in names] == [0, 1, 1000, 12999, 1234005]
    assert shard_name("x", 0, 3, "val") == "x_val_000003.bin"
    assert shard_number("x_val_000000.bin.tmp") == 0
    assert shard_number("manifest.json") is None


def test_a_shard_is_on_disk_before_it_has_its_name(tmp_path, monkeypatch):
    path, named, fsync = tmp_path / "x_train_000001.bin", [], os.fsync
    monkeypatch.setattr(os, "fsync", lambda handle: named.append(path.exists()) or fsync(handle))
    write_shard(path, np.arange(5))
    assert named == [False]
    assert path.exists()


def test_an_input_file_of_too_many_shards_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "MAX_PARTS", 20)
    with pytest.raises(UserError, match=rf"input file 3 .*20 shards of 5 tokens: delete {tmp_path} .*--shard-tokens"):
        ShardWriter(tmp_path, "x", 3, 5).write(np.zeros(101, np.uint16), np.array([0]))
    assert len(list(tmp_path.iterdir())) == 20


def test_open_shard(tmp_path):
    tokens = np.arange(65536, dtype=np.uint16)
    record = write_shard(tmp_path / "x_train_000001.bin", tokens, documents=3)
    assert record == {
        "file": "x_train_000001.bin",
        "tokens": 65536,
        "documents": 3,
        "sha256": file_sha256(tmp_path / "x_train_000001.bin"),
    }
    assert llm_c_tokens(tmp_path / "x_train_000001.bin") == tokens.tolist()
    tokens.tofile(tmp_path / "train.bin")  # nanoGPT
    np.save(tmp_path / "edufineweb_train_000001.npy", tokens)  # build-nanogpt
    for name in ("x_train_000001.bin", "train.bin", "edufineweb_train_000001.npy"):
        opened = open_shard(tmp_path / name)
        assert isinstance(opened, np.memmap)
        assert opened.dtype == np.uint16
        assert np.array_equal(opened, tokens)
        with pytest.raises(ValueError, match="read-only"):
            opened[0] = 1
    write_shard(tmp_path / "val.bin", tokens[:5])  # with a header after all
    assert open_shard(tmp_path / "val.bin").tolist() == [0, 1, 2, 3, 4]


def header(*numbers: int) -> bytes:
    return struct.pack("<256i", *numbers, *[0] * (256 - len(numbers)))


@pytest.mark.parametrize(
    ("name", "content", "found"),
    [
        ("a_train_000001.bin", b"", "0 bytes"),
        ("a_train_000001.bin", b"\x88\xd8\x34\x01", "4 bytes"),
        ("a_train_000001.bin", header(20240801, 7, 2) + bytes(4), "20240801"),
        ("a_train_000001.bin", header(20240520, 2, 2) + bytes(4), "[20240520, 2]"),
        ("a_train_000001.bin", header(20240520, 1, 3) + bytes(4), "1,028 bytes where its header says 3 tokens"),
        ("a_train_000001.bin", header(20240520, 1, 1) + bytes(4), "1,028 bytes where its header says 1 tokens"),
        ("a_train_000001.bin", header(20240520, 1, 0), "0 tokens"),
        ("a_train_000001.bin", header(20240520, 1, -1), "-1 tokens"),
        ("train.bin", b"", "0 bytes"),
        ("val.bin", b"abc", "3 bytes"),
        ("a.npy", b"abc", "not an .npy"),
    ],
)
def test_open_shard_refuses(tmp_path, name, content, found):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UserError) as refused:
        open_shard(tmp_path / name)
    assert str(tmp_path / name) in str(refused.value)
    assert found in str(refused.value)
    assert "prepare it again" in str(refused.value)


@pytest.mark.parametrize("array", [np.zeros(3, np.int64), np.zeros((2, 2), np.uint16), np.zeros(0, np.uint16)])
def test_open_shard_refuses_other_arrays_and_absent_files(tmp_path, array):
    np.save(tmp_path / "a.npy", array)
    with pytest.raises(UserError, match="uint16 tokens"):
        open_shard(tmp_path / "a.npy")
    with pytest.raises(UserError, match=r"x\.bin: No such file"):
        open_shard(tmp_path / "x.bin")


def test_find_shards(tmp_path, monkeypatch):
    work, root = tmp_path / "work [1]", tmp_path / "root"
    for folder, names in (
        (work / "data", ["x_train_1000001.bin", "x_train_999001.bin", "x_val_000000.bin", "manifest.json", "y.npy"]),
        (root / "data", ["x_train_000009.bin"]),
        (root / "only", ["x_train_000001.bin", "x_train_000002.bin.tmp"]),
    ):
        folder.mkdir(parents=True)
        for name in names:
            (folder / name).touch()
    monkeypatch.chdir(work)
    monkeypatch.setattr(shards, "ROOT", root)
    assert [path.name for path in find_shards("data/x_*")] == [
        "x_train_999001.bin",
        "x_train_1000001.bin",
        "x_val_000000.bin",
    ]
    assert find_shards("only/*") == [root / "only" / "x_train_000001.bin"]
    assert find_shards(["data/*_val_*", "data/x_*"]) == find_shards("data/x_*")
    assert find_shards(str(root / "*" / "*.bin")) == [
        root / "data" / "x_train_000009.bin",
        root / "only" / "x_train_000001.bin",
    ]
    for missing in ("none/*.bin", "data/*.json", ["data/*", "data/z*"]):
        with pytest.raises(UserError, match="no token shards match"):
            find_shards(missing)
    monkeypatch.chdir(root)  # each place is named once
    with pytest.raises(UserError, match=rf"no token shards match {root}/none: "):
        find_shards("none")


def test_folders_with_a_bracket_and_git_lfs_pointers(tmp_path):
    folder = tmp_path / "run [1]"
    folder.mkdir()
    write_shard(folder / "x_train_000001.bin", np.arange(5, dtype=np.uint16))
    assert find_shards(f"{folder}/*_train_*.bin") == find_shards(f"{folder}/x_train_000001.bin")
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "0" * 64 + "\nsize 146946961\n"
    for name in ("train.bin", "x_val_000000.bin", "x.npy"):
        (folder / name).write_text(pointer)
        with pytest.raises(UserError, match=f"{name} is a Git LFS pointer.*git lfs pull"):
            open_shard(folder / name)
