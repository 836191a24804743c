"""Files and shards of given documents."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

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


def write_documents(path: Path, records: list[dict]) -> Path:
    """A file of records: .parquet, .jsonl, .jsonl.gz or .jsonl.zst."""
    lines = "".join(json.dumps(record) + "\n" for record in records).encode()
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(records), path, row_group_size=2)
    elif path.suffix == ".gz":
        path.write_bytes(gzip.compress(lines))
    elif path.suffix == ".zst":
        path.write_bytes(zstandard.compress(lines))
    else:
        path.write_bytes(lines)
    return path
