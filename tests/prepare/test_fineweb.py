"""fineweb.py end to end: local files, the real corpus against tiktoken, mistakes."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import tiktoken

from prepare.common.cli import UserError
from prepare.fineweb import main
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer
from tests.helpers.commands import mistake, one_line_error, run_command
from tests.helpers.vocabulary import gpt2_vocabulary_files


def parquet(path: Path, texts: list[str], **options: object) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"id": [str(i) for i in range(len(texts))], "text": texts}), path, **options)
    return path


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_real_corpus_is_tiktoken_s_and_decodes_back(real_data, tmp_path, monkeypatch):
    from tiktoken_ext import openai_public

    path = real_data / "corpus" / "000_00000.parquet"
    main(list(map(str, ("--input", path, "--out", tmp_path, "--shard-tokens", 5_000_000))))
    files = {file.name: file.read_bytes() for file in gpt2_vocabulary_files()}
    monkeypatch.setattr(tiktoken.load, "read_file_cached", lambda url, _hash: files[url.rsplit("/", 1)[1]])
    reference = tiktoken.Encoding(**openai_public.gpt2())
    manifest = read_manifest(tmp_path)
    assert manifest["inputs"][0]["engines"]["tiktoken"] == 0
    tokens = np.concatenate([open_shard(tmp_path / shard["file"]) for shard in manifest["shards"]])
    documents = np.split(tokens, np.flatnonzero(tokens == EOT))[1:]
    texts = pq.read_table(path, columns=["text"])["text"].to_pylist()
    expected = reference.encode_ordinary_batch(texts, num_threads=2)
    for document, ids in zip(documents, expected, strict=True):
        assert np.array_equal(document[1:], ids)
    for document, text in zip(documents[::50], texts[::50], strict=True):
        assert reference.decode_bytes(document[1:].tolist()) == text.encode()
    verified = run_command("python", "prepare/verify.py", tmp_path)
    assert verified.returncode == 0, verified.stdout
    assert "3 shards, 14,607,393 tokens, 6,971 documents" in verified.stdout


def test_every_kind_of_input_gives_the_same_tokens(tmp_path, capsys):
    texts = ["one two three", "naïve 日本 😀 <|endoftext|>", "", "four\r\nfive"] * 20
    records = "".join(json.dumps({"text": text, "body": text}) + "\n" for text in texts).encode()
    parquet(tmp_path / "a.parquet", texts, row_group_size=7)
    (tmp_path / "a.jsonl").write_bytes(records)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.gz"), "gzip") as file:
        file.write(records)
    with pa.CompressedOutputStream(str(tmp_path / "a.jsonl.zst"), "zstd") as file:
        file.write(records)
    seen = []
    for suffix, more in (("parquet", []), ("jsonl", ["--column", "body"]), ("jsonl.gz", []), ("jsonl.zst", [])):
        out = tmp_path / suffix
        main(["--input", f"{tmp_path}/*.{suffix}", "--out", str(out), "--shard-tokens", "100", *more])
        printed = capsys.readouterr()
        assert "documents (20 empty, 0 values skipped, " in printed.out
        assert "warning" not in printed.err
        seen.append({name: data for name, data in contents(out).items() if name != "manifest.json"})
    assert seen[0] == seen[1] == seen[2] == seen[3]
    tokens = [
        token for name in sorted(seen[0], key=lambda name: name[-10:]) for token in open_shard(out / name).tolist()
    ]
    assert tokens == [token for text in texts for token in (EOT, *GPT2Tokenizer().encode(text))]
    for number, text in enumerate(texts):
        (tmp_path / f"{number:02d}.txt").write_bytes(text.encode())
    main(["--edu", "--input", f"{tmp_path}/*.txt", "--out", str(tmp_path / "txt")])
    shards = [open_shard(tmp_path / f"txt/finewebedu_{name}.bin").tolist() for name in ("val_000000", "train_000001")]
    assert shards == [tokens[:129], tokens[129:]]


def test_the_same_from_a_folder_a_url_a_separated_text_and_either_engine(tmp_path):
    texts = [f"document {number}\nof several lines" for number in range(50)] + ["\U00016eb4'll"]
    parquet(tmp_path / "some/a.parquet", texts)
    (tmp_path / "all.txt").write_text("\n--\n".join(texts))
    url = (tmp_path / "some" / "*.parquet").as_uri().replace("%2A", "*")
    seen = []
    for number, words in enumerate(
        ([tmp_path / "some"], [url], [tmp_path / "all.txt", "--separator", r"\n--\n"], [url, "--engine", "tiktoken"])
    ):
        out = tmp_path / f"out{number}"
        main(list(map(str, ("--input", *words, "--out", out, "--shard-tokens", 100))))
        seen.append({name: data for name, data in contents(out).items() if name != "manifest.json"})
        engines = {"tiktoken": 51} if "tiktoken" in words else {"gigatoken": 50, "tiktoken": 1}
        assert read_manifest(out)["inputs"][0]["engines"] == engines
    assert seen[0] == seen[1] == seen[2] == seen[3]
    words = ("--input", tmp_path / "all.txt", "--out", tmp_path / "out2", "--shard-tokens", 100)
    assert "separator" in mistake(main, *words)[1]


def tokens_by_split(out: Path) -> tuple[list[int], list[int]]:
    """The tokens of the validation shards and of the training shards, each in order."""
    shards = [out / shard["file"] for shard in read_manifest(out)["shards"]]
    val, train = ([path for path in shards if split in path.name] for split in ("_val_", "_train_"))
    return tuple([token for path in paths for token in open_shard(path).tolist()] for paths in (val, train))


def encoded(texts: list[str]) -> list[int]:
    return [token for text in texts for token in (EOT, *GPT2Tokenizer().encode(text))]


@pytest.mark.parametrize("shape", ["book", "poems", "mixed", "large"])
def test_text_of_any_shape_has_a_held_out_set(tmp_path, shape):
    """About 5% of it, at its beginning, and all the rest to train on, in every number of tasks."""
    source, texts = tmp_path / "in", [" ".join(f"poem {n} line {line}" for line in range(30)) for n in range(500)]
    if shape == "book":
        texts = ["\n".join(texts)]
    source.mkdir()
    for number, text in enumerate(texts):
        (source / f"{number:03d}.txt").write_text(text)
    if shape == "mixed":  # two files that are not small, between small ones
        for name in ("100_.jsonl", "200_.jsonl"):
            texts.append(name + texts[0] * 3000)
            (source / name).write_text(json.dumps({"text": texts[-1]}))
    tokens = encoded(sorted(texts, key=lambda text: text.split(".")[0] if ".jsonl" in text else "0"))
    words = ["--input", source, *(["--shard-tokens", len(tokens) // 3] if shape == "large" else [])]

    def run(out: str, *more: object) -> Path:
        main([str(word) for word in (*words, "--out", tmp_path / out, *more)])
        return tmp_path / out

    val, train = tokens_by_split(run("out"))
    assert val + train == tokens
    assert 0.045 < len(val) / len(tokens) < 0.055
    assert len(list((tmp_path / "out").glob("*.bin"))) == {"mixed": 4, "large": 4}.get(shape, 2)
    for index in (2, 1, 3):
        run("tasks", "--task", f"{index}/3", "--workers", 1)
    assert contents(tmp_path / "tasks") == contents(tmp_path / "out")
    val, train = tokens_by_split(run("more", "--val-fraction", 0.5))
    assert val + train == tokens
    assert 0.45 < len(val) / len(tokens) < 0.55
    with pytest.raises(UserError, match="held_out of input file 0"):
        run("more")


def test_mistakes_are_one_line_and_leave_nothing(tmp_path):
    good = parquet(tmp_path / "good.parquet", ["text"])
    empty = parquet(tmp_path / "empty.parquet", [])
    cut = tmp_path / "cut.parquet"
    cut.write_bytes(good.read_bytes()[:-20])
    bad = tmp_path / "bad.jsonl"
    bad.write_text('{"text": "a"}\n{"text": \n')
    (tmp_path / "a.doc").touch()
    (tmp_path / "none").mkdir()
    out = tmp_path / "out"
    for words, status, message in (
        (["--input", good, tmp_path / "absent.parquet"], 1, "absent.parquet: no such file"),
        (["--input", tmp_path / "*.zst"], 1, "no such file, or none of .parquet"),
        (["--input", tmp_path / "none"], 1, "no such file, or none of .parquet"),
        (["--input", "nosuch://bucket/a.parquet"], 1, "nosuch"),
        (["--input", good, "--engine", "fast"], 2, "'fast'"),
        (["--input", tmp_path / "a.doc"], 1, "unknown kind of file"),
        (["--input", good, "--column", "body"], 1, "no column 'body'; it has id, text"),
        (["--input", good, cut], 1, "cut.parquet"),
        (["--input", bad], 1, "bad.jsonl:2"),
        (["--input", empty], 1, "no text"),
        (["--input", good, "--shard-tokens", "0"], 2, "'0' is not an integer above zero"),
        (["--input", good, "--shard-tokens", "3_000_000_000"], 2, "3,000,000,000"),
        (["--input", bad, "--separator", ""], 2, "--separator: it is empty"),
        (["--input", "x" * 300], 1, "File name too long"),
        (["--input", good, "--task", "3/2"], 2, "'3/2'"),
        (["--input", good, "--pretokenized"], 2, "leave out --input"),
        (["--version", "20BT"], 2, "20BT"),
        (["--edu", "--version", "100BT", "--pretokenized"], 2, "100BT"),
        (["--input"], 2, "--input"),
        (["--input", ""], 2, "--input: it is empty"),
    ):
        found, error = mistake(main, *words, "--out", out)
        assert (found, message in error) == (status, True), error
        assert not out.exists(), words
    assert "File exists" in one_line_error(run_command("python", "prepare/fineweb.py", "--input", good, "--out", good))
    assert "--out: it is empty" in mistake(main, "--input", good, "--out", "")[1]


def test_a_literal_end_of_text_is_noticed_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    for name in ("a.txt", "b.txt"):
        (tmp_path / name).write_text("one<|endoftext|>two")
    words = ["--input", f"{tmp_path}/?.txt", "--out"]
    main([*words, str(tmp_path / "out")])
    printed = capsys.readouterr().err
    assert printed.count("literal <|endoftext|>") == printed.count("--separator '<|endoftext|>'") == 1
    main([*words, str(tmp_path / "split"), "--separator", "<|endoftext|>"])
    assert "literal <" not in capsys.readouterr().err
