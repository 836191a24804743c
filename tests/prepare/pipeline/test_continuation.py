"""Tasks made of held-out text: the true ending follows its context, and the others are like it but do not."""

import re
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from prepare.pipeline.continuation import find_continuations, make_tasks
from prepare.sources.plays import HELD_OUT, read_play
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.documents import shard_of


@pytest.mark.parametrize("level", ["bpe", "char"])
def test_tasks_from_plays(tmp_path: Path, level: str) -> None:
    plays = [read_play(name) for name in HELD_OUT]
    tokenizer = GPT2Tokenizer() if level == "bpe" else CharTokenizer("".join(plays))
    shard = shard_of(tmp_path / "data", plays, tokenizer)
    tasks = make_tasks([shard], 150, seed=3)
    assert tasks == make_tasks([shard], 150, seed=3) != make_tasks([shard], 150, seed=4)
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
        assert f"\n{task['ctx']}" in f"\n{text}", "a context starts with a line"
        assert all(0.5 < len(ending) / len(true) < 2 for ending in task["endings"])
        assert 28 <= len(task["ctx"].split()) <= 60
        assert all(6 <= len(ending.split()) <= 20 and "\n\n" not in ending for ending in task["endings"])
    ends = [re.search(rf"{re.escape(task['endings'][task['label']])}(.?)", text)[1] for task in tasks]
    assert ends.count("") > 140, "most endings run to the end of a line"


def test_tasks_from_long_lines(tmp_path: Path) -> None:
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


def test_a_refrain_is_not_a_wrong_ending(tmp_path: Path) -> None:
    lines = [" ".join(f"w{line if line % 5 else 0}x{word}" for word in range(14)) for line in range(200)]
    tasks = make_tasks([shard_of(tmp_path / "data", ["\n".join(lines)], GPT2Tokenizer())], 100, 0)
    assert sum(task["endings"][task["label"]].startswith("w0x4 ") for task in tasks) > 3
    assert all(len(set(task["endings"])) == 4 for task in tasks)


def test_text_that_repeats_itself_is_refused(tmp_path: Path) -> None:
    document = "one two three four five six seven " * 100
    with pytest.raises(UserError, match="repeats itself: of 30 endings, 0 differ from 'five six"):
        make_tasks([shard_of(tmp_path / "data", [document], GPT2Tokenizer())], 20, 0)


def test_a_literal_end_of_text_is_text(tmp_path: Path) -> None:
    document = " ".join(f"<|endoftext|> v{number}" for number in range(300))
    shard = shard_of(tmp_path / "data", [document], GPT2Tokenizer())
    assert all(task["ctx"] in document for task in make_tasks([shard], 20, 0))


def test_no_continuation_in_a_short_document_or_a_speakers_name() -> None:
    assert find_continuations("too short to make anything of") == []
    names = "\n\n".join(f"DUKE OF VENICE THE {number}TH:" for number in range(200))
    assert find_continuations(names) == []


def test_too_little_text(tmp_path: Path) -> None:
    shard = shard_of(tmp_path / "data", [read_play(HELD_OUT[0])[:3000]], GPT2Tokenizer())
    with pytest.raises(UserError, match="200 tasks need 200"):
        make_tasks([shard], 200, 1)
