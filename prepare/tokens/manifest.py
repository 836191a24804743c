"""manifest.json beside a folder's shards: what they were made of, with what, and their checksums."""

import importlib.metadata
import json
import platform
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType

from prepare.common.cli import UserError
from prepare.common.files import atomic_write_json

MANIFEST = "manifest.json"
# what a manifest has, and of which kind; more is allowed
MANIFEST_KINDS = {
    "dataset": str, "revision": str | None, "inputs": list, "tokenizer": dict, "options": dict, "versions": dict,
    "shards": list,
}  # fmt: skip
TOKENIZER_KINDS = {"name": str, "vocab_size": int, "sha256": str}
INPUT_KINDS = {"name": str, "documents": int, "tokens": int}
SHARD_KINDS = {"file": str, "tokens": int, "documents": int, "sha256": str}


def build_manifest(
    dataset: str, revision: str | None, inputs: list[dict], tokenizer: dict, options: dict, shards: list[dict]
) -> dict:
    """A folder's manifest: what was read, with what, and what was written. The same input gives the same bytes.

    inputs: {name, documents, tokens, skipped, ...} each; tokenizer: describe(); options: those that decide the bytes;
    shards: {file, tokens, documents, sha256} each.
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
    """Write a folder's manifest, last of all its files."""
    atomic_write_json(folder / MANIFEST, manifest)


def read_manifest(folder: Path | str) -> dict | None:
    """The manifest of a folder of shards; None when there is none. UserError if it is damaged."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        manifest = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as failure:
        raise UserError(f"{path} is no JSON ({failure}): delete the folder and run its preparation again") from failure
    if wrong := next(_wrong(manifest), None):
        raise UserError(f"{path}: {wrong}: delete the folder and run its preparation again")
    return manifest


def _wrong(manifest: object) -> Iterator[str]:
    """What a manifest lacks, or has of another kind."""
    yield from _unlike("it", {"options": {}} | manifest if isinstance(manifest, dict) else manifest, MANIFEST_KINDS)
    yield from _unlike("its tokenizer", manifest["tokenizer"], TOKENIZER_KINDS)
    for number, entry in enumerate(manifest["inputs"]):
        yield from _unlike(f"its input {number}", entry, INPUT_KINDS)
    for number, entry in enumerate(manifest["shards"]):
        yield from _unlike(f"its shard {number}", entry, SHARD_KINDS)
        if not re.fullmatch(r"[^/\0\ud800-\udfff]{1,255}", entry["file"]):
            yield f"its shard {number} has file {entry['file'][:40]!a}, no file's name"


def _unlike(what: str, value: object, kinds: Mapping[str, type | UnionType]) -> Iterator[str]:
    if not isinstance(value, dict):
        yield f"{what} is {str(value)[:40]!r}, not an object"
        return
    for key, kind in kinds.items():
        if key not in value:
            yield f"{what} lacks {key}"
        elif not isinstance(value[key], kind) or isinstance(value[key], bool):
            yield f"{what} has {key} {str(value[key])[:40]!r}, not {getattr(kind, '__name__', kind)}"
