"""Files and shards of given documents."""

import bz2
import csv
import gzip
import io
import json
import lzma
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import zstandard

from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer

GZIP = partial(gzip.compress, mtime=0)  # the same bytes at any time: they are in the names of tests
COMPRESS = {".gz": GZIP, ".zst": zstandard.compress, ".bz2": bz2.compress, ".xz": lzma.compress}


def shard_of(folder: Path, documents: list[str], tokenizer: GPT2Tokenizer | CharTokenizer) -> Path:
    """A held-out shard of documents, and its manifest."""
    folder.mkdir()
    begin = [] if tokenizer.eot is None else [tokenizer.eot]
    tokens = [token for document in documents for token in begin + tokenizer.encode(document)]
    record = write_shard(folder / "x_val_000000.bin", tokens, len(documents))
    write_manifest(folder, build_manifest("x", None, [], tokenizer.describe(), {}, [record]))
    return folder / "x_val_000000.bin"


def write_documents(path: Path, records: list[dict]) -> Path:
    """A file of records: .parquet, .arrow, .csv, .json (an array) or .jsonl, the last three also compressed."""
    table, compress = pa.Table.from_pylist(records), COMPRESS.get(path.suffix)
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=2)
    elif path.suffix == ".arrow":
        with pa.ipc.new_stream(path, table.schema) as stream:
            stream.write_table(table, max_chunksize=1000)
    else:
        text = io.StringIO()
        if ".json" in path.suffixes:
            json.dump(records, text, indent=1)
        elif ".csv" in path.suffixes:
            rows = csv.DictWriter(text, table.column_names, lineterminator="\n")
            rows.writeheader()
            rows.writerows(records)
        else:
            text.writelines(json.dumps(record) + "\n" for record in records)
        path.write_bytes(compress(text.getvalue().encode()) if compress else text.getvalue().encode())
    return path
