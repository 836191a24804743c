"""FineWeb as GPT-2 shards that others have published: download and check them, and write their manifest."""

from pathlib import Path
from typing import Any

import numpy as np

from prepare.common.cli import ArgumentError, UserError
from prepare.common.files import file_sha256
from prepare.common.progress import Progress
from prepare.pipeline.output_folder import PROGRESS, pinned_revision
from prepare.sources.hub import fetch_hub_file, hub_files
from prepare.tokens.manifest import build_manifest, read_manifest, write_manifest
from prepare.tokens.shards import SUFFIXES, open_shard
from prepare.tokens.tokenizer import EOT, GPT2_VOCAB_SIZE, GPT2Tokenizer

PRETOKENIZED = {  # (edu, version) -> the repository of the GPT-2 shards that modded-nanogpt trains on
    (False, "10BT"): "kjj0/fineweb10B-gpt2",
    (False, "100BT"): "kjj0/fineweb100B-gpt2",
    (True, "10BT"): "kjj0/finewebedu10B-gpt2",
}


def fetch_pretokenized(out: Path, edu: bool, version: str, chunks: int | None) -> None:
    """Download published shards, check each, and write their manifest.

    These are the validation shard and the first `chunks` training shards (None: all) of 100M tokens (200 MB) each.
    They keep their names (fineweb_val_000000.bin, fineweb_train_000001.bin, ...); a folder keeps its commit.

    Raises:
        ArgumentError: they are not published, or fewer than `chunks` are.
        UserError: before any download, if the folder holds other shards; if a shard is not GPT-2's.
    """
    repo = PRETOKENIZED.get((edu, version))
    if repo is None:
        known = ", ".join(f"{'--edu ' if e else ''}--version {v}" for e, v in PRETOKENIZED)
        raise ArgumentError(f"no published tokens of {'FineWeb-Edu' if edu else 'FineWeb'} {version}: use {known}")
    manifest = read_manifest(out)
    if (out / PROGRESS).exists() or (manifest is not None and manifest["dataset"] != repo):
        found = "shards that are being made here" if manifest is None else f"dataset {manifest['dataset']}"
        raise UserError(f"{out} holds {found}, not {repo}: choose another --out, or delete it")
    # the shards of an earlier run are kept, and downloaded again only if they differ from the commit's
    revision, files = hub_files(repo, "", ".bin", pinned_revision(out, repo) or "main")
    val, train = ([name for name in files if split in name] for split in ("_val_", "_train_"))
    if chunks is not None and chunks > len(train):
        raise ArgumentError(f"--pretokenized {chunks}: {repo} has {len(train)} training shards: ask for at most that")
    present = {path.name for path in out.glob("*") if path.suffix in SUFFIXES}
    if others := sorted(present - {*val, *train}):
        raise UserError(f"{out / others[0]} is there, but not in {repo}: choose another --out, or delete it")
    paths = [out / name for name in sorted({*val, *train[:chunks], *present})]
    for path in sorted(paths, key=lambda path: "_train_" in path.name):  # the validation shard first
        fetch_hub_file(repo, path.name, revision, out)

    shards: list[dict[str, Any]] = []
    with Progress("checking", sum(path.stat().st_size for path in paths), "B") as progress:
        for path in paths:
            tokens = open_shard(path)
            if tokens.max() >= GPT2_VOCAB_SIZE:
                raise UserError(f"{path} holds token {tokens.max()}, above GPT-2's {GPT2_VOCAB_SIZE - 1}: delete it")
            documents = int(np.count_nonzero(tokens == EOT))
            record = {"file": path.name, "tokens": len(tokens), "documents": documents, "sha256": file_sha256(path)}
            shards.append(record)
            progress.update(path.stat().st_size)
    inputs = [{"name": shard["file"], "documents": shard["documents"], "tokens": shard["tokens"]} for shard in shards]
    tokenizer = GPT2Tokenizer().describe()
    manifest = build_manifest(repo, revision, inputs, tokenizer, {"pretokenized": True}, shards)
    write_manifest(out, manifest)
    print(f"{out}: {len(shards)} shards, {sum(shard['tokens'] for shard in shards):,} tokens from {repo}")
