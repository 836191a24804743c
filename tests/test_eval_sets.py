"""Evaluation sets: the published files arrive checked; tasks made of held-out text are what they say."""

import dataclasses
import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.utils import close_session

from prepare import eval_sets
from prepare.cli import UserError
from prepare.continuation import find_passages, make_tasks
from prepare.known_files import HELLASWAG
from prepare.plays import HELD_OUT, read_play
from prepare.shards import build_manifest, find_shards, write_manifest, write_shard
from prepare.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.conftest import one_line_error, run_command
from tests.loopback_hub import Fault, LoopbackHub

SCRIPT = "prepare/eval_sets.py"


def shard_of(folder: Path, documents: list[str], tokenizer: GPT2Tokenizer | CharTokenizer) -> Path:
    """A held-out shard of documents, and its manifest."""
    folder.mkdir()
    begin = [] if tokenizer.eot is None else [tokenizer.eot]
    tokens = [token for document in documents for token in begin + tokenizer.encode(document)]
    record = write_shard(folder / "x_val_000000.bin", tokens, len(documents))
    write_manifest(folder, build_manifest("x", None, [], tokenizer.describe(), {}, [record]))
    return folder / "x_val_000000.bin"


def test_lambada_is_downloaded_once_and_checked(tmp_path: Path, real_data: Path) -> None:
    served = tmp_path / "served"
    served.mkdir()
    shutil.copy(real_data / "lambada_test.jsonl", served)
    with LoopbackHub(served, [Fault("lambada", status=503), Fault("lambada", drop_after=9999)]) as hub:
        options = ("lambada", "--lambada-url", f"{hub.endpoint}/lambada_test.jsonl", "--out", tmp_path / "out")
        for _ in range(2):
            result = run_command("python", SCRIPT, *options, **hub.environment(tmp_path))
            assert result.returncode == 0, result.stderr
            assert "lambada_test.jsonl: 5,153 tasks" in result.stdout
        assert hub.ranges("lambada") == [None, None, "bytes=9999-"]
    assert (tmp_path / "out/lambada_test.jsonl").read_bytes() == (real_data / "lambada_test.jsonl").read_bytes()


def test_hellaswag_is_known_by_its_git_blob(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    served = tmp_path / "served"
    served.mkdir()
    (served / "h.jsonl").write_text('{"ind": 0}\n')
    with LoopbackHub(served) as hub:
        hub.adopt(monkeypatch, tmp_path)
        command = ["hellaswag", "--hellaswag-url", f"{hub.endpoint}/h.jsonl", "--out", str(tmp_path / "out")]
        with pytest.raises(UserError, match="hash differs"):
            eval_sets.main(command)
        assert list((tmp_path / "out").iterdir()) == []
        blob = subprocess.run(["git", "hash-object", served / "h.jsonl"], capture_output=True, text=True, check=True)
        monkeypatch.setitem(
            eval_sets.KNOWN, "hellaswag", dataclasses.replace(HELLASWAG, git_blob=blob.stdout.strip())
        )
        eval_sets.main(command)
    close_session()
    assert (tmp_path / "out/hellaswag_val.jsonl").read_text() == '{"ind": 0}\n'


def test_without_a_network(tmp_path: Path) -> None:
    with LoopbackHub(tmp_path) as hub:
        world = hub.environment(tmp_path)
    error = one_line_error(run_command("python", SCRIPT, "--out", tmp_path / "out", **world))
    assert "cannot get https://raw.githubusercontent.com/" in error
    assert f"copy the file from a machine with a network to {tmp_path}/out/hellaswag_val.jsonl" in error
    assert list((tmp_path / "out").iterdir()) == []
    assert "continuation" in one_line_error(run_command("python", SCRIPT, "wikitext"), 2)


@pytest.mark.parametrize("level", ["bpe", "char"])
def test_tasks_out_of_plays(tmp_path: Path, level: str) -> None:
    plays = [read_play(name) for name in HELD_OUT]
    tokenizer = GPT2Tokenizer() if level == "bpe" else CharTokenizer("".join(plays))
    shard = shard_of(tmp_path / "data", plays, tokenizer)
    out = tmp_path / "tasks.jsonl"
    command = ("continuation", "--shards", tmp_path / "data/*_val_*.bin", "--out", out, "--tasks", 150, "--seed", 3)
    result = run_command("python", SCRIPT, *command)
    assert result.returncode == 0, result.stderr
    tasks = [json.loads(line) for line in out.read_text().splitlines()]
    assert tasks == make_tasks([shard], 150, 3) != make_tasks([shard], 150, 4)
    text = "".join(plays)
    assert [task["ind"] for task in tasks] == list(range(150))
    assert len({task["ctx"] for task in tasks}) == 150
    assert {task["label"] for task in tasks} == {0, 1, 2, 3}
    for task in tasks:
        assert set(task) == {"ind", "activity_label", "ctx", "label", "endings", "split"}
        true = task["endings"][task["label"]]
        assert len(set(task["endings"])) == 4
        assert all(ending in text for ending in task["endings"])
        follows = [f"{task['ctx']} {ending}" in text for ending in task["endings"]]
        assert follows == [ending == true for ending in task["endings"]]
        assert f"\n{task['ctx']}" in f"\n{text}", "a context begins with a line"
        assert all(0.5 < len(ending) / len(true) < 2 for ending in task["endings"])
        assert 28 <= len(task["ctx"].split()) <= 60
        assert all(6 <= len(ending.split()) <= 20 and "\n\n" not in ending for ending in task["endings"])
    ends = [re.search(rf"{re.escape(task['endings'][task['label']])}(.?)", text)[1] for task in tasks]
    assert ends.count("") > 140, "most endings run to the end of a line"


def test_tasks_out_of_long_lines(tmp_path: Path) -> None:
    words = [f"w{number}" for number in range(4000)]
    documents = [" ".join(words[start : start + 500]) for start in range(0, 4000, 500)]
    tasks = make_tasks([shard_of(tmp_path / "data", documents, GPT2Tokenizer())], 50, 0)
    for task in tasks:
        context, true = task["ctx"].split(), task["endings"][task["label"]].split()
        numbers = [int(word[1:]) for word in context + true]
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert len({number // 500 for number in numbers}) == 1, "a task stays in its document"
        assert len(context) == 60
        assert len(true) == 14


def test_a_literal_end_of_text_is_text(tmp_path: Path) -> None:
    document = " ".join(f"<|endoftext|> v{number}" for number in range(300))
    shard = shard_of(tmp_path / "data", [document], GPT2Tokenizer())
    assert all(task["ctx"] in document for task in make_tasks([shard], 20, 0))


def test_no_passage_in_a_short_document_or_a_speakers_name() -> None:
    assert find_passages("too short to make anything of") == []
    names = "\n\n".join(f"DUKE OF VENICE THE {number}TH:" for number in range(200))
    assert find_passages(names) == []


def test_too_little_text(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "data", [read_play(HELD_OUT[0])[:3000]], GPT2Tokenizer())
    result = run_command("python", SCRIPT, "continuation", "--shards", shard, "--out", tmp_path / "out/tasks.jsonl")
    assert "200 tasks need 200" in one_line_error(result)
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError, match="no token shards match"):
        find_shards(str(tmp_path / "absent*.bin"))
