"""Instructions with answers, and conversations: read, written out by a template, and turned into tokens and targets.

    {"instruction": ..., "input": ..., "output": ...}        Alpaca's entries (input may be empty, null or missing)
    {"messages": [{"role": "user", "content": ...}, ...]}    roles system, user and assistant (system may be empty)

Alpaca's format: Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import read_json_lines
from prepare.tokens.tokenizer import Tokenizer

Message = tuple[str, str]  # role (system, user, input, assistant) and content


@dataclass(frozen=True)
class Template:
    """What stands around a message; {} is the message itself. An answer follows `assistant`, and ends with end-of-text.

    Args:
        system: around a system message
        user: around an instruction
        input: around what the instruction is about
        assistant: before an answer
    """

    system: str = "{}\n\n"
    user: str = "### Instruction:\n{}\n\n"
    input: str = "### Input:\n{}\n\n"
    assistant: str = "### Response:\n"

    def write(self, role: str, content: str) -> str:
        """A message as the model reads it; of an answer, what stands before it."""
        return getattr(self, role).replace("{}", content)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """The tokens that an answer to these messages continues."""
        tokens, _ = _tokens([*messages, ("assistant", "")], tokenizer, self)
        return tokens[:-1]  # without the end of the answer, which is still to come

    def describe(self) -> dict[str, str]:
        """What a checkpoint stores."""
        return asdict(self)


def question(instruction: str, about: str = "") -> list[Message]:
    """The messages of an instruction, and of what it is about."""
    return [("user", instruction), *([("input", about)] if about.strip() else [])]


def read_instructions(path: Path) -> tuple[list[list[Message]], int]:
    """The conversations of a .json file (a list) or a .jsonl file, each ending with an answer, and how many were left
    out because an instruction or an answer is empty.

    Raises:
        UserError: names the file, the line and column or the entry, and what is wrong.
    """
    conversations = [_conversation(place, entry) for place, entry in _entries(path)]
    whole = [messages for messages in conversations if all(content.strip() for _, content in messages)]
    if conversations and not whole:
        count = len(conversations)
        raise UserError(f"{path}: every example ({count:,}) has an empty instruction or answer: fill them in")
    if not whole:
        raise UserError(f"{path} holds no example: give a list of {{instruction, input, output}} or {{messages}}")
    return whole, len(conversations) - len(whole)


def _entries(path: Path) -> list[tuple[str, Any]]:
    """Each entry's place (file:line, or its number) and the entry."""
    if path.suffix == ".jsonl":
        return [(f"{path}:{number}", entry) for number, entry in read_json_lines(path)]
    try:
        entries = json.loads(path.read_text("utf-8-sig", errors="replace"))
    except OSError as failure:
        raise UserError(f"{path} cannot be read ({failure.strerror}): name a file that is there") from None
    except json.JSONDecodeError as failure:
        hint = "name a file with one example a line .jsonl" if failure.msg == "Extra data" else "fix it"
        reason = f"{failure.msg}, column {failure.colno}"
        raise UserError(f"{path}:{failure.lineno} is not valid JSON ({reason}): {hint}") from None
    if not isinstance(entries, list):
        raise UserError(f"{path} holds one {type(entries).__name__}, not a list of examples: put them into [...]")
    return [(f"{path}, entry {number}", entry) for number, entry in enumerate(entries, 1)]


def _conversation(place: str, entry: Any) -> list[Message]:
    if not isinstance(entry, dict):
        raise UserError(f"{place} is no object ({str(entry)[:40]!r}): write {{instruction, input, output}}")
    if "messages" in entry:
        return _messages(place, entry["messages"])
    if missing := {"instruction", "output"} - entry.keys():
        there = ", ".join(entry) or "nothing"
        raise UserError(f"{place} has no {' and no '.join(sorted(missing))}, but {there}: write them, or messages")
    about = "" if entry.get("input") is None else entry["input"]
    texts = {"instruction": entry["instruction"], "input": about, "output": entry["output"]}
    if odd := [key for key, value in texts.items() if not isinstance(value, str)]:
        raise UserError(f"{place}: {odd[0]} is {str(texts[odd[0]])[:40]!r}, not a text: write it in quotes")
    return [*question(texts["instruction"], about), ("assistant", texts["output"])]


def _messages(place: str, found: Any) -> list[Message]:
    roles = ("system", "user", "assistant")
    try:
        messages = [(message["role"], message["content"]) for message in found]
    except (TypeError, KeyError):
        raise UserError(f"{place}: messages are objects with role and content: mend it") from None
    for role, content in messages:
        if role not in roles or not isinstance(content, str):
            raise UserError(f"{place}: a message of role {role!r}: roles are {', '.join(roles)}, contents are texts")
    messages = [(role, content) for role, content in messages if role != "system" or content.strip()]
    answers = [number for number, (role, _) in enumerate(messages) if role == "assistant"]
    if not answers:
        raise UserError(f"{place} has no message of the assistant: there is nothing to learn; remove it")
    return messages[: answers[-1] + 1]  # a question at the end has no answer


def encode(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template, most: int
) -> tuple[list[int], list[bool], str]:
    """A conversation as at most `most` tokens, which of them are learnt, and what had to be cut.

    Learnt are the tokens of each answer and the end-of-text behind it. What is too long loses tokens on the left, but
    not the last answer or what stands before it; if that answer is too long by itself, its end is cut, and it has no
    end-of-text.

    Returns:
        tokens, whether each is learnt, and "", "prompt" or "answer".

    Raises:
        UserError: nothing stands before the first answer.
    """
    tokens, learnt = _tokens(messages, tokenizer, template)
    if learnt[0]:
        raise UserError(
            f"template.assistant is empty, and nothing else stands before the answer {messages[0][1][:40]!r}: give "
            "it a text, or that conversation a question"
        )
    answer = len(learnt) - learnt[::-1].index(False)  # where the last answer begins
    start = min(max(0, len(tokens) - most), answer - len(tokenizer.encode(template.assistant)))
    end = start + most
    cut = "" if len(tokens) <= most else "prompt" if end >= len(tokens) else "answer"
    return tokens[start:end], learnt[start:end], cut


def _tokens(messages: Sequence[Message], tokenizer: Tokenizer, template: Template) -> tuple[list[int], list[bool]]:
    """The tokens of all messages, and which of them an answer consists of. What stands between two answers is encoded
    as one text, as anybody would who continues a prompt."""
    tokens: list[int] = []
    learnt: list[bool] = []
    before = ""
    for role, content in messages:
        before += template.write(role, content)
        if role == "assistant":
            prompt, answer = tokenizer.encode(before), [*tokenizer.encode(content), tokenizer.eot]
            tokens += prompt + answer
            learnt += [False] * len(prompt) + [True] * len(answer)
            before = ""
    return tokens, learnt
