"""The loader: the same global batch for every world size and micro-batch, and nothing remembered between steps; of
several sources, every prefix of the run holds their weights, and each is read in its own epochs."""

import threading
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from prepare.common.cli import UserError
from prepare.tokens.shards import write_shard
from tests.helpers.tiny import VOCAB, markov_tokens, write_shards
from train.config.pretrain import DataConfig, ModelConfig, SourceConfig
from train.data.loader import Mixture, WindowLoader, integer_shares, prefetch, schedule
from train.data.windows import WindowOrder
from train.run.resume import differences

T = 32


MODEL = ModelConfig(block_size=T, vocab_size=VOCAB)
WEIGHTS = {"web": 0.5, "code": 0.3, "books": 0.2}
MIXED = {"a": SourceConfig("", 0.7), "b": SourceConfig("", 0.3)}


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return sorted(write_shards(tmp_path).glob("*_train_*.bin"))


def loader(
    paths: list[Path], per_step: int, micro: int, rank: int = 0, world: int = 1, **config: object
) -> WindowLoader:
    """Of one source, or with `train=MIXED` of two: the first shard, and the others."""
    shards = {"a": paths[:1], "b": paths[1:]} if "train" in config else {"": paths}
    mixture = Mixture(shards, DataConfig(**config), MODEL, seed=7)
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
    assert "prefetch" not in {thread.name for thread in threading.enumerate()}


@pytest.fixture
def shards(paths: list[Path]) -> dict[str, list[Path]]:
    """Three sources of 187, 156 and 93 windows."""
    return {name: [path] for name, path in zip(WEIGHTS, paths, strict=True)}


def mixture(shards: dict[str, list[Path]], **weights: float) -> Mixture:
    sources = {name: SourceConfig("", weight) for name, weight in (WEIGHTS | weights).items()}
    return Mixture(shards, DataConfig(train=sources), MODEL, seed=7)


@given(st.lists(st.integers(1, 60), min_size=1, max_size=9))
def test_every_prefix_holds_the_weights_to_within_one_window_a_source(shares: list[int]) -> None:
    turns, period = schedule(shares), sum(shares)
    read = np.cumsum(turns[:, :1] == np.arange(len(shares)), axis=0)  # (period, sources)
    exact = np.arange(1, period + 1)[:, None] * np.array(shares)  # in units of 1 / period of a window
    assert (np.abs(read * period - exact) < period).all()
    assert read[-1].tolist() == shares
    assert [read[place, source] - 1 for place, (source, _) in enumerate(turns)] == turns[:, 1].tolist()


def test_each_source_is_read_in_its_own_order_and_epochs_wherever_the_run_resumes(
    shards: dict[str, list[Path]],
) -> None:
    mixed = mixture(shards)
    assert mixed.names == ["books", "code", "web"]
    own = {name: WindowOrder(windows.counts, 7, True) for name, windows in zip(mixed.names, mixed.windows, strict=True)}
    for first in (0, 10**7 + 3):
        read = mixed.windows_read(first).tolist()
        for number in range(first, first + 1000):
            source, *place = mixed.locate(number)
            assert tuple(place) == own[mixed.names[source]].locate(read[source])
            read[source] += 1
        assert read == mixed.windows_read(first + 1000).tolist()
    assert mixed.windows_read(10**7).tolist() == [2 * 10**6, 3 * 10**6, 5 * 10**6]
    assert mixed.epochs(930).tolist() == [186 / 93, 279 / 156, 465 / 187]
    books = Counter(
        place for source, *place in map(mixed.locate, range(930)) if source == 0 for place in [tuple(place)]
    )
    assert books == dict.fromkeys([(0, window) for window in range(93)], 2)  # two epochs


def test_a_batch_holds_the_windows_of_all_sources_in_their_places(shards: dict[str, list[Path]]) -> None:
    mixed = mixture(shards)
    x, y = mixed.read(range(100, 116))
    for row, number in enumerate(range(100, 116)):
        source, *place = mixed.locate(number)
        (one,), (target,) = mixed.windows[source].read([tuple(place)])
        assert torch.equal(x[row], one)
        assert torch.equal(y[row], target)
    backwards = dict(reversed(shards.items()))
    assert torch.equal(mixture(backwards).read(range(100, 116))[0], x)


def test_one_named_source_is_read_like_a_plain_one(shards: dict[str, list[Path]]) -> None:
    plain = Mixture({"": shards["web"]}, DataConfig(), MODEL, seed=7)
    named = mixture({"web": shards["web"]}, web=3)
    assert torch.equal(plain.read(range(300))[0], named.read(range(300))[0])


def test_weights_are_taken_as_they_are_written() -> None:
    assert integer_shares([0.7, 0.3]) == integer_shares([7, 3.0]) == [7, 3]
    assert integer_shares([1, 1, 2]) == [1, 1, 2]
    with pytest.raises(UserError, match=r"0\.1234567, 1 of data\.train have too many digits"):
        integer_shares([0.1234567, 1])


def test_the_fingerprint_names_the_source_that_changed(shards: dict[str, list[Path]]) -> None:
    saved = mixture(shards).fingerprint()
    assert mixture(shards, web=5, code=3, books=2).fingerprint() == saved  # the same proportions
    changed = differences("data", saved, mixture(shards | {"code": shards["web"]}).fingerprint())
    assert [line.split()[0] for line in changed] == ["data.code.tokens", "data.code.sha256"]
    added = differences("data", mixture({"web": shards["web"]}).fingerprint(), saved)
    assert added[0] == "data.sources web (now books, code, web)"
    assert "data.code None (now present)" in added
