"""Instructions and conversations: read, rendered by a template, and encoded as tokens and their loss mask.

    {"instruction": ..., "input": ..., "output": ...}          Alpaca's (the input may be empty, null or missing)
    {"instruction": ..., "context": ..., "response": ...}      Dolly's
    {"prompt": ..., "completion": ...}                         OpenAI's older, and TRL's (texts, or lists of messages)
    {"messages": [{"role": "user", "content": ...}, ...]}      roles system, user and assistant (system may be empty)
    {"conversations": [{"from": "human", "value": ...}, ...]}  ShareGPT's: system, human and gpt

Alpaca's format: Taori et al. 2023, github.com/tatsu-lab/stanford_alpaca.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from prepare.common.cli import UserError, write_line
from prepare.tokens.tokenizer import Tokenizer
from prepare.tokens.vocabulary import END_OF_TEXT

ROLES = ("system", "user", "input", "assistant")
SHAREGPT = {"human": "user", "gpt": "assistant"}  # its names of roles
ENTRIES = (("instruction", "input", "output"), ("instruction", "context", "response"), ("prompt", "", "completion"))
Message = tuple[str, str]  # role and content; the role "input" is the text that an instruction refers to


@dataclass(frozen=True)
class Template:
    """The text around a message; {} is the message itself. An answer follows `assistant` and ends with end-of-text.

    Args:
        system: around a system message
        user: around an instruction
        input: around the input that the instruction refers to
        assistant: before an answer
    """

    system: str = "{}\n\n"
    user: str = "### Instruction:\n{}\n\n"
    input: str = "### Input:\n{}\n\n"
    assistant: str = "### Response:\n"

    def write(self, role: str, content: str) -> str:
        """A message as the model reads it; for the assistant, the text before an answer."""
        return getattr(self, role).replace("{}", content)

    def prompt(self, messages: Sequence[Message], tokenizer: Tokenizer) -> list[int]:
        """The tokens that an answer to these messages continues."""
        tokens, _ = _tokens_and_loss_mask([*messages, ("assistant", "")], tokenizer, self)
        return tokens[:-1]  # without the end-of-text token, which ends an answer

    def describe(self) -> dict[str, str]:
        """What a checkpoint stores."""
        return asdict(self)


def question(instruction: str, input_text: str = "") -> list[Message]:
    """The messages of an instruction and its input."""
    return [("user", instruction), *([("input", input_text)] if input_text.strip() else [])]


def read_instructions(path: Path, encoding: str | None = None) -> tuple[list[list[Message]], int]:
    """The conversations of a .json, .jsonl or .parquet file, each ending with an answer, and the number of those
    that were left out because a message is empty.

    Raises:
        UserError: names the file, the line or the entry, and what is wrong.
    """
    from prepare.sources.readers import read_records  # slow to import, and not needed to open a model

    conversations = [_conversation(place, entry) for place, entry in read_records(path, encoding)]
    complete = [messages for messages in conversations if all(content.strip() for _, content in messages)]
    if not complete:
        raise UserError(
            f"{path} holds no example, of {len(conversations):,} entries, with an instruction and an answer: give a "
            "list of {instruction, input, output}, {prompt, completion} or {messages}"
        )
    if any(END_OF_TEXT in content for messages in complete for _, content in messages):
        remedy = "remove it from the file; the token itself ends each answer"
        write_line(f"{path} holds a literal {END_OF_TEXT}, which is trained on as text: {remedy}")
    return complete, len(conversations) - len(complete)


def _conversation(place: str, entry: dict) -> list[Message]:
    """The messages of an entry, up to its last answer."""
    talk = entry.get("messages") or entry.get("conversations")
    if isinstance(entry.get("prompt"), list):
        talk = talk or entry["prompt"] + (entry.get("completion") or [])
    if talk:
        pairs = [(turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))) for turn in talk]
        messages = [(SHAREGPT.get(role, role), content) for role, content in pairs]
    else:
        keys = next((keys for keys in ENTRIES if {keys[0], keys[2]} <= entry.keys()), None)
        if keys is None:
            raise UserError(
                f"{place} has {', '.join(entry)}: give instruction and output (or response), prompt and completion, "
                "messages, or conversations"
            )
        instruction, about, answer = (entry.get(key, "") for key in keys)
        messages = [*question(instruction, about or ""), ("assistant", answer)]
    for role, content in messages:
        if role not in ROLES or not isinstance(content, str):
            raise UserError(f"{place}: {role!r} with {content!r}: roles are {', '.join(ROLES)}, contents are text")
    messages = [(role, content) for role, content in messages if role != "system" or content.strip()]
    answers = [number for number, (role, _) in enumerate(messages) if role == "assistant"]
    if not answers:
        raise UserError(f"{place} has no message of the assistant, so there is nothing to train on: remove it")
    return messages[: answers[-1] + 1]  # a question at the end has no answer


def encode_conversation(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template, max_tokens: int
) -> tuple[list[int], list[bool], str]:
    """Encode a conversation as at most `max_tokens` tokens.

    The loss mask is true for the tokens of each answer and the end-of-text after it. A conversation that is too long
    loses tokens on the left, but not the last answer or the text directly before it; an answer that does not
    fit loses its end.

    Returns:
        the tokens, their loss mask, and what was cut: "", "prompt" or "answer".
    """
    tokens, loss_mask = _tokens_and_loss_mask(messages, tokenizer, template)
    answer_start = len(loss_mask) - loss_mask[::-1].index(False)  # of the last answer
    start = min(max(0, len(tokens) - max_tokens), answer_start - len(tokenizer.encode(template.assistant)))
    end = start + max_tokens
    cut = "" if len(tokens) <= max_tokens else "prompt" if end >= len(tokens) else "answer"
    return tokens[start:end], loss_mask[start:end], cut


def _tokens_and_loss_mask(
    messages: Sequence[Message], tokenizer: Tokenizer, template: Template
) -> tuple[list[int], list[bool]]:
    """The tokens of all messages, and which of them belong to answers. The text between two answers is encoded in one
    piece, as it is when a prompt is continued."""
    tokens: list[int] = []
    loss_mask: list[bool] = []
    before = ""
    for role, content in messages:
        before += template.write(role, content)
        if role == "assistant":
            prompt, answer = tokenizer.encode(before), [*tokenizer.encode(content), tokenizer.eot]
            tokens += prompt + answer  # ty: ignore[unsupported-operator]
            loss_mask += [False] * len(prompt) + [True] * len(answer)
            before = ""
    return tokens, loss_mask
