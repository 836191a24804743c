"""train_tokenizer.py: the same file for the same text, what it holds out, its mistakes; shards in its vocabulary."""

import random
import shutil
from pathlib import Path

import numpy as np
import pytest

from prepare import train_tokenizer
from prepare.common.cli import UserError
from prepare.sources.plays import PLAYS, read_play
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard
from prepare.tokens.tokenizer import load_tokenizer
from prepare.train_tokenizer import main, train
from tests.helpers.commands import one_line_error, run_command
from tests.helpers.documents import write_documents

SPEECHES = read_play(PLAYS[0]).split("\n\n")


def speeches(path: Path, texts: list[str]) -> Path:
    return write_documents(path, [{"text": text} for text in texts])


def test_the_file_does_not_depend_on_threads(tmp_path):
    words = ["--input", str(speeches(tmp_path / "speeches.jsonl", SPEECHES[:300])), "--vocab-size", "500", "--out"]
    main([*words, str(tmp_path / "here")])  # as many threads as cores
    result = run_command("python", "prepare/train_tokenizer.py", *words, tmp_path / "one", RAYON_NUM_THREADS="1")
    assert result.returncode == 0, result.stderr
    assert (tmp_path / "here/tokenizer.json").read_bytes() == (tmp_path / "one/tokenizer.json").read_bytes()


def test_the_merges_do_not_depend_on_the_order_of_the_text():
    texts = [text.encode() for text in SPEECHES[:300]]
    assert train(texts, 600) == train(random.Random(1).sample(texts, len(texts)), 600)


def test_one_piece_of_twenty_is_held_out(tmp_path, monkeypatch, capsys):
    texts = [f"{number} {text}" for number, text in enumerate(SPEECHES[:400])]
    trained: list[bytes] = []
    monkeypatch.setattr(train_tokenizer, "train", lambda pieces, size: trained.extend(pieces) or train(pieces, size))
    words = ["--vocab-size", "400", "--input", str(speeches(tmp_path / "train.jsonl", texts))]
    main([*words, "--out", str(tmp_path / "all")])
    assert trained == [text.encode() for number, text in enumerate(texts) if number % 20]
    size = sum(len(text.encode()) for text in texts[::20])
    assert f" on {size / 1e6:.2f} MB that it did not see" in capsys.readouterr().out

    # a sample, of every fourth document; a file that validates is not read; long documents are cut
    trained.clear()
    monkeypatch.setattr(train_tokenizer, "SAMPLE_BYTES", sum(map(len, texts)) // 3)
    words += [str(speeches(tmp_path / "val.jsonl", ["unseen"]))]
    main([*words, "--out", str(tmp_path / "sample")])
    assert trained == [text.encode() for number, text in enumerate(texts[::4]) if number % 20]
    assert "one of 4 of its 400 documents" in capsys.readouterr().err
    trained.clear()
    monkeypatch.setattr(train_tokenizer, "SAMPLE_BYTES", 1 << 30)
    monkeypatch.setattr(train_tokenizer, "PIECE", 1000)
    text = "".join(SPEECHES[:400])
    (tmp_path / "long.txt").write_text(text)
    main(["--vocab-size", "400", "--input", str(tmp_path / "long.txt"), "--out", str(tmp_path / "long")])
    pieces = [text[start : start + 1000].encode() for start in range(0, len(text), 1000)]
    assert trained == [piece for number, piece in enumerate(pieces) if number % 20]


def test_mistakes(tmp_path):
    path, out = speeches(tmp_path / "speeches.jsonl", SPEECHES[:100]), tmp_path / "out"
    for words, message in (
        (["--vocab-size", "400"], "--input FILE"),
        (["--vocab-size", "400", "--source", "plays", "--input", path], "--source plays"),
        (["--vocab-size", "256", "--source", "plays"], "257 to 65536"),
        (["--vocab-size", "65537", "--source", "plays"], "257 to 65536"),
        (["--vocab-size", "30000", "--input", path], r"30,000 is too large.* [\d,]+ tokens: give at most that"),
        (["--vocab-size", "400", "--input", path, "--column", "content"], "has no 'content'"),
    ):
        with pytest.raises(UserError, match=message):
            main([*map(str, words), "--out", str(out)])
        assert not out.exists()
    small = ["--input", str(path), "--out", str(out), "--vocab-size"]
    main([*small, "300"])
    main([*small, "300"])  # the same again
    with pytest.raises(UserError, match="another vocabulary"):
        main([*small, "301"])
    for options, status, message in (
        (("fineweb.py", "--input", path, "--tokenizer", tmp_path / "none"), 1, r"none/tokenizer.json is missing"),
        (("fineweb.py", "--pretokenized", "--tokenizer", out), 2, "--pretokenized"),
        (("shakespeare.py", "--level", "char", "--tokenizer", out), 2, "--level char"),
    ):
        result = run_command("python", f"prepare/{options[0]}", *options[1:], "--out", tmp_path / "shards")
        assert message in one_line_error(result, status)


def test_shards_describe_their_vocabulary(tmp_path):
    """They decode, verify and resume without the tokenizer's folder, and another vocabulary is refused."""
    path, tokenizer, out = speeches(tmp_path / "s.jsonl", SPEECHES[:300]), tmp_path / "tokenizer", tmp_path / "shards"
    main(["--input", str(path), "--vocab-size", "400", "--out", str(tokenizer)])
    words = ("python", "prepare/fineweb.py", "--input", path, "--out", out, "--val-fraction", 0.1)
    result = run_command(*words, "--tokenizer", tokenizer)
    assert result.returncode == 0, result.stderr
    shutil.rmtree(tokenizer)
    error = one_line_error(run_command(*words))
    assert "tokenizer {'name': 'bpe', 'vocab_size': 400" in error
    assert len(error) < 600
    result = run_command("python", "prepare/verify.py", out)
    assert result.returncode == 0, result.stderr
    assert " 300 documents, valid (checksums match)" in result.stdout
    loaded = load_tokenizer(read_manifest(out)["tokenizer"])
    shards = [shard for split in ("val", "train") for shard in find_shards(str(out / f"*_{split}_*.bin"))]
    tokens = np.concatenate([open_shard(shard) for shard in shards])
    assert tokens.max() == loaded.eot == 399
    assert loaded.decode(tokens).split("<|endoftext|>")[1:] == SPEECHES[:300]
