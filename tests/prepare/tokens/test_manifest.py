"""The manifest: the same bytes each time, complete or not there, and refused when it is truncated."""

import json

import numpy as np
import pytest

from prepare.common.cli import UserError
from prepare.tokens.manifest import build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import GPT2Tokenizer


def test_manifest(tmp_path):
    path = tmp_path / "manifest.json"
    assert read_manifest(tmp_path) is None
    record = write_shard(tmp_path / "x_val_000000.bin", np.arange(5))
    inputs = [{"name": "a.txt", "documents": 1, "tokens": 5}]
    manifest = build_manifest("mine", None, inputs, GPT2Tokenizer().describe(), {"shard_tokens": 100}, [record])
    write_manifest(tmp_path, manifest)
    assert read_manifest(tmp_path) == manifest
    assert manifest["versions"]["numpy"] == np.__version__
    before = path.read_bytes()
    write_manifest(tmp_path, manifest)
    assert path.read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["manifest.json", record["file"]]


def test_a_truncated_manifest_is_refused(tmp_path):
    path = tmp_path / "manifest.json"
    path.write_text(json.dumps(build_manifest("mine", None, [], {}, {}, []))[:-10])
    with pytest.raises(UserError, match=r"manifest\.json is not valid JSON.*delete the folder"):
        read_manifest(tmp_path)
