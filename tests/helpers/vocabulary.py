"""A small trained vocabulary."""

import functools

from prepare.tokens.tokenizer import BPETokenizer
from prepare.train_tokenizer import train

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


@functools.cache
def small_merges(vocab_size: int = 330) -> str:
    """The merges of a vocabulary trained on a few words of several scripts."""
    texts = [" ".join(WORDS[(number * step) % len(WORDS)] for number in range(200)) for step in (1, 3, 7, 11)]
    return train([text.encode() for text in texts], vocab_size)


def small_tokenizer(engine: str = "tiktoken") -> BPETokenizer:
    return BPETokenizer(small_merges(), engine)
