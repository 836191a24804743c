"""gigatoken against tiktoken: every Unicode scalar value in every context that tells the pattern's classes apart.

make exhaustive    # a few minutes; prints what differs, and fails if prepare/tokens/engine.py has other code points

The vocabulary is an artificial one that joins every mark with every byte next to it, so that each place where the
pattern cuts the text shows in the tokens (GPT-2's own hides most of them). What differs here is sent to tiktoken.
"""

import random
import sys
import time
from collections.abc import Iterable, Iterator
from itertools import chain, islice

import numpy as np
import pyarrow as pa
import tiktoken

from prepare.tokens.engine import DIFFERING_CODE_POINTS, Gigatoken
from prepare.tokens.tokenizer import GPT2Tokenizer
from prepare.tokens.vocabulary import PATTERN

MARKS = "al1! \n'"  # what contexts are made of
CONTEXTS = ["{}", " {}", "a{}", "1{}", "!{}", "'{}", "\n{}", "a'{}l", "{}'ll", "{}a", "{}1", "{}!", "{} ", "{}  a"]
# all contexts in one text, for a quick test
TOGETHER = "!{0}! 1{0}1 a{0}a {0}'ll a'{0}l  {0}  {0}\n{0}\n {0}!\t'{0} {0}'s{0}"


def scalars() -> Iterator[int]:
    """All 1,112,064 Unicode scalar values: every code point that is not a surrogate."""
    return chain(range(0xD800), range(0xE000, 0x110000))


def differing_scalars() -> set[int]:
    """Those that prepare/tokens/engine.py sends to tiktoken."""
    return {code for first, last in DIFFERING_CODE_POINTS for code in range(first, last + 1)}


class Cuts:
    """Both engines with the artificial vocabulary."""

    def __init__(self) -> None:
        marks = [ord(mark) for mark in MARKS]
        pairs = [pair for mark in marks for byte in range(256) for pair in ((mark, byte), (byte, mark))]
        tokens = dict.fromkeys(map(bytes, [*((byte,) for byte in range(256)), *pairs]))
        ranks = {token: rank for rank, token in enumerate(tokens)}
        self.tiktoken = tiktoken.Encoding("cuts", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})
        self.gigatoken = Gigatoken(ranks)

    def differing(self, texts: list[str]) -> list[int]:
        """The indices of the texts that the engines cut differently."""
        theirs, offsets = self.gigatoken.encode(pa.array(texts, pa.large_string()))
        ours = [self.tiktoken.encode_to_numpy(text) for text in texts]
        lengths = np.fromiter(map(len, ours), np.int64, len(ours))
        if np.array_equal(np.diff(offsets), lengths) and np.array_equal(np.concatenate(ours), theirs):
            return []
        return [i for i in range(len(texts)) if not np.array_equal(ours[i], theirs[offsets[i] : offsets[i + 1]])]


def adversarial(count: int, seed: int) -> Iterator[str]:
    """Random strings of every class's members, contractions, runs, marks and any code point at all."""
    rng = random.Random(seed)
    some = ["'s", "'ll", "'t", "'re", "'S", "  ", "\u00a0", "\u2003", "\u3000", "\x85", "\x1c", "é", "日", "😀", "٣"]
    more = ["²", "\u0301", "\u200d", "ß", "İ", "ǅ", "<|endoftext|>", "\x00", "\ufeff"]
    pieces = [*some, *more, *"abcXYZ019 \n\t\r'\u2019.,-_<|>"]
    planes = [(0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x3FFFF), (0x40000, 0x10FFFF)]
    for _ in range(count):
        text = rng.choices(pieces, k=rng.randrange(30))
        for place in range(rng.randrange(4)):
            text.insert(rng.randrange(len(text) + 1), chr(rng.randint(*planes[place])))
        if rng.random() < 0.02:
            text.insert(rng.randrange(len(text) + 1), chr(rng.randint(*rng.choice(DIFFERING_CODE_POINTS.tolist()))))
        if rng.random() < 0.3:
            text.append(rng.choice(pieces) * rng.randrange(60))
        yield "".join(text)


def show(codes: Iterable[int]) -> str:
    """Code points as ranges."""
    ranges: list[list[int]] = []
    for code in sorted(codes):
        if ranges and ranges[-1][1] == code - 1:
            ranges[-1][1] = code
        else:
            ranges.append([code, code])
    return " ".join(f"{first:X}-{last:X}" if last > first else f"{first:X}" for first, last in ranges)


def main() -> None:
    cuts, found, start = Cuts(), set(), time.monotonic()
    for context in CONTEXTS:
        different = set()
        remaining = scalars()
        while codes := list(islice(remaining, 50_000)):
            different |= {codes[i] for i in cuts.differing([context.replace("{}", chr(code)) for code in codes])}
        found |= different
        print(f"{context!r:>10}: {len(different):,} of 1,112,064 differ ({time.monotonic() - start:.0f} s)", flush=True)
    print(f"in any: {len(found):,}: {show(found)}")
    fast, reference, count = GPT2Tokenizer("gigatoken"), GPT2Tokenizer(), 0
    strings = adversarial(1_000_000, seed=0)
    while texts := list(islice(strings, 20_000)):
        array = pa.array(texts, pa.large_string())
        encoded, expected = fast.encode_texts(array), reference.encode_texts(array)
        if not np.array_equal(encoded.tokens, expected.tokens):
            sys.exit("error: the tokens of an adversarial string differ")
        count += len(texts)
    print(f"{count:,} adversarial strings: the same tokens ({time.monotonic() - start:.0f} s)")
    if found != differing_scalars():
        sys.exit(f"error: prepare/tokens/engine.py has other code points: {show(found ^ differing_scalars())}")


if __name__ == "__main__":
    main()
