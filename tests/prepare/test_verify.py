"""verify.py: valid folders pass, and every missing or corrupt file is named."""

import json
import os
import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from prepare import fineweb
from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import ShardWriter
from prepare.tokens.tokenizer import EOT, CharTokenizer, GPT2Tokenizer, join_documents
from prepare.verify import main
from tests.helpers.commands import mistake, run_command


@pytest.fixture(scope="module")
def valid(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("valid")
    rng = np.random.default_rng(0)
    documents = [rng.integers(0, EOT, 50).astype(np.uint16) for _ in range(40)]
    inputs, shards = [], []
    for number in range(2):
        writer = ShardWriter(folder, "x", number, 900)
        writer.write(*join_documents(documents, EOT))
        writer.finish_shard()
        inputs.append({"name": f"{number}.txt", "documents": 40, "tokens": 40 * 51, "skipped": 0})
        shards += writer.records
    options = {"shard_tokens": 900}
    write_manifest(folder, build_manifest("x", None, inputs, GPT2Tokenizer().describe(), options, shards))
    return folder


@pytest.fixture
def folder(valid, tmp_path) -> Path:
    return Path(shutil.copytree(valid, tmp_path / "copy"))


def named(folder: Path, capsys: pytest.CaptureFixture) -> list[str]:
    """The lines about missing and corrupt files, of a verification that must fail."""
    status, error = mistake(main, folder)
    assert (status, "delete these files" in error) == (1, True), error
    return capsys.readouterr().out.splitlines()


def patch(path: Path, position: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(data)


def test_valid(valid):
    result = run_command("python", "prepare/verify.py", valid)
    assert result.returncode == 0, result.stdout
    assert "6 shards, 4,080 tokens, 80 documents, valid (checksums match)" in result.stdout


@pytest.mark.parametrize("seed", range(4))
def test_any_flipped_byte_of_any_shard(folder, capsys, seed):
    rng = random.Random(seed)
    path = rng.choice(sorted(folder.glob("*.bin")))
    position = rng.randrange(path.stat().st_size) if seed else 5
    data = path.read_bytes()
    patch(path, position, bytes([data[position] ^ (1 << rng.randrange(8))]))
    (line,) = named(folder, capsys)
    assert line.startswith(str(path))


def test_every_problem_is_named_in_its_line(folder, capsys):
    (folder / "x_train_000001.bin").unlink()
    os.truncate(folder / "x_train_000002.bin", 1500)
    patch(folder / "x_train_001000.bin", 4, b"\2")
    patch(folder / "x_train_001001.bin", 1024 + 2 * 7, (50257).to_bytes(2, "little"))
    patch(folder / "x_train_001002.bin", 1024 + 2 * 7, EOT.to_bytes(2, "little"))
    (folder / "x_train_001003.bin.tmp").touch()
    (folder / "x_train_001004.bin.part").touch()
    (folder / "x_train_009000.bin").write_bytes(b"something else")
    problems = [line.removeprefix(f"{folder}/x_train_") for line in named(folder, capsys)]
    expected = {
        "000001.bin": "missing",
        "000002.bin": "1,500 bytes",
        "001000.bin": "magic number 20240520 and version 1",
        "001001.bin": "token 50257 at 7 ",
        "001002.bin": "documents, and the manifest says",
        "001003.bin.tmp": "left by an interrupted run",
        "001004.bin.part": "left by an interrupted run",
        "009000.bin": "not in the manifest",
    }
    for problem, (name, message) in zip(problems, expected.items(), strict=True):
        assert problem.startswith(name)
        assert message in problem


def test_a_manifest_of_something_else(folder, capsys):
    path = folder / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["shards"][0]["tokens"] -= 1
    path.write_text(json.dumps(manifest))
    assert any("900 tokens, and the manifest says 899" in line for line in named(folder, capsys))
    path.write_text("{")
    assert "manifest.json" in mistake(main, folder)[1]


def test_without_a_manifest_only_the_structure(folder, capsys):
    (folder / "manifest.json").unlink()
    main([str(folder)])
    printed = capsys.readouterr().out
    assert "6 shards, 4,080 tokens, 80 documents" in printed
    assert "no manifest" in printed
    np.arange(50000, dtype=np.uint16).tofile(folder / "train.bin")
    np.save(folder / "edufineweb_train_000001.npy", np.arange(60000, dtype=np.uint16))
    (line,) = named(folder, capsys)
    assert "edufineweb_train_000001.npy: token 50257 at 50,257" in line


def test_characters(tmp_path):
    writer = ShardWriter(tmp_path, "x")
    writer.write(*join_documents([np.array([0, 1, 2], np.uint16)], None))
    writer.finish_shard()
    inputs = [{"name": "a.txt", "documents": 1, "tokens": 3}]
    options = {"shard_tokens": 900}
    for characters in ("abc", "ab"):
        description = CharTokenizer(characters).describe()
        write_manifest(tmp_path, build_manifest("x", None, inputs, description, options, writer.records))
        if characters == "abc":
            main([str(tmp_path)])
    assert "delete these files" in mistake(main, tmp_path)[1]


def test_unfinished(tmp_path):
    for name in "ab":
        (tmp_path / f"{name}.txt").write_text(f"words of {name}")
    words = ["--input", tmp_path / "a.txt", tmp_path / "b.txt", "--out", tmp_path / "out", "--task", "1/2"]
    fineweb.main([*map(str, words), "--shard-tokens=3"])  # the files are too large to share a shard
    assert "unfinished" in mistake(main, tmp_path / "out")[1]


def test_no_folder_and_no_shards(tmp_path):
    for words, status, message in (
        ([tmp_path / "absent"], 1, "not a folder"),
        ([tmp_path], 1, "no token shards"),
        ([], 2, "folder"),
        ([""], 2, "it is empty"),
    ):
        found, error = mistake(main, *words)
        assert (found, message in error) == (status, True), error
