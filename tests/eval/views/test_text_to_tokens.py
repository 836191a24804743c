"""The merges that the page shows, replayed as it does, end at the tokenizer's ids."""

import pytest

from eval.views.text_to_tokens import CHARACTER_OF, merge_bytes, split_pieces
from prepare.common.cli import replace_surrogates
from prepare.tokens.tokenizer import GPT2Tokenizer
from prepare.tokens.vocabulary import token_ids
from tests.helpers.vocabulary import HOSTILE, random_strings, small_tokenizer


@pytest.mark.parametrize("make", [GPT2Tokenizer, small_tokenizer])
def test_pieces_and_merges_end_at_the_tokenizers_ids(make) -> None:
    tokenizer = make()
    ranks = token_ids(tokenizer.merges)
    for text in map(replace_surrogates, [*HOSTILE, *random_strings(200, seed=1)]):
        if len(text) > 1000:  # the page's prompts are short
            continue
        ids = []
        for piece in split_pieces(text):
            parts = [ranks[CHARACTER_OF[byte]] for byte in piece.encode()]
            for place, new in merge_bytes(piece.encode(), ranks):
                parts[place : place + 2] = [new]
            ids += parts
        assert ids == tokenizer.encode(text), repr(text)


def test_the_pair_that_was_learned_first_is_merged_first() -> None:
    merges = "h e\nt he\nt h"  # "th" was learned last
    ranks = token_ids(merges)
    assert merge_bytes(b"the", ranks) == [(1, 256), (0, 257)]
    assert merge_bytes(b"hehe", ranks) == [(0, 256), (1, 256)]
