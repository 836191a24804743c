"""Windows of token shards, and the order in which a source's are read: a pure function of (seed, epoch).

A window is block_size + 1 consecutive tokens of one shard; the next window begins block_size tokens later, so
every token but a shard's first is a target once. A remainder of less than a window at a shard's end is left out.

A run of one source reads window g % per_epoch of epoch g // per_epoch as its window g. loader.py interleaves several
sources, and makes the micro-batches.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from prepare.common.cli import UserError
from prepare.tokens.manifest import read_manifest, read_meta_pkl
from prepare.tokens.shards import open_shard


@lru_cache(maxsize=8)
def permutation(n: int, *key: int) -> np.ndarray:
    """A permutation of range(n), int64, that depends only on the key.

    It sorts the raw output of a Philox generator, which NumPy promises never to change; it does not promise that of its
    own `permutation`.
    """
    seed = np.random.SeedSequence(key)
    return np.argsort(np.random.Philox(seed).random_raw(n), kind="stable")


def check_training_shards(sources: Mapping[str, Sequence[Path]], val: Sequence[Path]) -> None:
    """UserError if a training shard is named as a validation shard, is one of data.val, or is in two sources."""
    held_out = {path.resolve() for path in val}
    source_of: dict[Path, str] = {}
    for source, path in ((source, path) for source, paths in sources.items() for path in paths):
        if (other := source_of.setdefault(path.resolve(), source)) != source:
            raise UserError(f"the sources {other} and {source} of data.train share {path}: give globs without overlap")
        if re.search(r"(^|_)val(_\d+)?\.(bin|npy)$", path.name) or path.resolve() in held_out:
            raise UserError(
                f"data.train takes in the validation shard {path}: give a glob of training shards alone, such as "
                f"'{path.parent}/*train*{path.suffix}'"
            )


class WindowOrder:
    """The data order: windows shuffled within their shard, and shards shuffled, again in each epoch."""

    def __init__(self, windows_per_shard: Sequence[int], seed: int, shuffle: bool) -> None:
        self.counts = np.asarray(windows_per_shard, dtype=np.int64)  # (shards,)
        self.per_epoch = int(self.counts.sum())
        self.seed, self.shuffle = seed, shuffle
        # caches of its own: several sources are read in turn
        self._epoch, self._permutation = lru_cache(maxsize=2)(self._epoch), lru_cache(maxsize=2)(permutation)

    def locate(self, number: int) -> tuple[int, int]:
        """Number of a window of this source -> (shard index, window index in that shard)."""
        epoch, place = divmod(number, self.per_epoch)
        shards, ends = self._epoch(epoch)
        turn = int(np.searchsorted(ends, place, side="right"))  # position of the shard in this epoch's order
        shard, count = int(shards[turn]), int(self.counts[shards[turn]])
        window = place - (int(ends[turn]) - count)
        if self.shuffle:
            window = int(self._permutation(count, self.seed, epoch, shard + 1)[window])
        return shard, window

    def _epoch(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The epoch's order of shards, and where each one's windows end in it."""
        n = len(self.counts)
        shards = permutation(n, self.seed, epoch, 0) if self.shuffle else np.arange(n)
        return shards, np.cumsum(self.counts[shards])


class Windows:
    """All windows of a list of shards, memory-mapped: nothing is read before `read`."""

    def __init__(self, paths: Sequence[Path], block_size: int, vocab_size: int) -> None:
        self.paths, self.block_size, self.vocab_size = list(paths), block_size, vocab_size
        self.lengths = [len(open_shard(path)) for path in paths]  # in tokens
        self.counts = [max(0, (length - 1) // block_size) for length in self.lengths]
        self.tokens = sum(self.lengths)
        # shards are read one after another: the pages of others can be dropped
        self._open = lru_cache(maxsize=4)(open_shard)
        if sum(self.counts) == 0:
            several = f" and {len(paths) - 1} more shards have up to" if len(paths) > 1 else " has"
            raise UserError(
                f"{self.paths[0]}{several} {max(self.lengths)} tokens, less than one window of model.block_size + 1 = "
                f"{block_size + 1}: prepare more text, hold out more (--val-fraction), or lower model.block_size"
            )

    def read(self, places: Sequence[tuple[int, int]]) -> tuple[Tensor, Tensor]:
        """The windows at (shard index, window index) as inputs and targets, int64 (len(places), block_size) each.

        Raises:
            UserError: a token id is not below vocab_size.
        """
        T = self.block_size
        batch = np.empty((len(places), T + 1), dtype=np.int64)
        for row, (shard, window) in enumerate(places):
            batch[row] = self._open(self.paths[shard])[window * T : window * T + T + 1]
        if batch.size and batch.max() >= self.vocab_size:
            row = int((batch >= self.vocab_size).any(axis=1).argmax())
            raise UserError(
                f"{self.paths[places[row][0]]} holds token {batch[row].max()}, but model.vocab_size is "
                f"{self.vocab_size}: prepare the data with this model's tokenizer, or set model.vocab_size"
            )
        tokens = torch.from_numpy(batch)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def fingerprint(self) -> dict[str, int | str]:
        """What identifies a run's data: the numbers of shards and tokens, and a sha256 over the shards' names, lengths
        and, where a manifest has them, checksums."""
        checksums: dict[Path, str] = {}
        for folder in {path.parent for path in self.paths}:
            manifest = read_manifest(folder)
            shards = manifest["shards"] if manifest else []
            checksums.update({folder / shard["file"]: shard["sha256"] for shard in shards})
        facts = [[p.name, length, checksums.get(p)] for p, length in zip(self.paths, self.lengths, strict=True)]
        digest = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
        return {"shards": len(facts), "tokens": self.tokens, "sha256": digest}


def validation_batches(
    windows: Windows, tokens: int, batch_size: int, rank: int = 0, world_size: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """This rank's share of the validation windows: those of the first `tokens` tokens, in the order of the shards.

    The windows are the same for every world size and batch size, and every rank gets the same number of batches, so
    that ranks can run a collective between two of them: the last batches may be smaller, or empty.

    Yields:
        inputs and targets, int64 (b, block_size) each, with 0 <= b <= batch_size.
    """
    in_order = ((shard, window) for shard, count in enumerate(windows.counts) for window in range(count))
    places = list(islice(in_order, max(1, tokens // windows.block_size)))
    for start in range(0, len(places), batch_size * world_size):
        mine = start + rank * batch_size
        yield windows.read(places[mine : mine + batch_size])


def common_tokenizer(paths: Sequence[Path], vocab_size: int) -> dict | None:
    """The tokenizer that the manifests of these shards describe, or nanoGPT's meta.pkl; None where there is neither.

    Raises:
        UserError: the manifests disagree, or the tokenizer has more ids than vocab_size, unless that is 0.
    """
    found: dict[str, tuple[Path, dict]] = {}
    for folder in sorted({path.parent for path in paths}):
        manifest = read_manifest(folder)
        if tokenizer := manifest["tokenizer"] if manifest else read_meta_pkl(folder):
            found.setdefault(tokenizer["sha256"], (folder, tokenizer))
    if len(found) > 1:
        (one, a), (other, b), *_ = found.values()
        raise UserError(
            f"{one} was made with the {a['name']} vocabulary of {a['vocab_size']} ids, {other} with another, "
            f"{b['name']} with {b['vocab_size']}: prepare them with the same"
        )
    if not found:
        return None
    [(folder, tokenizer)] = found.values()
    if tokenizer["vocab_size"] > vocab_size > 0:
        raise UserError(
            f"{folder} was made with the {tokenizer['name']} tokenizer of {tokenizer['vocab_size']} ids, but "
            f"model.vocab_size is {vocab_size}: leave it out, or prepare other data"
        )
    return tokenizer
