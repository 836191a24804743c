"""HellaSwag and LAMBADA: from the file to the tokens that are scored. What a model makes of them is in scoring.py."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from prepare.common.cli import UserError
from prepare.common.files import read_json_lines
from prepare.tokens.tokenizer import Tokenizer

Format = Literal["plain", "lm-eval"]
FORMATS: tuple[Format, ...] = ("plain", "lm-eval")
ENDINGS = 4
TAG = re.compile(r"\[.*?\]")  # [header], [title], [step], [substeps]: left in the original's WikiHow texts
SENTENCE_END = re.compile(r"[.?!][\"')]* +")


@dataclass(frozen=True)
class Request:
    """One question to a model: how likely is each continuation of a context?"""

    context: list[int]  # token ids, at least one
    continuations: list[list[int]]  # token ids of each, at least one
    lengths: list[int]  # what acc_norm divides each log-likelihood by
    label: int  # the right continuation

    def longest(self) -> int:
        """Tokens in the context and the longest continuation."""
        return len(self.context) + max(map(len, self.continuations))


@dataclass(frozen=True)
class HellaSwagTask:
    """One line of a HellaSwag file."""

    where: str  # file and line, for messages
    ind: int | None
    activity_label: str
    ctx: str
    ctx_a: str | None  # ctx up to its last, begun sentence; None in copies that leave it out
    ctx_b: str | None  # that begun sentence: "the man"; empty in WikiHow's tasks
    endings: list[str]
    label: int


@dataclass(frozen=True)
class Passage:
    """One line of a LAMBADA file; its last word is to be predicted."""

    where: str
    text: str


def load_hellaswag(path: Path | str, limit: int | None = None) -> list[HellaSwagTask]:
    """The tasks of a HellaSwag file, the original or a cleaned copy; `limit` (None or 0: all) takes the first ones.

    Raises:
        UserError: no such file, or a line without a field; it names the line.
    """
    tasks = []
    for where, row in _json_lines(path, limit):
        endings, label = _field(row, "endings", list, where), row.get("label")
        for number, ending in enumerate(endings):
            if not isinstance(ending, str) or not ending.strip():
                raise UserError(f"{where}: ending {number} is {ending!r} and has no tokens: mend the line or remove it")
        if len(endings) != ENDINGS:
            raise UserError(f"{where}: {len(endings)} endings, not {ENDINGS}: is this a HellaSwag file?")
        if str(label) not in map(str, range(ENDINGS)):
            raise UserError(f"{where}: label is {label!r}, not 0 to {ENDINGS - 1}; the test split has none: take val")
        has_parts = "ctx_a" in row
        tasks.append(
            HellaSwagTask(
                where,
                row.get("ind"),
                _field(row, "activity_label", str, where),
                _field(row, "ctx", str, where),
                _field(row, "ctx_a", str, where) if has_parts else None,
                _field(row, "ctx_b", str, where) if has_parts else None,
                endings,
                int(label),
            )
        )
    return tasks


def hellaswag_request(task: HellaSwagTask, tokenizer: Tokenizer, style: Format) -> Request:
    """A task's tokens, and what its accuracies divide by.

    plain (build-nanogpt, llm.c): ctx, then " " + ending, each encoded by itself; acc_norm is the mean per token.
    lm-eval (lm-evaluation-harness): "activity: Ctx" cleaned, then " " + cleaned ending; acc_norm is per character.
    """
    if style == "plain":
        context = encode_context(tokenizer, task.ctx)
        continuations = [tokenizer.encode(" " + ending) for ending in task.endings]
        return Request(context, continuations, [len(tokens) for tokens in continuations], task.label)
    query, choices = harness_prompt(task)
    pairs = [encode_pair(tokenizer, query, " " + choice) for choice in choices]
    for number, choice in enumerate(choices):
        if not choice:
            raise UserError(f"{task.where}: ending {number}, {task.endings[number]!r}, has no tokens once cleaned")
    return Request(pairs[0][0], [ending for _, ending in pairs], [len(choice) for choice in choices], task.label)


def harness_prompt(task: HellaSwagTask) -> tuple[str, list[str]]:
    """The harness's query and choices (lm_eval/tasks/hellaswag/utils.py).

    The original's fields are treated exactly as the harness does. A copy without ctx_a and ctx_b has been cleaned
    before: there ctx is split where its last, unfinished sentence begins (WikiHow's have none), and texts are cleaned
    by an idempotent `clean`, since the harness's own cleaning alters some of its own results.
    """
    if task.ctx_a is not None and task.ctx_b is not None:
        ctx = task.ctx_a + " " + task.ctx_b.capitalize()
        return _harness_clean(f"{task.activity_label}: {ctx}"), [_harness_clean(ending) for ending in task.endings]
    ends = [match.end() for match in SENTENCE_END.finditer(task.ctx)]
    cut = ends[-1] if ends and not task.ctx.endswith((".", "?", "!")) else len(task.ctx)
    ctx = task.ctx[:cut] + task.ctx[cut:].capitalize()
    return clean(f"{task.activity_label}: {ctx}"), [clean(ending) for ending in task.endings]


def clean(text: str) -> str:
    """The harness's cleaning of a text that still has a [tag]; others are clean. Idempotent."""
    return _harness_clean(text) if TAG.search(text) else text


def _harness_clean(text: str) -> str:
    return TAG.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def load_lambada(path: Path | str, limit: int | None = None) -> list[Passage]:
    """The passages of OpenAI's lambada_test.jsonl; `limit` (None or 0: all) takes the first ones.

    Raises:
        UserError: no such file, or a line without a text that ends in a word.
    """
    passages = []
    for where, row in _json_lines(path, limit):
        text = _field(row, "text", str, where)
        if text != text.rstrip(" ") or not text.strip():
            raise UserError(f"{where}: the text does not end in a word: {text[-20:]!r}")
        passages.append(Passage(where, text))
    return passages


def lambada_request(passage: Passage, tokenizer: Tokenizer) -> Request:
    """The last word, with the space before it, as the one continuation of what stands before (lambada_openai's)."""
    context, _, word = passage.text.rpartition(" ")
    context_tokens, tokens = encode_pair(tokenizer, context, " " + word)
    return Request(context_tokens, [tokens], [len(tokens)], 0)


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """The harness's: spaces that end the context belong to the continuation; both are encoded in one piece."""
    body = context.rstrip()
    whole, prefix = tokenizer.encode(context + continuation), tokenizer.encode(body)
    return prefix or encode_context(tokenizer, ""), whole[len(prefix) :]


def encode_context(tokenizer: Tokenizer, context: str) -> list[int]:
    """A context's tokens; an empty one is the end-of-text token, which begins every document."""
    tokens = tokenizer.encode(context)
    if not tokens and tokenizer.eot is None:
        raise UserError(f"an empty context needs an end-of-text token, and the {tokenizer.name} vocabulary has none")
    return tokens or [tokenizer.eot]


def _json_lines(path: Path | str, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each line's place (file:line) and object."""
    path, number = Path(path), 0
    if not path.exists():
        raise UserError(f"{path} is not there: fetch it (python prepare/eval_sets.py), or name another file")
    for number, row in islice(read_json_lines(path), limit or None):
        yield f"{path}:{number}", row
    if not number:
        raise UserError(f"{path} is empty: fetch it again (python prepare/eval_sets.py)")


def _field(row: dict[str, Any], name: str, kind: type, where: str) -> Any:
    if not isinstance(row.get(name), kind):
        raise UserError(f"{where}: {name} is {row.get(name)!r}, not a {kind.__name__}; the line has {_names(row)}")
    return row[name]


def _names(row: dict[str, Any]) -> str:
    return ", ".join(row) or "no fields"


def truncated(requests: Sequence[Request], block_size: int) -> int:
    """How many requests are longer than a model with this block size can see (their last token is not an input)."""
    return sum(request.longest() - 1 > block_size for request in requests)
