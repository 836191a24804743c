"""Instructions: read from both formats, and masked to the token."""

import json
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from prepare.finetuning.instructions import Template, encode, question, read_instructions
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer

TOKENIZER, TEMPLATE = GPT2Tokenizer(), Template()
ALPACA = [
    {"instruction": "Name a colour.", "input": "", "output": "Red."},
    {"instruction": "Add.", "input": "1 + 2", "output": "3"},
]
TALK = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Hello!"},
        {"role": "user", "content": "Bye"},
        {"role": "assistant", "content": "See you."},
        {"role": "user", "content": "unanswered"},
    ]
}


def write(folder: Path, entries: list, suffix: str = ".json") -> Path:
    path = folder / f"examples{suffix}"
    lines = "".join(json.dumps(entry) + "\n" for entry in entries)
    path.write_text(lines if suffix == ".jsonl" else json.dumps(entries, indent=2))
    return path


@pytest.mark.parametrize("suffix", [".json", ".jsonl"])
def test_both_formats_become_messages(tmp_path: Path, suffix: str) -> None:
    red, three, talk = read_instructions(write(tmp_path, [*ALPACA, TALK], suffix))[0]
    assert red == [("user", "Name a colour."), ("assistant", "Red.")]
    assert three == [("user", "Add."), ("input", "1 + 2"), ("assistant", "3")] == [*question("Add.", "1 + 2"), three[2]]
    assert [role for role, _ in talk] == ["system", "user", "assistant", "user", "assistant"]


def test_empty_answers_are_counted_and_left_out(tmp_path: Path) -> None:
    path = write(tmp_path, [*ALPACA, {"instruction": "Nothing?", "output": " "}])
    whole, empty = read_instructions(path)
    assert (len(whole), empty) == (2, 1)


def test_an_empty_system_message_or_input_is_as_none(tmp_path: Path) -> None:
    blank = {"messages": [{"role": "system", "content": " "}, *TALK["messages"][1:]]}
    bare = {"messages": TALK["messages"][1:]}
    (first, second, red), empty = read_instructions(write(tmp_path, [blank, bare, {**ALPACA[0], "input": None}]))
    assert (first, red, empty) == (second, [("user", "Name a colour."), ("assistant", "Red.")], 0)


def learnt_part(tokens: list[int], learnt: list[bool]) -> str:
    return TOKENIZER.decode([token for token, counts in zip(tokens, learnt, strict=True) if counts])


def test_learnt_are_the_answer_and_its_end_of_text(real_data: Path) -> None:
    conversations, _ = read_instructions(real_data / "instruction-data.json")
    for messages in conversations:
        tokens, learnt, cut = encode(messages, TOKENIZER, TEMPLATE, 1000)
        answer = messages[-1][1]
        assert learnt_part(tokens, learnt) == answer + "<|endoftext|>"
        assert (tokens[-1], cut) == (EOT, "")
        prompt = "".join(TEMPLATE.write(role, text) for role, text in messages)
        assert TOKENIZER.decode(tokens) == prompt + answer + "<|endoftext|>"
        assert tokens[: learnt.index(True)] == TEMPLATE.prompt(messages[:-1], TOKENIZER) == TOKENIZER.encode(prompt)


def test_each_answer_of_a_conversation_is_learnt(tmp_path: Path) -> None:
    ((messages), *_), _ = read_instructions(write(tmp_path, [TALK]))
    tokens, learnt, _ = encode(messages, TOKENIZER, TEMPLATE, 1000)
    assert learnt_part(tokens, learnt) == "Hello!<|endoftext|>See you.<|endoftext|>"
    assert tokens[: len(tokens) - 1 - len(TOKENIZER.encode("See you."))] == TEMPLATE.prompt(messages[:-1], TOKENIZER)


def test_too_long_a_prompt_loses_its_beginning_and_too_long_an_answer_its_end() -> None:
    messages = [("user", "word " * 50 + "last"), ("assistant", "an answer of some tokens")]
    whole, _, _ = encode(messages, TOKENIZER, TEMPLATE, 1000)
    tokens, learnt, cut = encode(messages, TOKENIZER, TEMPLATE, 20)
    assert (tokens, cut) == (whole[-20:], "prompt")
    assert learnt_part(tokens, learnt) == "an answer of some tokens<|endoftext|>"
    tokens, learnt, cut = encode(messages, TOKENIZER, TEMPLATE, 7)
    assert (len(tokens), cut) == (7, "answer")
    assert TOKENIZER.decode(tokens) == "### Response:\nan answer of"


def test_an_answer_with_nothing_before_it_is_refused() -> None:
    bare, messages = Template(assistant=""), [("assistant", "Hello!"), ("user", "Hi"), ("assistant", "Bye.")]
    for begun in (messages, messages[:1]):
        assert learnt_part(*encode(begun, TOKENIZER, TEMPLATE, 1000)[:2]).startswith("Hello!")
        with pytest.raises(UserError, match=r"template\.assistant is empty, and nothing .* the answer 'Hello!'"):
            encode(begun, TOKENIZER, bare, 1000)
    assert learnt_part(*encode(messages[1:], TOKENIZER, bare, 1000)[:2]) == "Bye.<|endoftext|>"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '[{"instruction": "a",\n  "output" "b"}]', ["a.json:2 is not valid JSON", "column 12"]),
        (
            "a.jsonl",
            '{"instruction": "a", "output": "b"}\n{"instruction": }\n',
            ["a.jsonl:2 is not valid JSON", "column 17"],
        ),
        ("a.json", '{"instruction": "a", "output": "b"}', ["one dict, not a list"]),
        ("a.json", '[{"instruction": "a", "answer": "b"}]', ["entry 1 has no output, but instruction, answer"]),
        ("a.json", '[{"instruction": "a", "output": 3}]', ["entry 1: output is '3', not a text"]),
        (
            "a.json",
            '{"instruction": "a"}\n{"instruction": "b"}\n',
            ["a.json:2 is not valid JSON", "column 1", ".jsonl"],
        ),
        (
            "a.jsonl",
            '\n{"messages": [{"role": "user", "content": "a"}]}',
            ["a.jsonl:2 has no message of the assistant"],
        ),
        ("a.json", '[{"messages": [{"role": "bot", "content": "a"}]}]', ["entry 1", "role 'bot'"]),
        ("a.json", '[{"messages": ["a"]}]', ["entry 1: messages are objects"]),
        ("a.json", "[]", ["holds no example"]),
        ("a.json", '[{"instruction": "a", "output": ""}]', ["every example (1) has an empty instruction or answer"]),
        ("a.json", "[1]", ["entry 1 is no object"]),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as failure:
        read_instructions(tmp_path / name)
    for word in [name, *words]:
        assert word in str(failure.value)
