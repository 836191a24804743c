"""Instructions: read from every published format, and the loss mask right to the token."""

import json
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from prepare.finetuning.instructions import Template, encode_conversation, question, read_instructions
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer
from tests.helpers.documents import write_documents

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


@pytest.mark.parametrize("suffix", [".json", ".jsonl", ".parquet", ".jsonl.gz"])
@pytest.mark.parametrize(
    "entry",
    [
        {"instruction": "Add.", "context": "1 + 2", "response": "3", "category": "closed_qa"},  # Dolly's
        {"prompt": "Add.\n1 + 2", "completion": "3"},
        {
            "prompt": [{"role": "user", "content": "Add."}],
            "completion": [{"role": "assistant", "content": "3"}],
        },  # TRL's
        {"conversations": [{"from": "human", "value": "Add."}, {"from": "gpt", "value": "3"}], "id": "x"},  # ShareGPT's
    ],
    ids=["dolly", "prompt", "messages", "sharegpt"],
)
def test_formats_as_they_are_published(tmp_path: Path, entry: dict, suffix: str) -> None:
    path = write_documents(tmp_path / f"a{suffix}", [entry])
    if suffix == ".json":
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    ((question, *about, answer),), _ = read_instructions(path)
    assert question == ("user", "Add.\n1 + 2" if entry.get("completion") == "3" else "Add.")
    assert about == ([("input", "1 + 2")] if "context" in entry else [])
    assert answer == ("assistant", "3")


def test_a_literal_end_of_text_is_named_once(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    read_instructions(
        write(tmp_path, [{"prompt": "a", "completion": f"b{end}"} for end in ("", *["<|endoftext|>"] * 2)])
    )
    [line] = capsys.readouterr().err.splitlines()
    assert "examples.json holds a literal <|endoftext|>" in line
    assert "remove it" in line


def test_empty_answers_are_counted_and_left_out(tmp_path: Path) -> None:
    complete, empty = read_instructions(write(tmp_path, [*ALPACA, {"instruction": "Nothing?", "output": " "}]))
    assert (len(complete), empty) == (2, 1)


def test_an_empty_system_message_or_input_is_as_none(tmp_path: Path) -> None:
    blank = {"messages": [{"role": "system", "content": " "}, *TALK["messages"][1:]]}
    bare = {"messages": TALK["messages"][1:]}
    (first, second, red), empty = read_instructions(write(tmp_path, [blank, bare, {**ALPACA[0], "input": None}]))
    assert (first, red, empty) == (second, [("user", "Name a colour."), ("assistant", "Red.")], 0)


def trained_text(tokens: list[int], loss_mask: list[bool]) -> str:
    return TOKENIZER.decode([token for token, counts in zip(tokens, loss_mask, strict=True) if counts])


def test_the_loss_mask_covers_the_answer_and_its_end_of_text(real_data: Path) -> None:
    conversations, _ = read_instructions(real_data / "instruction-data.json")
    for messages in conversations:
        tokens, loss_mask, cut = encode_conversation(messages, TOKENIZER, TEMPLATE, 1000)
        answer = messages[-1][1]
        assert trained_text(tokens, loss_mask) == answer + "<|endoftext|>"
        assert (tokens[-1], cut) == (EOT, "")
        prompt = "".join(TEMPLATE.write(role, text) for role, text in messages)
        assert TOKENIZER.decode(tokens) == prompt + answer + "<|endoftext|>"
        assert tokens[: loss_mask.index(True)] == TEMPLATE.prompt(messages[:-1], TOKENIZER) == TOKENIZER.encode(prompt)


def test_the_loss_mask_covers_each_answer_of_a_conversation(tmp_path: Path) -> None:
    ((messages), *_), _ = read_instructions(write(tmp_path, [TALK]))
    tokens, loss_mask, _ = encode_conversation(messages, TOKENIZER, TEMPLATE, 1000)
    assert trained_text(tokens, loss_mask) == "Hello!<|endoftext|>See you.<|endoftext|>"
    assert tokens[: len(tokens) - 1 - len(TOKENIZER.encode("See you."))] == TEMPLATE.prompt(messages[:-1], TOKENIZER)


def test_too_long_a_prompt_loses_its_beginning_and_too_long_an_answer_its_end() -> None:
    messages = [("user", "word " * 50 + "last"), ("assistant", "an answer of some tokens")]
    complete, _, _ = encode_conversation(messages, TOKENIZER, TEMPLATE, 1000)
    tokens, loss_mask, cut = encode_conversation(messages, TOKENIZER, TEMPLATE, 20)
    assert (tokens, cut) == (complete[-20:], "prompt")
    assert trained_text(tokens, loss_mask) == "an answer of some tokens<|endoftext|>"
    tokens, loss_mask, cut = encode_conversation(messages, TOKENIZER, TEMPLATE, 7)
    assert (len(tokens), cut) == (7, "answer")
    assert TOKENIZER.decode(tokens) == "### Response:\nan answer of"


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.json", '[{"instruction": "a",\n  "output" "b"}]', ["a.json:2 is not valid JSON", "column 12"]),
        ("a.jsonl", '{"output": "b", "instruction": "a"}\n{"instruction": }\n', ["a.jsonl:2 is not valid JSON"]),
        ("a.json", '{"instruction": "a"}\n{"instruction": "b"\n', ["a.json:2 is not valid JSON"]),
        ("a.json", '[{"instruction": "a", "answer": "b"}]', ["entry 1 has instruction, answer: give instruction and"]),
        ("a.json", '[{"instruction": "a", "output": 3}]', ["entry 1: 'assistant' with 3", "contents are text"]),
        ("a.jsonl", '\n{"messages": [{"role": "user", "content": "a"}]}', ["a.jsonl:2 has no message of the assist"]),
        ("a.json", '[{"messages": [{"role": "bot", "content": "a"}]}]', ["entry 1: 'bot' with 'a'"]),
        ("a.json", "[]", ["holds no example"]),
        ("a.json", '[{"instruction": "a", "output": ""}]', ["holds no example, of 1 entries"]),
    ],
)
def test_a_mistake_names_its_place(tmp_path: Path, name: str, text: str, words: list[str]) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(UserError) as failure:
        read_instructions(tmp_path / name)
    for word in [name, *words]:
        assert word in str(failure.value)
