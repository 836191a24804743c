"""The loader: the same global batch for every world size and micro-batch, and nothing remembered between steps."""

import threading
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.common.cli import UserError
from prepare.tokens.shards import open_shard, write_shard
from tests.helpers.tiny import VOCAB, markov_tokens, write_shards
from train.config.pretrain import DataConfig, SourceConfig
from train.data.loader import WindowLoader, prefetch
from train.data.mixture import Mixture

T = 32


MIXED = {"a": SourceConfig("", 0.7), "b": SourceConfig("", 0.3)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return sorted(write_shards(tmp_path).glob("*_train_*.bin"))


def loader(
    paths: list[Path], per_step: int, micro: int, rank: int = 0, world: int = 1, **config: object
) -> WindowLoader:
    """Of one source, or with `train=MIXED` of two: the first shard, and the others."""
    shards = {"a": paths[:1], "b": paths[1:]} if "train" in config else {"": paths}
    mixture = Mixture(shards, DataConfig(**config), T, VOCAB, seed=7)
    return WindowLoader(mixture, per_step // world, micro, rank, world)


@pytest.mark.parametrize("config", [{}, {"train": MIXED}], ids=["one source", "two sources"])
def test_the_global_batch_is_the_same_for_every_world_size_and_micro_batch(paths: list[Path], config: dict) -> None:
    reference = loader(paths, per_step=24, micro=24, **config)
    for world, micro in [(1, 1), (1, 8), (2, 12), (2, 3), (3, 4), (4, 6), (8, 1)]:
        for step in [0, 5, 17, 18, 19, 40]:  # 442 windows an epoch: step 18 lies across its end
            (expected,), parts = reference.micro_batches(step), []
            for rank in range(world):
                parts += loader(paths, 24, micro, rank, world, **config).micro_batches(step)
            assert all(part.inputs.shape == (micro, T) for part in parts)
            assert torch.equal(torch.cat([part.inputs for part in parts]), expected.inputs)
            assert torch.equal(torch.cat([part.targets for part in parts]), expected.targets)


@pytest.mark.parametrize("config", [{}, {"train": MIXED}], ids=["one source", "two sources"])
def test_a_step_depends_only_on_its_number(paths: list[Path], config: dict) -> None:
    one, other = loader(paths, 16, 4, **config), loader(paths, 16, 4, **config)
    for step in [30, 3, 30]:
        one.micro_batches(step)
    prefetched = list(prefetch(one.micro_batches, 7, 12))
    assert len(prefetched) == 5
    for step, batches in enumerate(prefetched, 7):
        for batch, again in zip(batches, other.micro_batches(step), strict=True):
            assert torch.equal(batch.inputs, again.inputs)
            assert torch.equal(batch.targets, again.targets)
            assert (batch.weight, batch.seed) == (again.weight, again.seed)


def test_shuffling_mixes_and_straight_reading_does_not(paths: list[Path]) -> None:
    straight = loader(paths, 8, 8, shuffle=False)
    tokens = open_shard(paths[0])[: 8 * T].astype(np.int64)
    assert torch.equal(straight.micro_batches(0)[0][0].flatten(), torch.from_numpy(tokens))
    shuffled = loader(paths, 8, 8)
    windows = [shuffled.mixture.locate(i)[2] for i in range(8)]
    assert windows != sorted(windows)


def test_prefetch_raises_what_its_thread_raised_and_ends_it(paths: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad_train_000009.bin"
    tokens = markov_tokens(200, seed=1)
    tokens[150] = VOCAB  # the first that is none
    write_shard(bad, tokens)
    with pytest.raises(UserError, match=r"bad_train_000009.bin holds token 64, but model.vocab_size is 64"):
        list(prefetch(loader([bad], 2, 2).micro_batches, 0, 10))
    steps = prefetch(loader(paths, 8, 8).micro_batches, 0, 10_000)
    next(steps)
    steps.close()
    for thread in threading.enumerate():
        if thread.name == "prefetch":
            thread.join(timeout=5)
            assert not thread.is_alive()
