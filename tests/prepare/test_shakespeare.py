"""Shakespeare in shards: the plays as they are read, and Tiny Shakespeare's tokens as nanoGPT makes them."""

import hashlib
from pathlib import Path

import numpy as np
import pytest

from prepare.sources.plays import HELD_OUT, PLAYS, read_play
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer, load_tokenizer
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.loopback_hub import Fault, LoopbackHub

SCRIPT = "prepare/shakespeare.py"


def prepared(out: Path, *options: object) -> dict[str, np.ndarray]:
    """Run the script and verify.py; the tokens of each split."""
    for command in ((SCRIPT, "--out", out, *options), ("prepare/verify.py", out)):
        result = run_command("python", *command)
        assert result.returncode == 0, result.stderr
    return {
        split: np.concatenate([open_shard(path) for path in find_shards(str(out / f"*_{split}_*.bin"))])
        for split in ("train", "val")
    }


def test_plays_in_gpt2_tokens(tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "bpe", "--shard-tokens", 500_000)
    tokenizer = GPT2Tokenizer()
    for split, names in (("train", PLAYS), ("val", HELD_OUT)):
        assert tokens[split][0] == EOT
        documents = np.split(tokens[split], np.flatnonzero(tokens[split] == EOT))[1:]
        assert [tokenizer.decode(document[1:]) for document in documents] == [read_play(name) for name in names]
    assert len(find_shards(str(tmp_path / "bpe/*_train_*.bin"))) == 3


def test_plays_in_characters(tmp_path: Path) -> None:
    tokens = prepared(tmp_path / "char", "--level", "char")
    tokenizer = load_tokenizer(read_manifest(tmp_path / "char")["tokenizer"])
    assert tokenizer.vocab_size == 74
    assert tokenizer.decode(tokens["val"]) == "".join(read_play(name) for name in HELD_OUT)
    assert tokenizer.decode(tokens["train"]) == "".join(read_play(name) for name in PLAYS)


def test_tiny_shakespeare_is_nanogpts(tmp_path: Path, real_data: Path) -> None:
    text = (real_data / "tinyshakespeare.txt").read_text()
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    cut = int(len(text) * 0.9)

    (tmp_path / "served").mkdir()
    (tmp_path / "served/input.txt").write_text(text)
    with LoopbackHub(tmp_path / "served", [Fault("input.txt", drop_after=500_000)]) as hub:
        options = ("--level", "char", "--url", f"{hub.endpoint}/input.txt", "--out", tmp_path / "char")
        result = run_command("python", SCRIPT, *options, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        assert hub.ranges("input.txt") == [None, "bytes=500000-"]
    tokens = prepared(tmp_path / "char", "--source", "tiny", "--level", "char")  # again, and now nothing is downloaded
    assert (len(tokens["train"]), len(tokens["val"]), len(characters)) == (1_003_854, 111_540, 65)
    assert tokens["train"].tolist() == [number[character] for character in text[:cut]]
    assert tokens["val"].tolist() == [number[character] for character in text[cut:]]
    assert load_tokenizer(read_manifest(tmp_path / "char")["tokenizer"]).characters == "".join(characters)

    tokens = prepared(tmp_path / "bpe", "--input", real_data / "tinyshakespeare.txt")
    assert (len(tokens["train"]), len(tokens["val"])) == (301_966 + 1, 36_059 + 1)  # nanoGPT's, and the first EOT
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert tokens[split].tolist() == [EOT, *GPT2Tokenizer().encode(part)]


def test_a_wrong_or_absent_download(tmp_path: Path) -> None:
    (tmp_path / "served").mkdir()
    (tmp_path / "served/input.txt").write_text("First Citizen:\nBefore we proceed any further\n")
    out = tmp_path / "out"
    with LoopbackHub(tmp_path / "served") as hub:
        options = ("--source", "tiny", "--url", f"{hub.endpoint}/input.txt", "--out", out)
        world = hub.environment(tmp_path)
        assert "hash differs" in one_line_error(run_command("python", SCRIPT, *options, **world))
        offline = run_command("python", SCRIPT, *options, **world | {"HF_HUB_OFFLINE": "1"})
        assert "HF_HUB_OFFLINE" in one_line_error(offline)
        hub.stop()
        assert f"copy the file from a machine with a network to {out}" in one_line_error(
            run_command("python", SCRIPT, *options, **world)
        )
    assert not list(out.rglob("*"))


def test_a_text_of_ones_own(tmp_path: Path) -> None:
    text = "Größe: naïve café, 日本語 — ok\r\n" * 20
    (tmp_path / "text.txt").write_bytes(text.encode())
    tokens = prepared(tmp_path / "out", "--level", "char", "--input", tmp_path / "text.txt")
    tokenizer = load_tokenizer(read_manifest(tmp_path / "out")["tokenizer"])
    assert tokenizer.decode(tokens["train"]) + tokenizer.decode(tokens["val"]) == text
    assert len(tokens["train"]) == int(len(text) * 0.9)


@pytest.mark.parametrize(
    ("options", "status", "said"),
    [
        (["--input", "absent.txt"], 1, "No such file"),
        (["--input", "latin.txt"], 1, "no UTF-8"),
        (["--input", "empty.txt", "--level", "char"], 1, "too few"),
        (["--source", "plays", "--input", "latin.txt"], 2, "--source tiny"),
        (["--input", "latin.txt", "--url", "http://x"], 2, "give one of them"),
        (["--level", "word"], 2, "--level"),
    ],
)
def test_mistakes(tmp_path: Path, options: list[str], status: int, said: str) -> None:
    (tmp_path / "latin.txt").write_bytes("Grösse".encode("latin-1") * 9)
    (tmp_path / "empty.txt").touch()
    script = Path(__file__).resolve().parents[2] / SCRIPT
    result = run_command("python", script, *options, "--out", tmp_path / "out", cwd=tmp_path)
    assert said in one_line_error(result, status)
    assert not (tmp_path / "out").exists()


def test_the_checksum_is_the_published_one(real_data: Path) -> None:
    from prepare.shakespeare import TINY_SHA256

    assert hashlib.sha256((real_data / "tinyshakespeare.txt").read_bytes()).hexdigest() == TINY_SHA256
