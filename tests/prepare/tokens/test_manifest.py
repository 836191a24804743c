"""The manifest: the same bytes each time, whole or not there, and refused where it is no manifest."""

import json

import numpy as np
import pytest

from prepare.common.cli import UserError
from prepare.tokens.manifest import build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import ShardWriter, join_documents
from prepare.tokens.tokenizer import EOT, GPT2Tokenizer


def test_manifest(tmp_path):
    assert read_manifest(tmp_path) is None
    with ShardWriter(tmp_path, "x") as writer:
        writer.write(*join_documents([np.full(length, 7, np.uint16) for length in range(5)], EOT))
    inputs = [{"name": "a.txt", "documents": 5, "tokens": writer.records[0]["tokens"]}]
    manifest = build_manifest("mine", None, inputs, GPT2Tokenizer().describe(), {"shard_tokens": 100}, writer.records)
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest["versions"]["numpy"] == np.__version__
    before = (tmp_path / "manifest.json").read_bytes()
    write_manifest(tmp_path, manifest)
    assert (tmp_path / "manifest.json").read_bytes() == before
    assert not list(tmp_path.glob("*.tmp"))
    (tmp_path / "manifest.json").write_bytes(before[:-10])
    with pytest.raises(UserError, match=r"no JSON.*delete the folder"):
        read_manifest(tmp_path)
    for key in manifest:
        if key != "options":
            broken = {name: value for name, value in manifest.items() if name != key}
            (tmp_path / "manifest.json").write_text(json.dumps(broken))
            with pytest.raises(UserError, match=f"lacks {key}"):
                read_manifest(tmp_path)
    (shard,) = manifest["shards"]
    for broken, said in (
        ([], "it is"),
        (5, "it is '5', not an object"),
        (manifest | {"shards": None}, "it has shards 'None', not list"),
        (manifest | {"shards": [1]}, "its shard 0 is '1', not an object"),
        (manifest | {"shards": [shard, {"file": "x"}]}, "its shard 1 lacks tokens"),
        (manifest | {"shards": [shard | {"tokens": "5"}]}, "its shard 0 has tokens '5', not int"),
        (manifest | {"shards": [shard | {"documents": None}]}, "documents 'None'"),
        (manifest | {"shards": [shard | {"documents": True}]}, "documents 'True'"),
        (manifest | {"shards": [shard | {"file": 5}]}, "file '5', not str"),
        (manifest | {"shards": [shard | {"sha256": None}]}, "sha256 'None'"),
        (manifest | {"inputs": None}, "inputs 'None'"),
        (manifest | {"inputs": [{}]}, "its input 0 lacks name"),
        (manifest | {"options": None}, "options 'None', not dict"),
        (manifest | {"tokenizer": "gpt2"}, "tokenizer 'gpt2', not dict"),
        (manifest | {"tokenizer": None}, "tokenizer 'None', not dict"),
        (manifest | {"tokenizer": {"name": "gpt2"}}, "its tokenizer lacks vocab_size"),
        (manifest | {"revision": 5}, r"revision '5', not str \| None"),
    ):
        (tmp_path / "manifest.json").write_text(json.dumps(broken))
        with pytest.raises(UserError, match=f"manifest.json: .*{said}.*: delete the folder and run its preparation"):
            read_manifest(tmp_path)
