"""The data loader of fine-tuning: examples of different lengths, split and stored in the run directory, and read in an
order that is a pure function of (seed, step).

An example is a row of tokens with a target for each: the next token where the loss mask is set (instructions), the
label at the text's last token (classification), and IGNORE_INDEX elsewhere. Examples are numbered along the run: number
g is at place g % n of the shuffled epoch g // n. Step s takes the numbers [s * N, (s + 1) * N), N =
data.batch_examples, sorts them by length, and cuts them into micro-batches, which the ranks take in turn. That needs
little padding, and the batch and its micro-batches are the same for every world size.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from prepare.common.files import atomic_write, atomic_write_json, read_json_object
from train.data.loader import MicroBatch, dropout_seeds
from train.data.windows import permutation
from train.model.loss import IGNORE_INDEX
from train.parallel.world import World

SPLITS = ("train", "val", "test")
DESCRIPTION = "data.json"


@dataclass(frozen=True)
class Examples:
    """Rows of different lengths, concatenated; row i is [offsets[i], offsets[i + 1])."""

    tokens: np.ndarray  # 1-D uint16
    targets: np.ndarray  # 1-D int32, one for each token
    offsets: np.ndarray  # 1-D int64, number of rows + 1

    @classmethod
    def from_rows(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Examples":
        """Concatenate rows, each a pair of tokens and targets."""
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in rows)], dtype=np.int64)
        tokens = np.array([token for tokens, _ in rows for token in tokens], np.uint16)
        return cls(tokens, np.array([target for _, targets in rows for target in targets], np.int32), offsets)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as arrays:
            return cls(arrays["tokens"], arrays["targets"], arrays["offsets"])

    def save(self, path: Path) -> None:
        """Write an .npz, atomically."""
        with atomic_write(path) as file:
            np.savez(file, tokens=self.tokens, targets=self.targets, offsets=self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """The number of tokens in each row, int64."""
        return np.diff(self.offsets)

    @cached_property
    def num_targets(self) -> np.ndarray:
        """The number of targets in each row that are in the loss, int64."""
        ends = np.cumsum(np.concatenate([[0], self.targets != IGNORE_INDEX]))
        return ends[self.offsets[1:]] - ends[self.offsets[:-1]]

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and targets of one row."""
        part = slice(self.offsets[number], self.offsets[number + 1])
        return self.tokens[part], self.targets[part]

    def batch(self, numbers: Sequence[int] | np.ndarray) -> tuple[Tensor, Tensor]:
        """Rows as inputs and targets, int64 (b, longest) each, padded on the right: with token 0, which no position
        before it attends to, and IGNORE_INDEX."""
        longest = max((int(self.lengths[number]) for number in numbers), default=0)
        x = np.zeros((len(numbers), longest), np.int64)
        y = np.full((len(numbers), longest), IGNORE_INDEX, np.int64)
        for place, number in enumerate(numbers):
            tokens, targets = self.row(number)
            x[place, : len(tokens)], y[place, : len(targets)] = tokens, targets
        return torch.from_numpy(x), torch.from_numpy(y)


@dataclass(frozen=True)
class ExampleLoader:
    """One rank's data loader: the micro-batches of any step."""

    examples: Examples
    shares: np.ndarray  # (n,) float64, each example's weight in the loss: its number of targets, or its label's weight
    batch_examples: int
    micro_batch_size: int
    rank: int
    world_size: int
    seed: int
    pin: bool = False  # in pinned memory, from which a GPU copies while it computes

    def numbers(self, step: int) -> list[np.ndarray]:
        """The row numbers of each micro-batch of a step, over all ranks: (micro_batch_size,) int64 each."""
        first = step * self.batch_examples
        rows = self._rows(first, first + self.batch_examples)
        rows = rows[np.argsort(self.examples.lengths[rows], kind="stable")]
        return list(rows.reshape(-1, self.micro_batch_size))

    def _rows(self, first: int, end: int) -> np.ndarray:
        """The row numbers of the examples [first, end) along the run, int64."""
        n = len(self.examples)
        epochs = range(first // n, (end - 1) // n + 1)
        orders = [permutation(n, self.seed, epoch) for epoch in epochs]
        return np.concatenate(orders)[first - epochs[0] * n : end - epochs[0] * n]

    def micro_batches(self, step: int) -> list[MicroBatch]:
        """This rank's micro-batches of one step, (micro_batch_size, length of its longest row) each.

        They are weighted so that the mean of the ranks' losses is the mean over all targets of the batch.
        """
        numbers = self.numbers(step)
        shares = [float(self.shares[rows].sum()) for rows in numbers]
        seeds = dropout_seeds(self.seed, step * self.batch_examples, self.micro_batch_size, len(numbers))
        batches = []
        for i in range(self.rank, len(numbers), self.world_size):
            x, y = self.examples.batch(numbers[i])
            x, y = (x.pin_memory(), y.pin_memory()) if self.pin else (x, y)
            batches.append(MicroBatch(x, y, shares[i] * self.world_size / sum(shares), seeds[i]))
        return batches

    def epoch_of(self, step: int) -> float:
        """Epochs read after `step` finished steps."""
        return step * self.batch_examples / len(self.examples)

    def tokens_read(self, step: int) -> int:
        """Tokens read after `step` finished steps, without the padding."""
        epochs, rest = divmod(step * self.batch_examples, len(self.examples))
        partial = permutation(len(self.examples), self.seed, epochs)[:rest]
        return int(epochs * self.examples.lengths.sum() + self.examples.lengths[partial].sum())


def next_token_targets(tokens: Sequence[int], loss_mask: Sequence[bool]) -> tuple[Sequence[int], list[int]]:
    """A row of tokens as inputs and targets: the next token where the loss mask is set, IGNORE_INDEX elsewhere."""
    targets = [token if counts else IGNORE_INDEX for token, counts in zip(tokens[1:], loss_mask[1:], strict=True)]
    return tokens[:-1], targets


def label_targets(tokens: Sequence[int], label: int, block_size: int) -> tuple[Sequence[int], list[int]]:
    """A text's first block_size tokens, with the label as the target of the last one."""
    kept = tokens[:block_size]
    return kept, [IGNORE_INDEX] * (len(kept) - 1) + [label]


def length_buckets(examples: Examples, batch_size: int) -> list[np.ndarray]:
    """All rows in batches of similar length, the longest first: for evaluation, where their order does not matter."""
    order = np.argsort(-examples.lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def split_examples(
    groups: Sequence[str], strata: Sequence[str], shares: Sequence[float], seed: int
) -> dict[str, list[int]]:
    """Split examples at random into train, val and test, stratified.

    Args:
        groups: of each example; a group (copies of a text) goes into one split, in the stratum of its first example.
        strata: the label of each example.
        shares: of val and test in each stratum; the rest is train.

    Returns:
        the numbers of each split's examples, in order.
    """
    members: dict[str, dict[str, list[int]]] = {}
    stratum_of: dict[str, str] = {}
    for number, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        stratum = stratum_of.setdefault(group, stratum)
        members.setdefault(stratum, {}).setdefault(group, []).append(number)
    splits: dict[str, list[int]] = {"val": [], "test": [], "train": []}
    for place, stratum in enumerate(sorted(members)):
        found = list(members[stratum].values())
        order = permutation(len(found), seed, place)
        ends = np.rint(np.cumsum(shares) * len(found)).astype(int)
        for split, chosen in zip(splits.values(), np.split(order, ends), strict=True):
            split += [number for group in chosen for number in found[group]]
    return {name: sorted(splits[name]) for name in SPLITS}


def prepare_once(
    folder: Path, identity: dict[str, Any], make: Callable[[], tuple[dict[str, Examples], dict[str, Any]]], world: World
) -> tuple[dict[str, Examples], dict[str, Any]]:
    """Load the splits of a run's data, and facts about them, from `folder`. Rank 0 makes and stores them first, unless
    they are there with this identity (see trainer.finetune.data_identity)."""
    file = folder / DESCRIPTION
    if world.is_main and read_json_object(file).get("identity") != identity:
        splits, facts = make()
        folder.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        for name, split in splits.items():
            split.save(folder / f"{name}.npz")
        atomic_write_json(file, {"identity": identity, **facts})
    world.sum([0.0])  # a barrier: no rank reads before rank 0 has written
    facts = json.loads(file.read_bytes())
    return {name: Examples.load(folder / f"{name}.npz") for name in SPLITS}, facts


def fingerprint(splits: dict[str, Examples]) -> dict[str, int | str]:
    """What identifies a run's data: the numbers of training examples and tokens, and a sha256 over all splits."""
    digest = hashlib.sha256()
    for name in SPLITS:
        for array in (splits[name].tokens, splits[name].targets, splits[name].offsets):
            digest.update(np.ascontiguousarray(array).data)
    train = splits["train"]
    return {"examples": len(train), "tokens": len(train.tokens), "sha256": digest.hexdigest()}
