"""Proves a folder of token shards whole, or names each damaged file and what is wrong with it.

python prepare/verify.py data/shakespeare_bpe
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

from itertools import pairwise

import numpy as np

from prepare.common.cli import Parser, UserError, nonempty_path, run_script
from prepare.common.files import file_sha256
from prepare.common.progress import Progress
from prepare.pipeline.output_folder import PROGRESS
from prepare.tokens.manifest import MANIFEST, read_manifest
from prepare.tokens.shards import HEADER_BYTES, MAX_PARTS, open_shard, shard_number
from prepare.tokens.tokenizer import EOT, GPT2_VOCAB_SIZE, load_tokenizer

CHUNK = 1 << 24  # tokens looked at together


def main(argv: list[str] | None = None) -> None:
    example = "python prepare/verify.py data/shakespeare_bpe"
    parser = Parser("Check every shard of a folder against its manifest.", example)
    parser.add_argument("folder", type=nonempty_path, help="folder of token shards")
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: give the one that the shards are in")
    if (folder / PROGRESS / "plan.json").is_file():
        raise UserError(f"{folder} is unfinished: run the command that began it again, it goes on")
    manifest = read_manifest(folder)
    present = sorted(path.name for path in folder.iterdir() if path.suffix in (".bin", ".npy"))
    if manifest is None and not present:
        raise UserError(f"{folder} holds no token shards: give the folder that they are in")
    left = [*folder.glob("*.tmp"), *folder.glob("*.bin.part")]  # of a shard's making, and of its download
    damages = [f"{path}: left by an interrupted run" for path in sorted(left)]
    contradictions: list[str] = []
    if manifest is None:
        records: list[dict] = [{"file": name} for name in present]
        vocab_size, eot, ours = GPT2_VOCAB_SIZE, EOT, False
        damages += [f"{folder / name}: missing, between others that are there" for name in holes(present)]
    else:
        records = manifest["shards"]
        tokenizer = load_tokenizer(manifest["tokenizer"])
        vocab_size, eot = tokenizer.vocab_size, tokenizer.eot
        ours = "shard_tokens" in manifest.get("options", {})  # cut by this pipeline: each first part begins a document
        damages += [f"{folder / name}: not in the manifest" for name in set(present) - {r["file"] for r in records}]
        contradictions = sums(folder, manifest)
        damages += contradictions
    tokens = documents = 0
    sizes = [path.stat().st_size for path in (folder / record["file"] for record in records) if path.is_file()]
    with Progress("verifying", sum(sizes), "B") as progress:
        for record in records:
            path = folder / record["file"]
            try:
                found = examine(path, record, vocab_size, eot, ours)
                tokens += found[0]
                documents += found[1]
            except UserError as damage:
                damages.append(str(damage))
            if path.is_file():
                progress.update(path.stat().st_size)
    for damage in sorted(damages):
        print(damage)
    if damages:
        what = "the folder" if contradictions else "what is there of these"
        raise UserError(f"{folder} is not whole: delete {what} and run its preparation again")
    known = "whole (checksums match)" if manifest else "sound (no manifest: only structure and token ids were checked)"
    print(f"{folder}: {len(records)} shards, {tokens:,} tokens, {documents:,} documents: {known}")


def holes(names: list[str]) -> list[str]:
    """The shards that are not among these, but whose numbers lie between two parts of one input file that are."""
    numbers = {number: name for name in names if (number := shard_number(name)) is not None}
    missing = []
    for one, next_one in pairwise(sorted(numbers)):
        if one // MAX_PARTS == next_one // MAX_PARTS:
            dataset, _, _ = numbers[next_one].rpartition("_")
            missing += [f"{dataset}_{number:06d}.bin" for number in range(one + 1, next_one)]
    return missing


def sums(folder: Path, manifest: dict) -> list[str]:
    """Where the manifest contradicts itself."""
    wrong = []
    for fact in ("tokens", "documents"):
        inputs, shards = (sum(entry[fact] for entry in manifest[part]) for part in ("inputs", "shards"))
        if inputs != shards:
            wrong.append(f"{folder / MANIFEST}: its inputs have {inputs:,} {fact}, its shards {shards:,}")
    return wrong


def examine(path: Path, record: dict, vocab_size: int, eot: int | None, ours: bool) -> tuple[int, int]:
    """A shard's numbers of tokens and documents; UserError if it is unsound or not what its record says."""
    if not path.is_file():
        raise UserError(f"{path}: missing")
    tokens = open_shard(path)
    if isinstance(tokens, np.memmap) and tokens.offset == HEADER_BYTES:
        with path.open("rb") as file:
            if any(file.read(HEADER_BYTES)[12:]):
                raise UserError(f"{path}: the header holds more than magic, version and number of tokens")
    if len(tokens) != record.get("tokens", len(tokens)):
        raise UserError(f"{path}: {len(tokens):,} tokens, and the manifest says {record['tokens']:,}")
    documents = 0
    for start in range(0, len(tokens), CHUNK):
        chunk = np.asarray(tokens[start : start + CHUNK])
        above = np.flatnonzero(chunk >= vocab_size)
        if len(above):
            raise UserError(f"{path}: token {chunk[above[0]]} at {start + above[0]:,} is not below {vocab_size:,}")
        documents += int(np.count_nonzero(chunk == eot)) if eot is not None else 0
    if eot is None:
        documents = record["documents"]
    # text never gives an end-of-text token, so there is exactly one for each document
    if documents != record.get("documents", documents):
        raise UserError(f"{path}: {documents:,} documents begin in it, and the manifest says {record['documents']:,}")
    number = shard_number(path.name)
    if ours and eot is not None and number is not None and number % MAX_PARTS == 0 and tokens[0] != eot:
        raise UserError(f"{path}: begins with token {tokens[0]}, not with the end-of-text token {eot}")
    if "sha256" in record and file_sha256(path) != record["sha256"]:
        raise UserError(f"{path}: its bytes are not those that were written (sha256 differs)")
    return len(tokens), documents


if __name__ == "__main__":
    run_script(main)
