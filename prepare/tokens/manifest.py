"""manifest.json of a folder of shards: its inputs, its tokenizer, its options, library versions, and checksums."""

import importlib.metadata
import json
import platform
from pathlib import Path

from prepare.common.cli import UserError
from prepare.common.files import atomic_write_json

MANIFEST = "manifest.json"


def build_manifest(
    dataset: str, revision: str | None, inputs: list[dict], tokenizer: dict, options: dict, shards: list[dict]
) -> dict:
    """Build a folder's manifest. The same input gives the same bytes.

    Args:
        inputs: {name, documents, tokens, skipped, ...} of each input file.
        tokenizer: its describe().
        options: those that the bytes depend on.
        shards: {file, tokens, documents, sha256} of each.
    """
    libraries = ("gigatoken", "tiktoken", "numpy", "pyarrow")
    versions = {"python": platform.python_version()} | {name: importlib.metadata.version(name) for name in libraries}
    return {
        "dataset": dataset,
        "revision": revision,
        "inputs": inputs,
        "tokenizer": tokenizer,
        "options": options,
        "versions": versions,
        "shards": shards,
    }


def write_manifest(folder: Path, manifest: dict) -> None:
    """Write a folder's manifest, the last of its files."""
    atomic_write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path | str) -> dict | None:
    """The manifest of a folder of shards; None if there is none. UserError if it is truncated or lacks a key."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    remedy = "delete the folder and prepare it again"
    try:
        manifest = json.loads(path.read_bytes())
    except ValueError as failure:
        raise UserError(f"{path} is not valid JSON ({failure}): {remedy}") from failure
    for key in ("dataset", "revision", "inputs", "tokenizer", "options", "versions", "shards"):
        if key not in manifest:
            raise UserError(f"{path} lacks {key}: {remedy}")
    return manifest
