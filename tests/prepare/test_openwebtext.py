"""OpenWebText: the documents, order and split that `datasets` gives, from a hub with faults and from local files."""

from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from prepare import openwebtext, verify
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import find_shards, open_shard
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer
from tests.helpers.commands import mistake, run_command
from tests.helpers.loopback_hub import Fault, LoopbackHub

SCRIPT = "prepare/openwebtext.py"
FILES, ROWS = 4, 1100


@pytest.fixture
def parquet(tmp_path: Path) -> list[Path]:
    """Four files with 4,400 short documents, one of them empty and one with a literal end-of-text."""
    folder = tmp_path / "served/datasets/Skylion007/openwebtext/plain_text"
    folder.mkdir(parents=True)
    texts = [f"Document {number}: naïve café, {number * 7919} 日本語.\n" for number in range(FILES * ROWS)]
    texts[5], texts[6] = "", "text with <|endoftext|> in it"
    paths = [folder / f"train-{index:05d}-of-{FILES:05d}.parquet" for index in range(FILES)]
    for index, path in enumerate(paths):
        pq.write_table(pa.table({"text": texts[index * ROWS : (index + 1) * ROWS], "n": list(range(ROWS))}), path)
    return paths


def tokens_of(out: Path, split: str) -> np.ndarray:
    return np.concatenate([open_shard(path) for path in find_shards(str(out / f"*_{split}_*.bin"))])


def reference(paths: list[Path], cache: Path) -> dict[str, list[int]]:
    """What nanoGPT's own lines give, with end-of-text before each document."""
    rows = datasets.load_dataset("parquet", data_files=[str(path) for path in paths], cache_dir=str(cache))["train"]
    split = rows.train_test_split(test_size=0.0005, seed=2357, shuffle=True)
    encode = GPT2Tokenizer().encode
    return {
        ours: [token for row in split[theirs] for token in [EOT, *encode(row["text"])]]
        for ours, theirs in (("train", "train"), ("val", "test"))
    }


def test_from_the_hub_and_from_files(tmp_path: Path, parquet: list[Path]) -> None:
    faults = [
        Fault("/api/", status=429, retry_after=0),
        Fault("00001-of", drop_after=5000),
        Fault("00002-of", status=500),
    ]
    with LoopbackHub(tmp_path / "served", faults) as hub:
        command = ("python", SCRIPT, "--out", tmp_path / "hub", "--shard-tokens", 20_000, "--workers", 1)
        result = run_command(*command, **hub.environment(tmp_path))
        assert result.returncode == 0, result.stderr
        revision = hub.commit(tmp_path / "served/datasets/Skylion007/openwebtext")
        downloads = len(hub.ranges(".parquet"))
        (tmp_path / "served/datasets/Skylion007/openwebtext/README.md").write_text("A commit that changes no text.")
        again = run_command(*command, **hub.environment(tmp_path))
        assert "finished already" in again.stdout
        assert len(hub.ranges(".parquet")) == downloads

    expected = reference(parquet, tmp_path / "cache")
    assert expected["val"].count(EOT) == 3  # of 4,400
    for split in ("train", "val"):
        assert tokens_of(tmp_path / "hub", split).tolist() == expected[split]
    manifest = read_manifest(tmp_path / "hub")
    assert (manifest["dataset"], manifest["revision"]) == ("Skylion007/openwebtext", revision)
    assert manifest["shards"][0]["file"] == "openwebtext_val_000000.bin"
    assert not (tmp_path / "hub/.download").exists()
    verify.main([str(tmp_path / "hub")])

    words = ["--out", tmp_path / "files", "--shard-tokens", 20_000, "--input", parquet[0].parent / "*.parquet"]
    openwebtext.main([*map(str, words), "--workers=3"])
    names = sorted(path.name for path in (tmp_path / "hub").glob("*.bin"))
    assert len(names) > 5
    assert names == sorted(path.name for path in (tmp_path / "files").glob("*.bin"))
    for name in names:
        assert (tmp_path / "hub" / name).read_bytes() == (tmp_path / "files" / name).read_bytes()


def test_a_corrupt_file_is_named_and_may_be_replaced(tmp_path: Path, parquet: list[Path]) -> None:
    words = [str(word) for word in ("--input", *parquet, "--out", tmp_path / "out", "--workers", 1)]
    content = parquet[1].read_bytes()
    parquet[1].write_bytes(content[:4] + bytes(2000) + content[2004:])
    assert str(parquet[1]) in mistake(openwebtext.main, *words)[1]
    assert not (tmp_path / "out").exists()
    parquet[1].write_bytes(content)
    openwebtext.main(words)


def test_every_kind_of_column_that_fineweb_takes(tmp_path: Path) -> None:
    """Binaries, invalid UTF-8, and no rows at all, in the first file too: the tokens are those of strings."""
    texts = [f"Document {number}, naïve\n" for number in range(900)]
    broken = [text.encode() + (b"\xff" if number == 7 else b"") for number, text in enumerate(texts)]
    binary = pa.array(broken)
    strings = pa.Array.from_buffers(pa.string(), len(binary), binary.buffers())  # as they come, not looked at
    kinds = {"0": pa.nulls(0), "1": strings, "2": binary, "3": strings[:0], "4": pa.array(texts).dictionary_encode()}
    for name, values in kinds.items():
        table = pa.table({"text": values})
        with pq.ParquetWriter(tmp_path / f"{name}.parquet", table.schema) as writer:
            writer.write_table(table[:0], row_group_size=1)  # a group without rows
            writer.write_table(table)
    replaced = [text.decode("utf-8", "replace") for text in broken]
    pq.write_table(pa.table({"text": [*replaced, *replaced, *texts]}), tmp_path / "plain")
    expected = reference([tmp_path / "plain"], tmp_path / "cache")
    openwebtext.main(["--input", f"{tmp_path}/*.parquet", "--out", str(tmp_path / "out")])
    for split in ("train", "val"):
        assert tokens_of(tmp_path / "out", split).tolist() == expected[split]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--column", "body"], "no column 'body'; it has text, n"),
        (["--input", "null.parquet"], "no text"),
        (["--input", "text.txt"], "local .parquet"),
        (["--input", "file://PARQUET"], "local .parquet"),
        (["--input", "absent.parquet"], "no such file"),
    ],
)
def test_mistakes(
    tmp_path: Path, parquet: list[Path], monkeypatch: pytest.MonkeyPatch, options: list[str], message: str
) -> None:
    pq.write_table(pa.table({"text": pa.nulls(5, pa.string())}), tmp_path / "null.parquet")
    (tmp_path / "text.txt").write_text("text")
    options = [option.replace("PARQUET", str(parquet[0])) for option in options]
    monkeypatch.chdir(tmp_path)
    status, error = mistake(openwebtext.main, "--input", parquet[0], "--out", "out", *options)
    assert (status, message in error) == (1, True), error
    assert not (tmp_path / "out").exists()  # nor the text as Arrow
