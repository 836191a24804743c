"""Shards of given documents."""

from pathlib import Path

from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer


def shard_of(folder: Path, documents: list[str], tokenizer: GPT2Tokenizer | CharTokenizer) -> Path:
    """A held-out shard of documents, and its manifest."""
    folder.mkdir()
    begin = [] if tokenizer.eot is None else [tokenizer.eot]
    tokens = [token for document in documents for token in begin + tokenizer.encode(document)]
    record = write_shard(folder / "x_val_000000.bin", tokens, len(documents))
    write_manifest(folder, build_manifest("x", None, [], tokenizer.describe(), {}, [record]))
    return folder / "x_val_000000.bin"
