"""Tasks in HellaSwag's format out of any held-out text: which of four endings is the one that follows?

    ctx      O, then unfold the passion of my love,\nSurprise her with discourse of my
    endings  dear faith:\nIt shall become thee well to act my woes; | (three from elsewhere in the text, of like length)

Contexts begin at the beginning of a line (a speech's, if one begins there) and are cut between two words of a line, so
that context, space and true ending are the text as it was; endings run to the end of a line, and not into the next
speech, where the lines are short enough. This is no HellaSwag: it shows that a model learns, and compares with nothing.
"""

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np

from prepare.common.cli import UserError
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import Tokenizer, load_tokenizer

LOOK = 1_000_000  # tokens read, at most
CONTEXT_WORDS = (30, 60)
ENDING_WORDS = (6, 20)
STRIDE = 7  # words between two places where the text may be cut
CANDIDATES = 30  # wrong endings to choose those of like length from


@dataclass(frozen=True)
class Passage:
    """A context and the ending that follows it."""

    context: str
    ending: str


def make_tasks(shards: Sequence[Path], count: int, seed: int) -> list[dict]:
    """`count` tasks with HellaSwag's fields, the same ones for the same shards, count and seed.

    UserError if the shards hold too little text for so many, or text that repeats itself too often.
    """
    passages = [passage for document in _documents(shards) for passage in find_passages(document)]
    random.Random(seed).shuffle(passages)
    if len(passages) < max(count, CANDIDATES + 1):
        raise UserError(
            f"the text in {len(shards)} shards has {len(passages)} places to make tasks of, and {count} tasks need "
            f"{max(count, CANDIDATES + 1)}: give more shards, or fewer --tasks"
        )
    return [_task(index, passages, random.Random(f"{seed} {index}")) for index in range(count)]


def _task(index: int, passages: list[Passage], choice: random.Random) -> dict:
    true = passages[index]
    others = {p.ending for p in choice.sample(passages, CANDIDATES)} - {true.ending}
    wrong = sorted(others, key=lambda ending: (abs(len(ending) - len(true.ending)), ending))[:3]
    if len(wrong) < 3:
        raise UserError(
            f"the text repeats itself: of {CANDIDATES} endings, {len(wrong)} are others than {true.ending[:60]!r}, and "
            "a task needs 3: give other shards"
        )
    label = choice.randrange(4)
    endings = [*wrong[:label], true.ending, *wrong[label:]]
    return {
        "ind": index,
        "activity_label": "Continuation",
        "ctx": true.context,
        "label": label,
        "endings": endings,
        "split": "val",
    }


def find_passages(document: str) -> list[Passage]:
    """The places in a document to make tasks of, in order."""
    words = list(re.finditer(r"\S+", document))
    # gaps[i] follows word i; Windows' line ends count as others, and stay in what is found
    gaps = [document[word.end() : after.start()].replace("\r\n", "\n") for word, after in pairwise(words)]
    found = []
    for cut in range(CONTEXT_WORDS[1], len(words) - ENDING_WORDS[1], STRIDE):
        line_end = document.find("\n", words[cut].start())
        # between two lines, or in a speaker's name
        if gaps[cut - 1] != " " or document.endswith((":", ":\r"), 0, line_end):
            continue
        start = _first(gaps, "\n\n", cut) or _first(gaps, "\n", cut) or cut - CONTEXT_WORDS[1]
        end = _last(gaps, cut)
        if end is not None:
            context = document[words[start].start() : words[cut - 1].end()]
            found.append(Passage(context, document[words[cut].start() : words[end].end()]))
    return found


def _first(gaps: list[str], mark: str, cut: int) -> int | None:
    """The first word after `mark` that leaves a context of the right length before word `cut`."""
    least, most = CONTEXT_WORDS
    return next((word for word in range(cut - most, cut - least) if word and mark in gaps[word - 1]), None)


def _last(gaps: list[str], cut: int) -> int | None:
    """The last word of the ending that begins with word `cut`; None if a speech ends too early."""
    least, most = ENDING_WORDS
    end = None
    for word in range(cut, cut + most):
        if "\n" in gaps[word] and word - cut + 1 >= least:
            end = word
        if "\n\n" in gaps[word]:
            return end
    return cut + (least + most) // 2 if end is None else end


def _documents(shards: Sequence[Path]) -> list[str]:
    """The texts of the shards' first LOOK tokens."""
    documents, left = [], LOOK
    for path in shards:
        tokenizer = _tokenizer(path)
        tokens = np.asarray(open_shard(path)[:left])
        left -= len(tokens)
        starts = [] if tokenizer.eot is None else np.flatnonzero(tokens == tokenizer.eot)
        for document in np.split(tokens, starts):
            documents.append(tokenizer.decode(document[document != tokenizer.eot]))
    return documents


def _tokenizer(path: Path) -> Tokenizer:
    manifest = read_manifest(path.parent)
    return load_tokenizer(None if manifest is None else manifest["tokenizer"])
