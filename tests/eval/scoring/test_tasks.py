"""HellaSwag's and LAMBADA's files, prompts and tokens."""

import json

import pytest

from eval.scoring.tasks import (
    HellaSwagTask,
    Request,
    clean,
    harness_prompt,
    hellaswag_request,
    lambada_request,
    load_hellaswag,
    load_lambada,
    truncated,
)
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer

ROW = {
    "ind": 24,
    "activity_label": "Roof shingle removal",
    "ctx_a": "A man is sitting on a roof.",
    "ctx_b": "he",
    "ctx": "A man is sitting on a roof. he",
    "label": 3,
    "endings": ["is using wrap.", "is ripping tiles off.", "is holding a cube.", "starts pulling."],
}


def _task(**fields) -> HellaSwagTask:
    return HellaSwagTask(**ROW | {"ctx_a": None, "ctx_b": None} | fields)


def _file(tmp_path, *rows):
    path = tmp_path / "tasks.jsonl"
    path.write_text("".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows))
    return path


# --- HellaSwag: the file ----------------------------------------------------------------------------------------------


def test_reads_the_original_and_copies_without_ctx_a(tmp_path):
    copy = {key: value for key, value in ROW.items() if key not in ("ctx_a", "ctx_b")} | {"label": "2"}
    path = _file(tmp_path, ROW, copy, ROW)
    original, copied, _ = load_hellaswag(path)
    assert (original.ctx_a, original.ctx_b, original.label) == (ROW["ctx_a"], "he", 3)
    assert (copied.ctx_a, copied.ctx_b, copied.label) == (None, None, 2)
    assert original.endings == copied.endings == ROW["endings"]
    assert [len(load_hellaswag(path, limit)) for limit in (None, 0, 2, 9)] == [3, 3, 2, 3]


@pytest.mark.parametrize(
    ("load", "good", "bad", "words"),
    [
        (load_hellaswag, ROW, {**ROW, "endings": ["a", "b", "c"]}, "is not in HellaSwag's format"),
        (load_hellaswag, ROW, {**ROW, "label": ""}, "the test split has none"),
        (load_hellaswag, ROW, {"text": "A passage."}, "it has text"),
        (load_hellaswag, ROW, "<html>", "is not valid JSON"),
        (load_lambada, {"text": "a b"}, ROW, "is not in LAMBADA's format"),
        (load_lambada, {"text": "a b"}, {"text": "ends in a space "}, "text is 'ends in a space '"),
    ],
)
def test_a_line_in_another_format_is_named(tmp_path, load, good, bad, words):
    path = _file(tmp_path, good, bad)
    with pytest.raises(UserError, match=f"{path}:2 ") as caught:
        load(path)
    assert words in str(caught.value)
    with pytest.raises(UserError, match=r"absent does not exist: fetch it \(python prepare/eval_sets\.py"):
        load(tmp_path / "absent")


# --- HellaSwag: the harness's prompt ----------------------------------------------------------------------------------


def test_the_originals_fields_become_the_harness_prompt():
    task = _task(ctx_a="A man is on a roof.", ctx_b="the man in the NBA", endings=["  sits  down ", "b", "c", "d"])
    query, choices = harness_prompt(task)
    assert query == "Roof shingle removal: A man is on a roof. The man in the nba"
    assert choices[0] == "sits down"


def test_wikihows_tags_go_as_in_the_harness():
    task = _task(
        activity_label="Health",
        ctx_a="[header] How to rest [title] Lie down. [step] Be quiet.",
        ctx_b="",
        endings=["[substeps] Sleep. [title] Wake up. [step] Rise.", "Close [your] eyes.", "c", "d"],
    )
    query, choices = harness_prompt(task)
    assert query == "Health: How to rest. Lie down. Be quiet."
    assert choices[:2] == [" Sleep.. Wake up. Rise.", "Close eyes."]  # the harness keeps the space of a leading tag


@pytest.mark.parametrize(
    ("ctx", "expected"),
    [
        ("A man sits. He waits! the other man", "A man sits. He waits! The other man"),
        ('The words "we cut!" appear. a girl named " irene "', 'The words "we cut!" appear. A girl named " irene "'),
        ("How to rest. Lie down. Be quiet.", "How to rest. Lie down. Be quiet."),
        ("no sentence has ended", "no sentence has ended"),
    ],
)
def test_a_copys_context_is_divided_where_its_last_sentence_begins(ctx, expected):
    query, _ = harness_prompt(_task(activity_label="X", ctx=ctx))
    assert query == f"X: {expected}"


def test_a_copy_of_an_original_gives_the_same_prompt():
    original = _task(ctx_a=ROW["ctx_a"], ctx_b=ROW["ctx_b"])
    assert harness_prompt(original) == harness_prompt(_task())


def test_real_cleaned_tasks_keep_their_text(real_data):
    tasks = load_hellaswag(real_data / "hellaswag_val.jsonl")
    assert len(tasks) == 10042
    changed = sum(clean(ending) != ending for task in tasks for ending in task.endings)
    assert changed < 20  # the few that still have something in [brackets]
    capitalized = 0
    for task in tasks:
        query, choices = harness_prompt(task)
        assert (clean(query), [clean(choice) for choice in choices]) == (query, choices)
        capitalized += task.ctx not in query
    # ActivityNet's 3,243 tasks end in an unfinished sentence, a few with a digit or a quote; WikiHow's are unchanged.
    assert 3230 < capitalized < 3260


# --- HellaSwag: the tokens --------------------------------------------------------------------------------------------


def test_plain_request_encodes_context_and_endings_separately():
    tokenizer = GPT2Tokenizer()
    request = hellaswag_request(_task(), tokenizer, "plain")
    assert tokenizer.decode(request.context) == ROW["ctx"]
    assert [tokenizer.decode(ending) for ending in request.continuations] == [" " + ending for ending in ROW["endings"]]
    assert request.lengths == [len(ending) for ending in request.continuations]
    assert request.label == 3


def test_lm_eval_request_divides_by_characters_and_leaves_no_space_at_the_contexts_end():
    tokenizer = GPT2Tokenizer()
    task = _task(ctx_a="A roof [step]", ctx_b="", endings=["[step] Sit.", "Stand up.", "naïve", "座"])
    request = hellaswag_request(task, tokenizer, "lm-eval")
    assert tokenizer.decode(request.context) == "Roof shingle removal: A roof"
    assert [tokenizer.decode(ending) for ending in request.continuations][:2] == ["   Sit.", "  Stand up."]
    assert request.lengths == [len(" Sit."), len("Stand up."), 5, 1]  # of 6 and 3 bytes


# --- LAMBADA ----------------------------------------------------------------------------------------------------------


def test_lambada_asks_for_the_last_word_with_its_space():
    tokenizer = GPT2Tokenizer()
    request = lambada_request('it was "mine," said\nSchadenfreude', tokenizer)
    assert tokenizer.decode(request.context) == 'it was "mine,"'
    assert [tokenizer.decode(word) for word in request.continuations] == [" said\nSchadenfreude"]


def test_an_empty_context_is_the_end_of_text():
    assert lambada_request("word", GPT2Tokenizer()).context == [50256]
    with pytest.raises(UserError, match="end-of-text"):
        lambada_request("word", CharTokenizer("word "))


def test_real_lambada(real_data):
    passages = load_lambada(real_data / "lambada_test.jsonl")
    assert len(passages) == 5153
    assert not any(passage.endswith(" ") for passage in passages)


def test_truncated_counts_requests_longer_than_the_block_size():
    fits, too_long = Request([1] * 5, [[2] * 4, [2]], [1, 1], 0), Request([1] * 6, [[2], [2] * 4], [1, 1], 0)
    assert truncated([fits, too_long, fits], 8) == 1  # the last token is a target only
