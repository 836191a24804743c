"""gigatoken against tiktoken: every code point, hostile strings, sizes, threads, memory; what goes to tiktoken."""

import multiprocessing
import random
import threading
from concurrent.futures import ProcessPoolExecutor
from itertools import islice

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prepare.tokens import engine, tokenizer
from prepare.tokens.engine import Gigatoken, documents_for_tiktoken
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer, Mismatch
from tests.programs.exhaustive import TOGETHER, Cuts, adversarial, differing_scalars, scalars

MANY = 1_200_000
SPACES = " \n\u2003" * (MANY // 3)
FAST, REFERENCE = GPT2Tokenizer("gigatoken"), GPT2Tokenizer()


def strings(texts: list[str]) -> pa.LargeStringArray:
    return pa.array(texts, pa.large_string())


def same(texts: list[str]) -> dict[str, int]:
    """Check that both engines give the same; who encoded how many."""
    array = strings(texts)
    encoded, expected = FAST.encode_texts(array), REFERENCE.encode_texts(array)
    assert encoded.tokens.dtype == expected.tokens.dtype == np.uint16
    assert np.array_equal(encoded.starts, expected.starts)
    assert np.array_equal(encoded.tokens, expected.tokens)
    assert sum(encoded.engines.values()) == len(texts)
    return encoded.engines


@pytest.mark.slow
def test_code_points_are_cut_alike_or_sent_to_tiktoken():
    """All of the four planes of languages and emoji, and one in 16 of the others, which have next to none.

    A text for each 500 code points; make exhaustive tries each alone, at a text's beginning and end too.
    """
    cuts, other = Cuts(), differing_scalars()
    alike = (code for code in scalars() if code not in other and (code < 0x40000 or code % 16 == 0))
    while codes := list(islice(alike, 50_000)):
        texts = [
            " ".join(TOGETHER.format(chr(code)) for code in codes[start : start + 500])
            for start in range(0, len(codes), 500)
        ]
        assert cuts.differing(texts) == []
        assert len(documents_for_tiktoken(strings(texts))) == 0
    texts = [f"!{chr(code)}!" for code in sorted(other)]
    assert len(cuts.differing(texts)) == len(texts) == 4657
    assert documents_for_tiktoken(strings(texts)).tolist() == list(range(len(texts)))
    same(["".join(TOGETHER.format(chr(code)) for code in other), *texts])


def test_the_code_points_that_differ_are_found_anywhere():
    texts = ["", "plain", "\U00016eb4'll", "naïve 😀 日本", "", "x\u088f", "\u088f", "\u0890", "end\U00033479"]
    assert documents_for_tiktoken(strings(texts)).tolist() == [2, 5, 6, 8]
    assert documents_for_tiktoken(strings(texts)[3:]).tolist() == [2, 3, 5]
    assert documents_for_tiktoken(strings(texts)[3:5]).tolist() == []
    assert same(texts) == {"gigatoken": 5, "tiktoken": 4}
    # without them the difference is real
    assert FAST._gigatoken.encode(strings(texts[2:3]))[0].tolist() != REFERENCE.encode(texts[2])


def test_adversarial_strings():
    engines = same(list(adversarial(30_000, seed=1)))
    assert engines["gigatoken"] > 20_000
    assert engines["tiktoken"] > 100


@settings(max_examples=100, deadline=None)
@given(st.lists(st.text(), max_size=8))
def test_any_text(texts):
    same(texts)


@given(st.lists(st.text(alphabet="ab1!' \n\t\u00a0\u3000é日😀\U00016eb4l", max_size=30), max_size=5))
@settings(max_examples=100, deadline=None)
def test_text_of_few_classes(texts):
    same(texts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["ab" * (MANY // 2), " " * MANY, " " * MANY + "x", f"1{SPACES}\x1c2 {SPACES}", "😀" * (MANY // 4), "\0" * MANY],
    ids=["letters", "spaces", "spaces before a word", "spaces between words", "emoji", "zero bytes"],
)
def test_documents_of_megabytes_without_a_word(text):
    """tiktoken gives up on a million spaces before a word: GPT2Tokenizer cuts the text there."""
    same([text])
    assert REFERENCE.decode(REFERENCE.encode(text)) == text


def test_slices_and_nothing_at_all():
    texts = ["one", "", "two <|endoftext|> three", "", "\U00016eb4", "four"]
    for start in range(len(texts) + 1):
        for end in range(start, len(texts) + 1):
            encoded = FAST.encode_texts(strings(texts)[start:end])
            expected = [token for text in texts[start:end] for token in (EOT, *REFERENCE.encode(text))]
            assert encoded.tokens.tolist() == expected


def test_threads_have_their_own():
    texts = list(adversarial(2000, seed=2))
    expected = REFERENCE.encode_texts(strings(texts)).tokens
    results = []
    threads = [threading.Thread(target=lambda: results.append(FAST.encode_texts(strings(texts)))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 4
    assert all(np.array_equal(result.tokens, expected) for result in results)


def encode_new_words() -> tuple[int, int]:
    """Words that never come again, the tokens checked: how often the caches were emptied, and the most memory (bytes)
    that the process grew by. Changes limits of `engine`, so it wants a process of its own."""
    engine.CACHE_BYTES, engine.CACHE_TEXT_BYTES = 30 << 20, 1 << 20
    fast, rng = Gigatoken(REFERENCE._encoding._mergeable_ranks), np.random.default_rng(0)
    most, base = 0, engine._resident_bytes()
    for _ in range(10):
        letters = rng.integers(97, 123, 2 << 20, dtype=np.uint8)
        letters[rng.random(len(letters)) < 0.15] = 32
        texts = strings([letters.tobytes().decode()])
        tokens, _ = fast.encode(texts)
        most = max(most, engine._resident_bytes() - base)
        assert np.array_equal(tokens[:1000], REFERENCE.encode(texts[0].as_py()[:5000])[:1000])
    return fast._cache_generation, most


def test_memory_is_given_back():
    """In a new process, whose memory no other test has used and freed."""
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        generations, most = pool.submit(encode_new_words).result()
    assert generations > 1
    assert most < 180 << 20  # 220 MB where nothing is given back


def test_a_difference_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    fast = GPT2Tokenizer("gigatoken")
    right = fast._gigatoken.encode

    def wrong(texts: pa.LargeStringArray) -> tuple[np.ndarray, np.ndarray]:
        tokens, offsets = right(texts)
        tokens[offsets[:-1]] += 1
        return tokens, offsets

    monkeypatch.setattr(fast._gigatoken, "encode", wrong)
    with pytest.raises(Mismatch):
        fast.encode_texts(strings(["some text"]))


@pytest.mark.parametrize("words", [40, 400, 40_000])
def test_a_sample_of_all_text_is_encoded_by_tiktoken_too(monkeypatch: pytest.MonkeyPatch, words: int) -> None:
    """However long the documents are: of each batch its two thousandth part, and 500 bytes."""
    fast, checked = GPT2Tokenizer("gigatoken"), []
    monkeypatch.setattr(fast, "_encode", lambda text: checked.append(len(text)) or REFERENCE._encode(text))
    monkeypatch.setattr(tokenizer, "random", random.Random(0))
    batch = strings(["plain words " * words] * (400_000 // words))
    encoded = fast._gigatoken.encode(batch)
    monkeypatch.setattr(fast._gigatoken, "encode", lambda _: encoded)
    for _ in range(120):
        fast.encode_texts(batch)
    expected = 120 * min(12 * words, (batch.nbytes + 1_000_000) / 2000)
    assert 0.6 < sum(checked) / expected < 1.6
