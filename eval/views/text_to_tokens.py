"""Text to tokens: the pieces that the regular expression cuts, their bytes, and the merges of byte-pair encoding."""

from itertools import pairwise
from typing import Any

from eval.views.subject import Subject
from prepare.tokens.tokenizer import BPETokenizer
from prepare.tokens.vocabulary import BYTE_OF, token_ids


def text_to_tokens(subject: Subject) -> dict[str, Any]:
    """How the prompt became its ids.

    Returns:
        pieces: of a BPE tokenizer `text`, `bytes` and `merges`, see merge_bytes, and `first` and `count` of the piece's
            tokens in the prompt; None for characters, each of which is a token.
    """
    tokenizer, ids = subject.tokenizer, subject.ids.tolist()
    if not isinstance(tokenizer, BPETokenizer):
        return {"pieces": None}
    ranks, pieces, first = token_ids(tokenizer.merges), [], 0
    for text in split_pieces(tokenizer.decode(ids)):
        content = text.encode()
        merges = merge_bytes(content, ranks)
        count = len(content) - len(merges)
        pieces.append({"text": text, "bytes": list(content), "merges": merges, "first": first, "count": count})
        first += count
    return {"pieces": pieces}


def split_pieces(text: str) -> list[str]:
    """Cut a text where GPT-2's regular expression does: words, numbers, punctuation, spaces. No merge crosses a cut."""
    from tokenizers import pre_tokenizers  # also cuts for prepare/train_tokenizer.py; not needed elsewhere

    cuts = pre_tokenizers.ByteLevel(add_prefix_space=False).pre_tokenize_str(text)
    return [text[start:end] for _, (start, end) in cuts]


def merge_bytes(content: bytes, ranks: dict[str, int]) -> list[tuple[int, int]]:
    """Byte-pair encoding, merge by merge: of all pairs of neighbours, the one that was learned first becomes one token.

    Args:
        content: a piece's bytes, a token each at first.
        ranks: the ids of all tokens, in OpenAI's characters, in the order of training (see prepare/tokens/vocabulary).

    Returns:
        for each merge, the place of its left part among the tokens at that time, and the id of the new token.
    """
    tokens, merges = [CHARACTER_OF[byte] for byte in content], []
    while True:
        pairs = [ranks.get(left + right) for left, right in pairwise(tokens)]
        known = [(rank, place) for place, rank in enumerate(pairs) if rank is not None]
        if not known:
            return merges
        rank, place = min(known)
        tokens[place : place + 2] = [tokens[place] + tokens[place + 1]]
        merges.append((place, rank))


CHARACTER_OF = {byte: character for character, byte in BYTE_OF.items()}
