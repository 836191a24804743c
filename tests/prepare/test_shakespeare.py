"""Shakespeare in shards: the plays, and Tiny Shakespeare's tokens as nanoGPT makes them."""

from pathlib import Path

import numpy as np
import pytest
from huggingface_hub.utils import close_session

from prepare import shakespeare, verify
from prepare.sources.plays import HELD_OUT, PLAYS, read_play
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer, load_tokenizer
from tests.helpers.commands import mistake
from tests.helpers.loopback_hub import LoopbackHub


def prepared(out: Path, *options: object) -> dict[str, np.ndarray]:
    """Prepare and verify a folder; the tokens of each split."""
    shakespeare.main([str(word) for word in ("--out", out, *options)])
    verify.main([str(out)])
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


def test_tiny_shakespeare_is_nanogpts(tmp_path: Path, real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = (real_data / "tinyshakespeare.txt").read_text()
    characters = sorted(set(text))
    number = {character: index for index, character in enumerate(characters)}
    cut = int(len(text) * 0.9)

    (tmp_path / "served").mkdir()
    (tmp_path / "served/input.txt").write_text(text)
    with LoopbackHub(tmp_path / "served") as hub:
        hub.adopt(monkeypatch, tmp_path)
        monkeypatch.setattr(shakespeare, "TINY_URL", f"{hub.endpoint}/input.txt")
        shakespeare.main(["--source", "tiny", "--level", "char", "--out", str(tmp_path / "char")])
    close_session()
    tokens = prepared(tmp_path / "char", "--source", "tiny", "--level", "char")  # again, and now nothing is downloaded
    assert (len(tokens["train"]), len(tokens["val"]), len(characters)) == (1_003_854, 111_540, 65)
    assert tokens["train"].tolist() == [number[character] for character in text[:cut]]
    assert tokens["val"].tolist() == [number[character] for character in text[cut:]]
    assert load_tokenizer(read_manifest(tmp_path / "char")["tokenizer"]).characters == "".join(characters)

    tokens = prepared(tmp_path / "bpe", "--input", real_data / "tinyshakespeare.txt")
    assert (len(tokens["train"]), len(tokens["val"])) == (301_966 + 1, 36_059 + 1)  # nanoGPT's, and the first EOT
    for split, part in (("train", text[:cut]), ("val", text[cut:])):
        assert tokens[split].tolist() == [EOT, *GPT2Tokenizer().encode(part)]


def test_an_input_text(tmp_path: Path) -> None:
    text = "Größe: naïve café, 日本語 — ok\r\n" * 20
    (tmp_path / "text.txt").write_bytes(text.encode())
    tokens = prepared(tmp_path / "out", "--level", "char", "--input", tmp_path / "text.txt")
    tokenizer = load_tokenizer(read_manifest(tmp_path / "out")["tokenizer"])
    assert tokenizer.decode(tokens["train"]) + tokenizer.decode(tokens["val"]) == text
    assert len(tokens["train"]) == int(len(text) * 0.9)


@pytest.mark.parametrize(
    ("options", "status", "message"),
    [
        (["--input", "absent.txt"], 1, "cannot read absent.txt"),
        (["--input", "latin.txt"], 1, "latin.txt: byte 2 (0xf6) is not utf-8"),
        (["--input", "pointer.txt"], 1, "pointer.txt is a Git LFS pointer"),
        (["--source", "plays", "--input", "latin.txt"], 2, "--source plays"),
        (["--level", "word"], 2, "--level"),
    ],
)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, options: list[str], status: int, message: str
) -> None:
    (tmp_path / "latin.txt").write_bytes("Grösse".encode("latin-1") * 9)
    (tmp_path / "pointer.txt").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1115394\n")
    monkeypatch.chdir(tmp_path)
    found, error = mistake(shakespeare.main, *options, "--out", tmp_path / "out")
    assert (found, message in error) == (status, True), error
    assert not (tmp_path / "out").exists()
