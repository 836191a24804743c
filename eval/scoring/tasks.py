"""HellaSwag and LAMBADA: from files to token ids of contexts and continuations."""

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
TAG = re.compile(r"\[.*?\]")  # [header], [title], [step], [substeps], in the WikiHow texts of the original
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


def truncated(requests: Sequence[Request], block_size: int) -> int:
    """Count the requests that exceed a model's block size (a request's last token is not an input)."""
    return sum(request.longest() - 1 > block_size for request in requests)


@dataclass(frozen=True)
class HellaSwagTask:
    """One line of a HellaSwag file."""

    ind: int | None
    activity_label: str
    ctx: str
    ctx_a: str | None  # ctx without its last, unfinished sentence; None in copies that leave it out
    ctx_b: str | None  # that unfinished sentence: "the man"; empty in WikiHow's tasks
    endings: list[str]
    label: int


def load_hellaswag(path: Path | str, limit: int | None = None) -> list[HellaSwagTask]:
    """Read the first `limit` tasks (None or 0: all) of a HellaSwag file, the original or a cleaned copy. UserError:
    no such file, or a line in another format."""
    tasks = []
    for where, row in _read_examples(path, limit):
        try:
            ctx, activity, endings, label = row["ctx"], row["activity_label"], row["endings"], int(row["label"])
            if len(endings) != ENDINGS or label not in range(ENDINGS):
                raise ValueError
        except (KeyError, ValueError):
            raise UserError(
                f"{where} is not in HellaSwag's format, which has ctx, activity_label, {ENDINGS} endings and a label "
                f"from 0 to {ENDINGS - 1} (the test split has none: take the validation split); it has {', '.join(row)}"
            ) from None
        tasks.append(HellaSwagTask(row.get("ind"), activity, ctx, row.get("ctx_a"), row.get("ctx_b"), endings, label))
    return tasks


def hellaswag_request(task: HellaSwagTask, tokenizer: Tokenizer, style: Format) -> Request:
    """Encode a task.

    plain (build-nanogpt, llm.c): ctx, then " " + ending, encoded separately; acc_norm is the mean per token.
    lm-eval (lm-evaluation-harness): "activity: Ctx" cleaned, then " " + cleaned ending; acc_norm is per character.
    """
    if style == "plain":
        context = encode_context(tokenizer, task.ctx)
        continuations = [tokenizer.encode(" " + ending) for ending in task.endings]
        return Request(context, continuations, [len(tokens) for tokens in continuations], task.label)
    query, choices = harness_prompt(task)
    pairs = [encode_pair(tokenizer, query, " " + choice) for choice in choices]
    return Request(pairs[0][0], [ending for _, ending in pairs], [len(choice) for choice in choices], task.label)


def harness_prompt(task: HellaSwagTask) -> tuple[str, list[str]]:
    """The harness's query and choices (lm_eval/tasks/hellaswag/utils.py).

    The original's fields are treated exactly as the harness does. A copy without ctx_a and ctx_b has been cleaned
    already: its ctx is split where the last, unfinished sentence begins (WikiHow's have none), and texts are cleaned by
    an idempotent `clean`, since the harness's own cleaning changes some texts again when it is repeated.
    """
    if task.ctx_a is not None and task.ctx_b is not None:
        ctx = task.ctx_a + " " + task.ctx_b.capitalize()
        return _harness_clean(f"{task.activity_label}: {ctx}"), [_harness_clean(ending) for ending in task.endings]
    ends = [match.end() for match in SENTENCE_END.finditer(task.ctx)]
    cut = ends[-1] if ends and not task.ctx.endswith((".", "?", "!")) else len(task.ctx)
    ctx = task.ctx[:cut] + task.ctx[cut:].capitalize()
    return clean(f"{task.activity_label}: {ctx}"), [clean(ending) for ending in task.endings]


def clean(text: str) -> str:
    """Apply the harness's cleaning to a text that still has a [tag]; others are clean. Idempotent."""
    return _harness_clean(text) if TAG.search(text) else text


def _harness_clean(text: str) -> str:
    return TAG.sub("", text.strip().replace(" [title]", ". ")).replace("  ", " ")


def load_lambada(path: Path | str, limit: int | None = None) -> list[str]:
    """Read the first `limit` passages (None or 0: all) of OpenAI's lambada_test.jsonl. UserError: no such
    file, or a line in another format."""
    passages = []
    for where, row in _read_examples(path, limit):
        text = row.get("text")
        if not text or text[-1].isspace():
            raise UserError(f"{where} is not in LAMBADA's format, a text that ends in a word: text is {text!r}")
        passages.append(text)
    return passages


def lambada_request(passage: str, tokenizer: Tokenizer) -> Request:
    """Encode the last word, with the space before it, as the continuation of the rest (as lambada_openai does)."""
    context, _, word = passage.rpartition(" ")
    context_tokens, tokens = encode_pair(tokenizer, context, " " + word)
    return Request(context_tokens, [tokens], [len(tokens)], 0)


def encode_pair(tokenizer: Tokenizer, context: str, continuation: str) -> tuple[list[int], list[int]]:
    """Encode context and continuation together, as the harness does: spaces that end the context belong to the
    continuation."""
    together, prefix = tokenizer.encode(context + continuation), tokenizer.encode(context.rstrip())
    return prefix or encode_context(tokenizer, ""), together[len(prefix) :]


def encode_context(tokenizer: Tokenizer, context: str) -> list[int]:
    """Encode a context; an empty one is the end-of-text token, which begins every document."""
    tokens = tokenizer.encode(context)
    if tokens:
        return tokens
    if tokenizer.eot is None:
        raise UserError(f"an empty context needs an end-of-text token, and the {tokenizer.name} vocabulary has none")
    return [tokenizer.eot]


def _read_examples(path: Path | str, limit: int | None) -> Iterator[tuple[str, dict[str, Any]]]:
    """The file and line, and the object, of the first `limit` lines of a dataset."""
    yield from islice(read_json_lines(check_fetched(path)), limit or None)


def check_fetched(path: Path | str) -> Path:
    """The path of a dataset; UserError if it does not exist."""
    if not Path(path).exists():
        raise UserError(f"{path} does not exist: fetch it (python prepare/eval_sets.py), or name another file")
    return Path(path)
