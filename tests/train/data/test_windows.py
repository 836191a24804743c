"""Windows: every token a target once, each window once an epoch, in an order that never changes."""

import resource
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.common.cli import UserError
from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import open_shard, write_shard
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.tiny import VOCAB, markov_tokens, write_shards
from train.data.windows import (
    WindowOrder,
    Windows,
    check_training_shards,
    common_tokenizer,
    permutation,
    validation_batches,
)

T = 32


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    return sorted(write_shards(tmp_path).glob("*_train_*.bin"))


def test_permutation_is_one_and_depends_on_every_part_of_the_key() -> None:
    seen = {tuple(permutation(50, *key)) for key in [(1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1)]}
    assert len(seen) == 4
    assert all(sorted(order) == list(range(50)) for order in seen)
    # fixed for good: a run that is resumed under another NumPy must read on in the same order
    assert permutation(8, 1337, 0, 1).tolist() == [7, 4, 2, 6, 0, 3, 1, 5]


@pytest.mark.parametrize("shuffle", [True, False])
def test_each_epoch_holds_every_window_once(paths: list[Path], shuffle: bool) -> None:
    counts = Windows(paths, T, VOCAB).counts
    assert counts == [(6000 - 1) // T, (5000 - 1) // T, (3001 - 1) // T]
    order = WindowOrder(counts, seed=3, shuffle=shuffle)
    everything = {(shard, window) for shard, count in enumerate(counts) for window in range(count)}
    epochs = [[order.locate(epoch * order.per_epoch + i) for i in range(order.per_epoch)] for epoch in range(3)]
    for places in epochs:
        assert Counter(places) == Counter(everything)
    if shuffle:
        assert epochs[0] != epochs[1] != epochs[2]
        shards = [[shard for shard, _ in places] for places in epochs]
        assert len({tuple(dict.fromkeys(order)) for order in shards}) > 1  # the shards change places too
    else:
        assert epochs[0] == epochs[1] == sorted(everything)


def test_the_order_of_windows_never_changes() -> None:
    """A run that is resumed by a later version reads on in the same order: two epochs, the shards in both orders."""
    order = WindowOrder([3, 4], seed=1, shuffle=True)
    first = [(0, 1), (0, 2), (0, 0), (1, 2), (1, 0), (1, 1), (1, 3)]
    second = [(1, 1), (1, 0), (1, 3), (1, 2), (0, 0), (0, 2), (0, 1)]
    assert [order.locate(number) for number in range(14)] == first + second


def test_targets_are_the_next_tokens_and_no_boundary_target_is_lost(paths: list[Path]) -> None:
    windows = Windows(paths[:1], T, VOCAB)
    x, y = windows.read([(0, window) for window in range(windows.counts[0])])
    tokens = torch.from_numpy(open_shard(paths[0]).astype(np.int64))
    covered = windows.counts[0] * T
    assert x.dtype == y.dtype == torch.int64
    assert torch.equal(x.flatten(), tokens[:covered])
    assert torch.equal(y.flatten(), tokens[1 : covered + 1])


def test_a_validation_shard_is_not_trained_on(tmp_path: Path) -> None:
    train = [tmp_path / name for name in ("x_train_000001.bin", "train.bin", "val_train_000001.npy", "interval.bin")]
    check_training_shards({"": train}, [tmp_path / "x_val_000000.bin"])
    for name in ("x_val_000000.bin", "val.bin", "edufineweb_val_000000.npy", "tiny_val_1000001.bin"):
        with pytest.raises(UserError, match=f"data.train takes in the validation shard {tmp_path / name}"):
            check_training_shards({"": [*train, tmp_path / name]}, [])
    with pytest.raises(UserError, match=r"interval\.bin"):
        check_training_shards({"": train}, [tmp_path / "interval.bin"])
    with pytest.raises(UserError, match=rf"the sources a and b of data.train share {tmp_path}/train\.bin"):
        check_training_shards({"a": train[:2], "b": train[1:]}, [])


def test_less_text_than_a_window_is_refused(tmp_path: Path) -> None:
    write_shard(tmp_path / "a_train_000001.bin", markov_tokens(T, seed=0))
    for paths in ([tmp_path / "a_train_000001.bin"], [tmp_path / "a_train_000001.bin"] * 3):
        with pytest.raises(UserError, match=rf"{T} tokens, less than one window of model.block_size \+ 1 = 33"):
            Windows(paths, T, VOCAB)
    write_shard(tmp_path / "a_train_000001.bin", markov_tokens(T + 1, seed=0))
    assert Windows([tmp_path / "a_train_000001.bin"], T, VOCAB).counts == [1]


def test_validation_windows_are_the_same_set_for_every_world_and_batch_size(tmp_path: Path) -> None:
    paths = [*sorted(write_shards(tmp_path).glob("*_val_*.bin")), *sorted(tmp_path.glob("*_train_*.bin"))]
    tokens = 100 * T + T - 1  # the remainder is less than a window
    windows = Windows(paths, T, VOCAB)
    reference = torch.cat([x for x, _ in validation_batches(windows, tokens, 100)])
    for world, batch in [(1, 7), (2, 8), (3, 16), (4, 100)]:
        ranks = [list(validation_batches(windows, tokens, batch, rank, world)) for rank in range(world)]
        assert len({len(batches) for batches in ranks}) == 1  # as many batches on each rank, some of them empty
        rows = torch.cat([x for batches in ranks for x, _ in batches])
        assert rows.shape == (100, T)
        assert torch.equal(torch.unique(rows, dim=0), torch.unique(reference, dim=0))
    assert torch.equal(reference[0], torch.from_numpy(open_shard(paths[0])[:T].astype(np.int64)))


def test_validation_takes_what_there_is(tmp_path: Path) -> None:
    paths = sorted(write_shards(tmp_path).glob("*_val_*.bin"))
    rows = sum(len(x) for x, _ in validation_batches(Windows(paths, T, VOCAB), 10**9, 16))
    assert rows == (3000 - 1) // T


def test_fingerprint_changes_with_the_data_and_not_with_its_folder(tmp_path: Path) -> None:
    here, there = (sorted(write_shards(tmp_path / folder).glob("*_train_*.bin")) for folder in "ab")
    facts = Windows(here, T, VOCAB).fingerprint()
    assert facts == Windows(there, T, VOCAB).fingerprint()
    assert facts != Windows(here[:2], T, VOCAB).fingerprint()
    assert (facts["shards"], facts["tokens"]) == (3, 14_001)
    write_shard(there[0], markov_tokens(5999, seed=1))
    assert facts != Windows(there, T, VOCAB).fingerprint()


def test_fingerprint_changes_with_the_checksums_of_the_manifest(tmp_path: Path) -> None:
    """Shards of the same names and lengths hold other tokens."""
    facts = []
    for first in (1, 2):
        folder = tmp_path / str(first)
        folder.mkdir()
        record = write_shard(folder / "x_train_000001.bin", np.arange(first, first + 100))
        write_manifest(folder, build_manifest("x", None, [], GPT2Tokenizer().describe(), {}, [record]))
        facts.append(Windows([folder / "x_train_000001.bin"], T, VOCAB).fingerprint())
    assert facts[0]["sha256"] != facts[1]["sha256"]


def test_one_vocabulary_for_all_shards_and_the_model(tmp_path: Path) -> None:
    paths = [path for name in "abc" for path in write_shards(tmp_path / name).glob("*_train_*.bin")]
    assert common_tokenizer(paths, 64) is None

    def describe(name: str, tokenizer: dict) -> None:
        facts = {"dataset": "", "revision": None, "inputs": [], "options": {}, "shards": []}
        write_manifest(tmp_path / name, build_manifest(**facts, tokenizer=tokenizer))

    gpt2, char = GPT2Tokenizer().describe(), CharTokenizer("abc").describe()
    describe("a", gpt2)
    describe("b", gpt2)
    assert common_tokenizer(paths, 50257) == common_tokenizer(paths, 0) == gpt2
    with pytest.raises(UserError, match=r"gpt2 tokenizer of 50257 ids, but model.vocab_size is 64"):
        common_tokenizer(paths, 64)
    describe("c", char)
    with pytest.raises(UserError, match=r"a was made with the gpt2 vocabulary .*c with another, char with 3"):
        common_tokenizer(paths, 50257)


def test_more_shards_than_a_process_may_open_files(tmp_path: Path) -> None:
    paths = sorted(write_shards(tmp_path, sizes=(40,) * 300).glob("*_train_*.bin"))
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (290 + len(list(Path("/proc/self/fd").iterdir())), hard))
    try:
        windows = Windows(paths, T, VOCAB)
        assert windows.read([(shard, 0) for shard in range(300)])[0].shape == (300, T)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
