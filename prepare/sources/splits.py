"""Which files of --input train the model, which validate it, and how small files share shards.

Splits. A file validates if its name, or a folder that --input found it in, has the word `validation`, `valid`, `val` or
`dev`; it is left out if it has the word `test`; all others train. If that leaves none to train on, names do not count.
`--split none` ignores names, `--split train` or `val` makes all of the input that split.

Small files. A file of less than SMALL_FILE bytes of text, and of fewer than a shard has tokens, shares its shards with
the other small files of its split, in the order of --input: the pipeline sees them as one input file of many documents.

Held-out text. Where no file validates, the first tokens of the input are held out: the first shard, if the first input
file fills it; else HELD_OUT of all tokens, at most one shard, and at least the LEAST_HELD_OUT that
configs/quickstart.yaml needs to evaluate. `--val-fraction` gives the share instead. The number of all tokens is
estimated from the sizes of the files and the first SAMPLE characters; it is exact if those are all.
"""

import hashlib
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from prepare.common.cli import warn
from prepare.sources.batches import Batch, group
from prepare.sources.inputs import LocalFile, Source, find_inputs
from prepare.sources.readers import COMPRESSED, SUFFIXES, TABLES, check_documents

SPLITS = {"train": "train", "validation": "val", "valid": "val", "val": "val", "dev": "val", "test": "test"}
SMALL_FILE = 1 << 20  # of a megabyte, what does not fill a window of 1,024 tokens is 0.2%
PACKED_RATIO = 8  # bytes of text in a byte of a table or a compressed file, about and at most
HELD_OUT, LEAST_HELD_OUT = 0.05, 129
SAMPLE = 1_000_000
EVERYTHING = sys.maxsize
HEAD = 200  # characters that tell whether two files begin with the same text


def find_files(
    patterns: Sequence[str], split: str, column: str, separator: str | None, encoding: str | None
) -> list[LocalFile]:
    """The files that --input names and --split leaves to read, without copies. UserError if one cannot be read so.

    Args:
        column, separator, encoding: the options of these names, see LocalFile.
    """
    files = assign_splits([LocalFile(path, column, separator, encoding) for path in find_inputs(patterns)], split)
    for file in files:
        check_documents(file.path, column, encoding)
    return leave_out_copies(files)


def assign_splits(files: Sequence[LocalFile], choice: str) -> list[LocalFile]:
    """Set each file's `split` as --split says: "train", "val", or None where a share of all files will be held out.

    Returns the files that are to be read, those that validate first. Prints what their names were taken for.
    """
    places = [str(file.path if "://" in str(file.path) else Path(str(file.path)).absolute()) for file in files]
    parts = [place.split("/") for place in places]
    levels = zip(*(names[:-1] for names in parts), strict=False)
    common = sum(1 for _ in takewhile(lambda names: len(set(names)) == 1, levels))
    val, train, test = (named := {"val": [], "train": [], "test": []}).values()
    for file, names in zip(files, parts, strict=True):
        words = re.findall("[a-z]+", " ".join(names[common:]).lower())
        split = next((SPLITS[word] for word in reversed(words) if word in SPLITS), "train")
        named[choice if choice in ("train", "val") else split].append(file)
    if choice == "none" or (choice == "auto" and (not train or not (val or test))):
        return list(files)
    for split in ("val", "train") if val or choice == "train" else ():
        for file in named[split]:
            file.split = split
    if choice == "auto":
        told = f"{_list_names(val)} to validate, " if val else ""
        out = f"; left out: {_list_names(test)}" if test else ""
        print(
            f"splits by name: {told}{_list_names(train)} to train{out} (--split none, train or val decides otherwise)"
        )
    return val + train


def leave_out_copies(files: Sequence[LocalFile]) -> list[LocalFile]:
    """The files without those that hold the text of their split again in another format: their first documents begin
    alike, and the format that stands first in SUFFIXES is kept. Warns of files with equal contents."""
    formats: dict[tuple, list[LocalFile]] = {}
    for file in files:
        suffix = next(number for number, suffix in enumerate(SUFFIXES) if file.name.endswith(suffix))
        formats.setdefault((str(file.split), suffix), []).append(file)
    heads: dict[str, list[str]] = {}
    copies: list[LocalFile] = []
    for split, suffix in sorted(formats) if len(formats) > 1 else ():
        head, others = _head(formats[split, suffix][0]), heads.setdefault(split, [])
        if head and any(head.startswith(other) or other.startswith(head) for other in others):
            copies += formats[split, suffix]
        elif head:
            others.append(head)
    if copies:
        print(f"left out, as the same text in another format: {_list_names(copies)} (--input can name what to read)")
    left_out = set(map(id, copies))
    kept = [file for file in files if id(file) not in left_out]

    first: dict[str, LocalFile] = {}
    pairs = [(file, first.setdefault(file.contents["sha256_of_ends"], file)) for file in kept if file.contents["size"]]
    equal = [(file, other) for file, other in pairs if file is not other]
    for file, other in sorted(equal, key=lambda pair: pair[0].split == pair[1].split)[:1]:
        where = "" if file.split == other.split else ", and one of them validates what the other trains"
        warn(f"{file.path} has the contents of {other.path}{where}: leave it out ({len(equal):,} such pairs)")
    return kept


def _list_names(files: Sequence[LocalFile]) -> str:
    names = [file.name for file in files[:3]]
    return ", ".join(names) + (f" and {len(files) - 3:,} more" if len(files) > 3 else "")


def _head(file: LocalFile) -> str:
    """The beginning of a file's first text, without space around it."""
    batch = next(file.batches(), None)
    texts = pc.utf8_slice_codeunits(batch.texts[:1], 0, 2 * HEAD).to_pylist() if batch else []
    return "".join(texts).strip()[:HEAD]


class SmallFiles(Source):
    """Small files as one input file: their documents, one file after the other."""

    def __init__(self, files: Sequence[LocalFile]) -> None:
        self.files, self.split = files, files[0].split
        self.name = f"{files[0].name} and {len(files) - 1:,} more"

    def identity(self) -> dict:
        files = [file.contents for file in self.files]
        digest = hashlib.sha256("".join(file["name"] + file["sha256_of_ends"] for file in files).encode())
        facts = {"name": self.name, "size": sum(file["size"] for file in files), "sha256_of_ends": digest.hexdigest()}
        return facts | {"split": self.split, "held_out": self.held_out, "files": [file["name"] for file in files]}

    def batches(self, start: int = 0) -> Iterator[Batch]:
        sizes, opened = [_text_bytes(file) for file in self.files], 0  # bytes: of each file, and of the opened ones

        def values() -> Iterator[str | None]:
            nonlocal opened
            for file, size in zip(self.files, sizes, strict=True):
                opened += size
                for batch in file.batches():
                    texts = dict(zip(batch.rows, batch.texts.to_pylist(), strict=True))
                    yield from map(texts.get, range(batch.read))

        return group(values(), lambda: opened / max(1, sum(sizes)), start)


def group_small_files(files: Sequence[LocalFile], shard_tokens: int) -> list[LocalFile | SmallFiles]:
    """The files, with the small ones of each split as one source in the place of their first."""
    groups: dict[object, list[LocalFile]] = {}
    for file in files:
        small = _text_bytes(file) < min(SMALL_FILE, shard_tokens)
        groups.setdefault(file.split if small else file.path, []).append(file)
    return [files[0] if len(files) == 1 else SmallFiles(files) for files in groups.values()]


def _text_bytes(source: LocalFile | SmallFiles) -> int:
    """Bytes of text in one local file or several; of packed ones about, and rarely more."""
    if isinstance(source, SmallFiles):
        return sum(map(_text_bytes, source.files))
    return source.contents["size"] * (PACKED_RATIO if source.name.endswith((*TABLES, *COMPRESSED)) else 1)


def hold_out(
    sources: Sequence[LocalFile | SmallFiles],
    shard_tokens: int,
    fraction: float | None,
    encode: Callable[[pa.Array], Any],
) -> None:
    """Set `held_out` of the sources; `encode` is the tokenizer's encode_texts."""
    sizes = np.array([_text_bytes(source) for source in sources])
    estimates = ((_estimate_tokens(source, encode), size) for source, size in zip(sources, sizes, strict=True))
    tokens = sizes * next((tokens / size for tokens, size in estimates if tokens), 0)
    total = tokens.sum()
    left = min(max(HELD_OUT * total, min(LEAST_HELD_OUT, total / 2)), shard_tokens)
    if fraction is not None:
        left = fraction * total
    for number, (source, here) in enumerate(zip(sources, tokens, strict=True)):
        if fraction is None and here >= shard_tokens and isinstance(source, LocalFile):
            source.held_out = shard_tokens if number else None  # its first shard; None: as every first file's
            return
        if here > left:
            source.held_out = round(left)
            return
        source.held_out, left = EVERYTHING, left - here


def _estimate_tokens(source: Source, encode: Callable[[pa.Array], Any]) -> float:
    batch = next(source.batches(), None)
    if batch is None or not batch.size:
        return 0
    sample = batch.texts[: int(np.searchsorted(np.cumsum(batch.lengths()), SAMPLE)) + 1]
    sample = pc.utf8_slice_codeunits(sample, 0, SAMPLE)
    return len(encode(sample).tokens) * batch.size / pc.sum(pc.binary_length(sample)).as_py() / batch.done
