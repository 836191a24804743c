"""Check a folder of token shards against its manifest, and name each missing or corrupt file.

python prepare/verify.py data/plays
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__)  # imports this file as a module, runs its main, and exits

import numpy as np

from prepare.common.cli import Parser, UserError, nonempty_path
from prepare.common.files import file_sha256
from prepare.common.progress import Progress
from prepare.pipeline.output_folder import PLAN, PROGRESS
from prepare.tokens.manifest import read_manifest
from prepare.tokens.shards import SUFFIXES, open_shard
from prepare.tokens.tokenizer import Tokenizer, load_tokenizer

CHUNK = 1 << 24  # tokens checked at a time


def main(argv: list[str] | None = None) -> None:
    example = "python prepare/verify.py data/plays"
    parser = Parser("Check every shard of a folder against its manifest.", example)
    parser.add_argument("folder", type=nonempty_path, help="folder of token shards")
    folder = parser.parse_args(argv).folder
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give the one that the shards are in")
    if (folder / PROGRESS / PLAN).is_file():
        raise UserError(f"{folder} is unfinished: run the command that started it again, which resumes it")
    manifest = read_manifest(folder)
    present = sorted(path.name for path in folder.iterdir() if path.suffix in SUFFIXES)
    if manifest is None and not present:
        raise UserError(f"{folder} holds no token shards: give the folder that they are in")

    # files that should not be there: temporary files of shards and downloads, shards that are not in the manifest
    left = [*folder.glob("*.tmp"), *folder.glob("*.bin.part")]
    problems = [f"{path}: left by an interrupted run" for path in left]
    if manifest is None:
        records: list[dict] = [{"file": name} for name in present]
    else:
        records = manifest["shards"]
        listed = {record["file"] for record in records}
        problems += [f"{folder / name}: not in the manifest" for name in present if name not in listed]

    # shards that should be there
    tokenizer = load_tokenizer(None if manifest is None else manifest["tokenizer"])
    tokens = documents = 0
    sizes = [path.stat().st_size for path in (folder / record["file"] for record in records) if path.is_file()]
    with Progress("verifying", sum(sizes), "B") as progress:
        for record in records:
            path = folder / record["file"]
            try:
                found = check_shard(path, record, tokenizer)
                tokens += found[0]
                documents += found[1]
            except UserError as problem:
                problems.append(str(problem))
            if path.is_file():
                progress.update(path.stat().st_size)
    for problem in sorted(problems):
        print(problem)
    if problems:
        raise UserError(
            f"{folder} is not complete and valid: delete these files and run the command that made it again"
        )
    checked = "checksums match" if manifest else "no manifest: only structure and token ids were checked"
    print(f"{folder}: {len(records)} shards, {tokens:,} tokens, {documents:,} documents, valid ({checked})")


def check_shard(path: Path, record: dict, tokenizer: Tokenizer) -> tuple[int, int]:
    """A shard's numbers of tokens and documents; UserError if it is corrupt, or differs from its record."""
    if not path.is_file():
        raise UserError(f"{path}: missing")
    tokens = open_shard(path)
    documents = 0
    for start in range(0, len(tokens), CHUNK):
        chunk = np.asarray(tokens[start : start + CHUNK])
        outside = np.flatnonzero(chunk >= tokenizer.vocab_size)
        if len(outside):
            found = f"token {chunk[outside[0]]} at {start + outside[0]:,}"
            raise UserError(f"{path}: {found} is outside the vocabulary of {tokenizer.vocab_size:,}")
        documents += int(np.count_nonzero(chunk == tokenizer.eot))
    if tokenizer.eot is None:
        documents = record["documents"]
    # no text encodes to the end-of-text token, so there is exactly one for each document
    for fact, found in (("tokens", len(tokens)), ("documents", documents)):
        if found != record.get(fact, found):
            raise UserError(f"{path}: {found:,} {fact}, and the manifest says {record[fact]:,}")
    if "sha256" in record and file_sha256(path) != record["sha256"]:
        raise UserError(f"{path}: checksum mismatch, its bytes have changed since it was written")
    return len(tokens), documents
