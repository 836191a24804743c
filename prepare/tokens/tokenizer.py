"""Text to token ids and back: byte-pair encoding with GPT-2's vocabulary or a trained one, or characters.

tiktoken is the reference. gigatoken (prepare/tokens/engine.py) encodes all documents but the few with a character that
it classifies differently; a random sample of its output is compared with tiktoken's during every run.
"""

import hashlib
import random
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from prepare.common.cli import UserError, replace_surrogates
from prepare.tokens.vocabulary import ENCODER_SHA256, bpe_encoding, gpt2_merges, read_merges

if TYPE_CHECKING:
    import pyarrow as pa

EOT = 50256  # GPT-2's <|endoftext|>
GPT2_VOCAB_SIZE = 50257

# The pattern's \s+(?!\S) is the one part that backtracks: a million spaces before a word make tiktoken give up. Such a
# run without its last character is one piece, so the text can be cut around it. This is Unicode's White_Space,
# which \s means in Rust; Python's own \s has four more.
_SPACE = r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]"
_LONG_SPACE = re.compile(f"(?<!{_SPACE}){_SPACE}{{10000,}}+")

ENGINES = ("gigatoken", "tiktoken")
SAMPLE_INTERVAL = 2000  # bytes that gigatoken encodes for each byte that tiktoken, a twentieth as fast, encodes too


class Mismatch(Exception):
    """The engines disagree about a document: `index` is its index among the texts."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Encoded:
    """Documents as tokens, concatenated, as ShardWriter.write takes them."""

    tokens: np.ndarray  # 1-D uint16, the end-of-text token (if the tokenizer has one) before each document
    starts: np.ndarray  # int64, where each document begins
    engines: dict[str, int]  # number of documents by the engine that encoded them


class BPETokenizer:
    """Byte-level BPE with GPT-2's pre-tokenization. A literal <|endoftext|> in a text is text: ordinary tokens.

    A lone surrogate (as JSON's escapes can produce) is encoded as U+FFFD, as tiktoken does.

    Args:
        merges: the vocabulary, see prepare/tokens/vocabulary.py.
        engine: the library that encode_texts uses; the tokens do not depend on it.
    """

    name = "bpe"

    def __init__(self, merges: str, engine: str = "tiktoken") -> None:
        self.merges = merges
        self._encoding = bpe_encoding(merges)
        self.vocab_size = self._encoding.n_vocab
        self.eot = self.vocab_size - 1  # <|endoftext|>, which begins every document
        self._gigatoken = None
        if engine == "gigatoken":
            from prepare.tokens.engine import Gigatoken  # slow to import, and not needed for decoding

            self._gigatoken = Gigatoken(self._encoding._mergeable_ranks)

    def encode_texts(self, texts: "pa.LargeStringArray") -> Encoded:
        """Encode the documents of an Arrow array without nulls. Mismatch if a sample shows that the engines differ."""
        if self._gigatoken is None:
            documents = [self._encode(text) for text in texts.to_pylist()]
            return Encoded(*join_documents(documents, self.eot), {"tiktoken": len(texts)})
        from prepare.tokens.engine import documents_for_tiktoken

        tokens, offsets = self._gigatoken.encode(texts)
        differing = documents_for_tiktoken(texts)
        self._check_sample(texts, tokens, offsets, differing)
        if len(differing):
            documents = np.split(tokens, offsets[1:-1])
            for index in differing:
                documents[index] = self._encode(texts[index].as_py())
            tokens, starts = join_documents(documents, self.eot)
        else:
            tokens, starts = insert_end_of_text(tokens, offsets, self.eot)
        return Encoded(tokens, starts, {"gigatoken": len(texts) - len(differing), "tiktoken": len(differing)})

    def _check_sample(
        self, texts: "pa.LargeStringArray", tokens: np.ndarray, offsets: np.ndarray, differing: np.ndarray
    ) -> None:
        """Encode a random document with tiktoken too, long ones less often. Mismatch if the tokens differ."""
        index = random.randrange(len(texts)) if len(texts) else 0
        if len(texts) == 0 or index in differing:
            return
        budget = (texts.nbytes + 1_000_000) / SAMPLE_INTERVAL  # bytes; the million has small inputs checked
        if random.random() * len(texts[index].as_buffer()) > budget:
            return
        if not np.array_equal(tokens[offsets[index] : offsets[index + 1]], self._encode(texts[index].as_py())):
            raise Mismatch(index)

    def encode(self, text: str) -> list[int]:
        """The ids of `text`, without an end-of-text token."""
        return self._encode(text).tolist()

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The bytes of any sequence of ids; the end-of-text token gives b"<|endoftext|>"."""
        return self._encoding.decode_bytes(_check_ids(ids, self.vocab_size).tolist())

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of any sequence of ids; bytes that are not UTF-8 (half a character) become U+FFFD."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def describe(self) -> dict:
        """What a manifest or a checkpoint stores, enough for load_tokenizer."""
        digest = hashlib.sha256(self.merges.encode()).hexdigest()
        return {"name": self.name, "vocab_size": self.vocab_size, "sha256": digest, "merges": self.merges}

    def _encode(self, text: str) -> np.ndarray:
        """The ids of a text, 1-D uint16."""
        try:
            # the same as encode_ordinary (no special token is allowed), without building a list of Python integers
            ids = self._encoding.encode_to_numpy(text, disallowed_special=())
        except UnicodeEncodeError:  # lone surrogates
            return self._encode(replace_surrogates(text))
        except ValueError:  # backtracking limit
            runs = [run for run in _LONG_SPACE.finditer(text) if run.end() < len(text)]
            if not runs:
                raise
            cuts = [0, *(cut for run in runs for cut in (run.start(), run.end() - 1)), len(text)]
            return np.concatenate([self._encode(text[start:end]) for start, end in pairwise(cuts)])
        return ids.astype(np.uint16)


class GPT2Tokenizer(BPETokenizer):
    """GPT-2's tokenizer, whose description names the vocabulary without holding it."""

    name = "gpt2"

    def __init__(self, engine: str = "tiktoken") -> None:
        super().__init__(gpt2_merges(), engine)

    def describe(self) -> dict:
        """What a manifest or a checkpoint stores, enough for load_tokenizer."""
        return {"name": self.name, "vocab_size": self.vocab_size, "sha256": ENCODER_SHA256}


class CharTokenizer:
    """One id per character: the distinct characters of `characters`, in the order of their code points."""

    name = "char"
    eot = None

    def __init__(self, characters: str) -> None:
        self.characters = "".join(sorted(set(characters)))
        self.vocab_size = len(self.characters)
        self._codes = _code_points(self.characters)
        if not 0 < self.vocab_size <= 2**16:
            raise UserError(f"a character vocabulary holds 1 to 65,536 characters, not {self.vocab_size:,}: use BPE")

    def encode_texts(self, texts: "pa.LargeStringArray") -> Encoded:
        """Encode the documents of an Arrow array without nulls."""
        documents = [self._encode(text) for text in texts.to_pylist()]
        return Encoded(*join_documents(documents, None), {"characters": len(texts)})

    def encode(self, text: str) -> list[int]:
        """The ids of `text`; UserError naming a character that is not in the vocabulary."""
        return self._encode(text).tolist()

    def decode_bytes(self, ids: Sequence[int] | np.ndarray) -> bytes:
        """The text of any sequence of ids, as UTF-8."""
        return self.decode(ids).encode()

    def decode(self, ids: Sequence[int] | np.ndarray) -> str:
        """The text of any sequence of ids."""
        return self._codes[_check_ids(ids, self.vocab_size)].tobytes().decode("utf-32-le")

    def describe(self) -> dict:
        """What a manifest or a checkpoint stores, enough for load_tokenizer."""
        digest = hashlib.sha256(self.characters.encode()).hexdigest()
        return {"name": self.name, "vocab_size": self.vocab_size, "sha256": digest, "characters": self.characters}

    def _encode(self, text: str) -> np.ndarray:
        """The ids of a text, 1-D uint16."""
        codes = _code_points(text)
        ids = np.minimum(np.searchsorted(self._codes, codes), self.vocab_size - 1)
        unknown = codes[self._codes[ids] != codes]
        if len(unknown):
            character = chr(unknown[0])
            raise UserError(
                f"the character {character!a} (U+{unknown[0]:04X}) is not among the {self.vocab_size} of this "
                "character vocabulary: leave it out, or use a model with a BPE vocabulary"
            )
        return ids.astype(np.uint16)


Tokenizer = BPETokenizer | CharTokenizer


def load_tokenizer(description: Mapping[str, Any] | None) -> Tokenizer:
    """The tokenizer that `describe` described, as manifests and checkpoints store it; None means GPT-2's. UserError for
    an unknown name."""
    if description is None or (name := description["name"]) == GPT2Tokenizer.name:
        return GPT2Tokenizer()
    if name == BPETokenizer.name:
        return BPETokenizer(description["merges"])
    if name == CharTokenizer.name:
        return CharTokenizer(description["characters"])
    raise UserError(f"unknown tokenizer {name!r}: known are gpt2, bpe and char")


def open_tokenizer(folder: Path, engine: str = "tiktoken") -> BPETokenizer:
    """The tokenizer of a folder with a tokenizer.json; UserError if there is none, or of another kind."""
    merges = read_merges(folder)
    return GPT2Tokenizer(engine) if merges == gpt2_merges() else BPETokenizer(merges, engine)


# --- end-of-text tokens -----------------------------------------------------------------------------------------------


def join_documents(documents: Sequence[np.ndarray], eot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """Concatenate documents' ids (1-D uint16 each), `eot` before each: the tokens, and where each begins (int64)."""
    offsets = np.zeros(len(documents) + 1, np.int64)
    offsets[1:] = np.cumsum([len(document) for document in documents])
    return insert_end_of_text(np.concatenate([np.empty(0, np.uint16), *documents]), offsets, eot)


def insert_end_of_text(tokens: np.ndarray, offsets: np.ndarray, eot: int | None) -> tuple[np.ndarray, np.ndarray]:
    """As join_documents, for ids that are concatenated already: document i is tokens[offsets[i]:offsets[i + 1]]."""
    starts, tokens = offsets[:-1], np.ascontiguousarray(tokens, np.uint16)
    if eot is None or not len(starts):
        return tokens, starts
    import pyarrow as pa  # not needed for training and scoring
    import pyarrow.compute as pc

    # documents as Arrow's binary values, so that one call copies each after its first token, without the GIL
    byte_offsets, data = pa.py_buffer(tokens.itemsize * offsets), pa.py_buffer(tokens)
    documents = pa.LargeBinaryArray.from_buffers(pa.large_binary(), len(starts), [None, byte_offsets, data])
    with_eot = pc.binary_replace_slice(documents, 0, 0, np.array(eot, np.uint16).tobytes())
    return np.frombuffer(with_eot.buffers()[2], np.uint16), starts + np.arange(len(starts))


def _code_points(text: str) -> np.ndarray:
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")


def _check_ids(ids: Sequence[int] | np.ndarray, vocab_size: int) -> np.ndarray:
    """The ids as int64; UserError if one is not in the vocabulary."""
    ids = np.asarray(ids, dtype=np.int64)
    outside = ids[(ids < 0) | (ids >= vocab_size)]
    if len(outside):
        raise UserError(f"token {outside[0]} is outside this vocabulary of {vocab_size:,}: data and tokenizer differ")
    return ids
