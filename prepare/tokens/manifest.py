"""manifest.json of a folder of shards: its inputs, tokenizer, options, library versions, checksums; and meta.pkl."""

import importlib.metadata
import json
import pickle
import platform
from pathlib import Path
from typing import NoReturn

from prepare.common.cli import UserError, first_line, warn
from prepare.common.files import atomic_write_json
from prepare.tokens.tokenizer import CharTokenizer

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
    """The manifest of a folder of shards; None if there is none. UserError if it is truncated."""
    path = Path(folder) / MANIFEST
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_bytes())
    except ValueError as failure:
        raise UserError(f"{path} is not valid JSON ({failure}): delete the folder and prepare it again") from failure


class _PlainUnpickler(pickle.Unpickler):
    """Reads containers, strings and numbers, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> NoReturn:
        raise pickle.UnpicklingError(f"it holds {module}.{name}")


def read_meta_pkl(folder: Path) -> dict | None:
    """The describe() of the character vocabulary in a folder's meta.pkl, which nanoGPT writes beside train.bin; None
    where there is none, and, with a warning, if it holds something else."""
    path = folder / "meta.pkl"
    if not path.is_file():
        return None
    try:
        with path.open("rb") as file:
            ids = _PlainUnpickler(file).load()["stoi"]
        tokenizer = CharTokenizer("".join(ids))
        if ids != {character: number for number, character in enumerate(tokenizer.characters)}:
            raise ValueError("its ids are not those of sorted characters")
    except Exception as failure:  # whatever a pickle leads to
        warn(f"{path} is not read ({first_line(failure)}): what text the ids stand for is not known")
        return None
    return tokenizer.describe()
