"""Continuation tasks from held-out text, in HellaSwag's format: which of four endings follows the context?

    ctx      O, then unfold the passion of my love,\nSurprise her with discourse of my
    endings  dear faith:\nIt shall become thee well to act my woes; | (three from elsewhere in the text, of like length)

Contexts start at the start of a line (of a speech, if one starts there) and are cut between two words of a line, so
that context, space and true ending are the text as it was. Endings run to the end of a line, and not into the next
speech, where the lines are short enough. Their score shows that a model
learns; it cannot be compared with HellaSwag's.
"""

import random
import re
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np

from prepare.common.cli import UserError
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import load_tokenizer

MAX_TOKENS = 1_000_000  # read from the shards
CONTEXT_WORDS = (30, 60)  # fewest and most
ENDING_WORDS = (6, 20)
STRIDE = 7  # words between two places where the text may be cut
CANDIDATES = 30  # wrong endings, of which those closest in length are taken


class Continuation(NamedTuple):
    """A context and the ending that follows it."""

    context: str
    ending: str


def make_tasks(shards: Sequence[Path], count: int, seed: int) -> list[dict]:
    """`count` tasks with HellaSwag's fields, the same for the same shards, count and seed.

    UserError if the shards hold too little text for `count` tasks, or text that repeats itself too often.
    """
    found = [continuation for document in _read_documents(shards) for continuation in find_continuations(document)]
    random.Random(seed).shuffle(found)
    if len(found) < max(count, CANDIDATES + 1):
        raise UserError(
            f"the text in {len(shards)} shards has {len(found)} places to make tasks from, and {count} tasks need "
            f"{max(count, CANDIDATES + 1)}: give more shards, or fewer --tasks"
        )
    return [_make_task(index, found, random.Random(f"{seed} {index}")) for index in range(count)]


def _make_task(index: int, found: list[Continuation], rng: random.Random) -> dict:
    true = found[index]
    others = {candidate.ending for candidate in rng.sample(found, CANDIDATES)} - {true.ending}
    wrong = sorted(others, key=lambda ending: (abs(len(ending) - len(true.ending)), ending))[:3]
    if len(wrong) < 3:
        raise UserError(
            f"the text repeats itself: of {CANDIDATES} endings, {len(wrong)} differ from {true.ending[:60]!r}, and a "
            "task needs 3: give other shards"
        )
    label = rng.randrange(4)
    return {
        "ind": index,
        "activity_label": "Continuation",
        "ctx": true.context,
        "label": label,
        "endings": [*wrong[:label], true.ending, *wrong[label:]],
        "split": "val",
    }


def find_continuations(document: str) -> list[Continuation]:
    """All contexts and endings that a document can be cut into, in order."""
    words = list(re.finditer(r"\S+", document))
    gaps = [document[word.end() : after.start()] for word, after in pairwise(words)]  # gaps[i] follows word i
    found = []
    for cut in range(CONTEXT_WORDS[1], len(words) - ENDING_WORDS[1], STRIDE):
        line_end = document.find("\n", words[cut].start())
        # between two lines, or in a speaker's name
        if gaps[cut - 1] != " " or document.endswith(":", 0, line_end):
            continue
        start = _first_word(gaps, "\n\n", cut) or _first_word(gaps, "\n", cut) or cut - CONTEXT_WORDS[1]
        end = _last_word(gaps, cut)
        if end is not None:
            context = document[words[start].start() : words[cut - 1].end()]
            found.append(Continuation(context, document[words[cut].start() : words[end].end()]))
    return found


def _first_word(gaps: list[str], mark: str, cut: int) -> int | None:
    """The first word after `mark` that leaves a context of the right length before word `cut`."""
    least, most = CONTEXT_WORDS
    return next((word for word in range(cut - most, cut - least) if word and mark in gaps[word - 1]), None)


def _last_word(gaps: list[str], cut: int) -> int | None:
    """The last word of the ending that starts with word `cut`; None if a speech ends too early."""
    least, most = ENDING_WORDS
    end = None
    for word in range(cut, cut + most):
        if "\n" in gaps[word] and word - cut + 1 >= least:
            end = word
        if "\n\n" in gaps[word]:
            return end
    return cut + (least + most) // 2 if end is None else end


def _read_documents(shards: Sequence[Path]) -> list[str]:
    """The texts of the shards' first MAX_TOKENS tokens."""
    documents, left = [], MAX_TOKENS
    for path in shards:
        manifest = read_manifest(path.parent)
        tokenizer = load_tokenizer(None if manifest is None else manifest["tokenizer"])
        tokens = np.asarray(open_shard(path)[:left])
        left -= len(tokens)
        starts = [] if tokenizer.eot is None else np.flatnonzero(tokens == tokenizer.eot)
        for document in np.split(tokens, starts):
            documents.append(tokenizer.decode(document[document != tokenizer.eot]))
    return documents
