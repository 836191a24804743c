"""Examples of different lengths: kept in files beside the run, divided, and read in an order fixed by the step.

An example is a row of tokens, and for each the target that its state must predict, or IGNORE_INDEX: the next token, where
an answer is learnt; the label, at a text's last token. Examples are numbered along the run: number g is at place g % n
of the shuffled epoch g // n. Step s takes the numbers [s * N, (s + 1) * N), N = data.batch_examples, sorts them by
length, and cuts them into micro-batches, which the ranks take in turn: little padding, and the same batch and the same
micro-batches for every world size.
"""

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from prepare.common.cli import UserError
from prepare.common.files import atomic_write, atomic_write_json, read_json_object
from train.data.windows import START, permutation, read_ahead
from train.model.gpt import IGNORE_INDEX
from train.parallel.world import World
from train.trainer.step import MicroBatches, dropout_seeds

PARTS = ("train", "val", "test")
DESCRIPTION = "data.json"


@dataclass(frozen=True)
class Examples:
    """Rows of different lengths, one behind the other; row i is [offsets[i], offsets[i + 1])."""

    tokens: np.ndarray  # 1-D uint16
    targets: np.ndarray  # 1-D int32, of as many
    offsets: np.ndarray  # 1-D int64, one more than there are rows

    @classmethod
    def of(cls, rows: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Examples":
        """The examples of some pairs of tokens and targets."""
        offsets = np.cumsum([0, *(len(tokens) for tokens, _ in rows)], dtype=np.int64)
        tokens = np.array([token for tokens, _ in rows for token in tokens], np.uint16)
        return cls(tokens, np.array([target for _, targets in rows for target in targets], np.int32), offsets)

    @classmethod
    def load(cls, path: Path) -> "Examples":
        """What `save` wrote. UserError if the file is damaged."""
        try:
            with np.load(path, allow_pickle=False) as arrays:
                return cls(arrays["tokens"], arrays["targets"], arrays["offsets"])
        except (OSError, ValueError, KeyError, EOFError, RuntimeError, BadZipFile) as failure:
            raise UserError(f"{path} is damaged ({failure}): remove {path.parent}, and it is made again") from None

    def save(self, path: Path) -> None:
        """Write a file atomically."""
        with atomic_write(path) as file:
            np.savez(file, tokens=self.tokens, targets=self.targets, offsets=self.offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @cached_property
    def lengths(self) -> np.ndarray:
        """Tokens in each row, int64."""
        return np.diff(self.offsets)

    @cached_property
    def counted(self) -> np.ndarray:
        """Targets of each row that count, int64."""
        ends = np.cumsum(np.concatenate([[0], self.targets != IGNORE_INDEX]))
        return ends[self.offsets[1:]] - ends[self.offsets[:-1]]

    def row(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """The tokens and targets of one row."""
        part = slice(self.offsets[number], self.offsets[number + 1])
        return self.tokens[part], self.targets[part]

    def batch(self, numbers: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Rows side by side, int64 (b, longest) each, padded on the right: with token 0, which no position before it
        sees, and with targets that do not count."""
        longest = max((int(self.lengths[number]) for number in numbers), default=0)
        x = np.zeros((len(numbers), longest), np.int64)
        y = np.full((len(numbers), longest), IGNORE_INDEX, np.int64)
        for place, number in enumerate(numbers):
            tokens, targets = self.row(number)
            x[place, : len(tokens)], y[place, : len(targets)] = tokens, targets
        return torch.from_numpy(x), torch.from_numpy(y)


@dataclass(frozen=True)
class ExampleLoader:
    """One rank's micro-batches of any step."""

    examples: Examples
    shares: np.ndarray  # float64, what each example weighs in the loss: its targets that count, or its label's weight
    batch_examples: int
    micro_batch_size: int
    rank: int
    world_size: int
    seed: int
    pin: bool = False
    began = START  # its data is that which the run began with

    def numbers(self, step: int) -> list[np.ndarray]:
        """The rows of all micro-batches of a step, (micro_batch_size,) int64 each."""
        first = step * self.batch_examples
        rows = self._rows(first, first + self.batch_examples)
        rows = rows[np.argsort(self.examples.lengths[rows], kind="stable")]
        return list(rows.reshape(-1, self.micro_batch_size))

    def _rows(self, first: int, end: int) -> np.ndarray:
        """The rows with the numbers [first, end) along the run, int64."""
        n = len(self.examples)
        epochs = range(first // n, (end - 1) // n + 1)
        orders = [permutation(n, self.seed, epoch) for epoch in epochs]
        return np.concatenate(orders)[first - epochs[0] * n : end - epochs[0] * n]

    def _mine(self, parts: Sequence[Any]) -> Sequence[Any]:
        return parts[self.rank :: self.world_size]

    def micro_batches(self, step: int) -> MicroBatches:
        """The inputs and targets of one step, int64 (micro_batch_size, longest of them) each."""
        batches = [self.examples.batch(rows) for rows in self._mine(self.numbers(step))]
        return [(x.pin_memory(), y.pin_memory()) for x, y in batches] if self.pin else batches

    def weights(self, step: int) -> list[float]:
        """What the mean loss of each micro-batch counts, so that the mean over the ranks of their sums is the mean
        over all targets of the whole batch."""
        shares = [float(self.shares[rows].sum()) for rows in self.numbers(step)]
        return [share * self.world_size / sum(shares) for share in self._mine(shares)]

    def seeds(self, step: int) -> list[int]:
        """Seeds of the dropout in the micro-batches of one step."""
        size = self.micro_batch_size
        return self._mine(dropout_seeds(self.seed, step * self.batch_examples, size, self.batch_examples // size))

    def epoch_of(self, step: int) -> float:
        """Epochs read when `step` steps are done."""
        return step * self.batch_examples / len(self.examples)

    def tokens_read(self, step: int) -> int:
        """Tokens read when `step` steps are done, without the padding."""
        epochs, rest = divmod(step * self.batch_examples, len(self.examples))
        begun = permutation(len(self.examples), self.seed, epochs)[:rest]
        return int(epochs * self.examples.lengths.sum() + self.examples.lengths[begun].sum())

    def position(self, step: int) -> dict[str, int]:
        """Where the data is after `step` steps, as a checkpoint states it: the next example, and the epoch begun."""
        return {"window": step * self.batch_examples, "epoch": int(self.epoch_of(step))}

    def prefetch(self, first: int, last: int) -> Iterator[MicroBatches]:
        """The micro-batches of steps first ... last - 1, read ahead."""
        return read_ahead(self.micro_batches, first, last)


def next_tokens(tokens: Sequence[int], learnt: Sequence[bool]) -> tuple[Sequence[int], list[int]]:
    """A row of tokens as inputs and targets: the token that follows where it is learnt, IGNORE_INDEX elsewhere."""
    return tokens[:-1], [
        token if counts else IGNORE_INDEX for token, counts in zip(tokens[1:], learnt[1:], strict=True)
    ]


def bucketed(examples: Examples, batch_size: int) -> list[np.ndarray]:
    """All rows in batches of like length, the longest first: for measurements, whose result has no order."""
    order = np.argsort(-examples.lengths, kind="stable")
    return [order[start : start + batch_size] for start in range(0, len(order), batch_size)]


def divide(groups: Sequence[str], strata: Sequence[str], shares: Sequence[float], seed: int) -> list[list[int]]:
    """Divide examples at random into parts with these shares of each stratum, and a last part with the rest.

    Args:
        groups: examples of the same group (copies of a text) go into the same part, with the first one's stratum.
        strata: the label of each example.
        shares: of the parts but the last.

    Returns:
        the numbers of each part's examples, in order.
    """
    members: dict[str, dict[str, list[int]]] = {}
    stratum_of: dict[str, str] = {}
    for number, (group, stratum) in enumerate(zip(groups, strata, strict=True)):
        stratum = stratum_of.setdefault(group, stratum)
        members.setdefault(stratum, {}).setdefault(group, []).append(number)
    parts: list[list[int]] = [[] for _ in range(len(shares) + 1)]
    for place, stratum in enumerate(sorted(members)):
        found = list(members[stratum].values())
        order = permutation(len(found), seed, place)
        ends = np.rint(np.cumsum(shares) * len(found)).astype(int)
        for part, chosen in zip(parts, np.split(order, ends), strict=True):
            part += [number for group in chosen for number in found[group]]
    return [sorted(part) for part in parts]


def prepare_once(
    folder: Path, identity: dict[str, Any], make: Callable[[], tuple[dict[str, Examples], dict[str, Any]]], world: World
) -> tuple[dict[str, Examples], dict[str, Any]]:
    """The parts of a run's data and what is to be known of them, from the files beside the run; rank 0 makes them, once
    for each identity (the file, and the options that decide what becomes of it)."""
    file = folder / DESCRIPTION
    if world.is_main and read_json_object(file).get("identity") != identity:
        parts, facts = make()
        folder.mkdir(parents=True, exist_ok=True)
        file.unlink(missing_ok=True)
        for name, part in parts.items():
            part.save(folder / f"{name}.npz")
        atomic_write_json(file, {"identity": identity, **facts})
    world.sum([0.0])  # nobody reads before it is written
    facts = json.loads(file.read_bytes())
    return {name: Examples.load(folder / f"{name}.npz") for name in PARTS}, facts


def fingerprint(parts: dict[str, Examples]) -> dict[str, int | str]:
    """What identifies the data of a run: how much there is to train on, and a sha256 over all parts."""
    digest = hashlib.sha256()
    for name in PARTS:
        for array in (parts[name].tokens, parts[name].targets, parts[name].offsets):
            digest.update(np.ascontiguousarray(array))
    train = parts["train"]
    return {"examples": len(train), "tokens": len(train.tokens), "sha256": digest.hexdigest()}
