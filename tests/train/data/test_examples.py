"""Examples: saved, split and loaded; the batch of a step is the same for every world size."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from tests.helpers.finetuning import random_examples
from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.data.examples import (
    SPLITS,
    ExampleLoader,
    Examples,
    fingerprint,
    length_buckets,
    prepare_once,
    split_examples,
)
from train.model.gpt import GPT
from train.parallel.device import autocast
from train.parallel.world import World
from train.trainer.step import train_step

CPU = torch.device("cpu")
MAIN = World(0, 1, CPU)


def loader(examples: Examples, micro: int = 2, rank: int = 0, size: int = 1) -> ExampleLoader:
    return ExampleLoader(examples, examples.num_targets.astype(float), 8, micro, rank, size, seed=5)


def test_an_epoch_reads_each_example_once_and_micro_batches_hold_like_lengths() -> None:
    examples = random_examples(24)
    steps = [loader(examples).numbers(step) for step in range(6)]
    for epoch in (steps[:3], steps[3:]):
        assert sorted(np.concatenate([rows for step in epoch for rows in step])) == list(range(24))
    assert not np.array_equal(steps[0], steps[3])
    for step in steps:
        lengths = examples.lengths[np.concatenate(step)]
        assert np.array_equal(lengths, np.sort(lengths))


def test_tokens_and_epochs_are_counted() -> None:
    examples = random_examples(23)
    one = loader(examples)
    read = [number for step in range(7) for rows in one.numbers(step) for number in rows]
    assert one.tokens_read(7) == sum(int(examples.lengths[number]) for number in read)
    assert max(Counter(read).values()) - min(Counter(read).values()) <= 1
    assert one.epoch_of(7) == 56 / 23
    assert loader(examples, rank=1, size=2).tokens_read(7) == one.tokens_read(7)


@pytest.mark.parametrize(("micro", "size"), [(8, 1), (2, 1), (2, 2), (1, 4)])
def test_loss_and_gradient_are_those_of_a_loop_over_single_examples(micro: int, size: int) -> None:
    """The mean over all targets of the batch, however it is padded, cut and shared out."""
    examples = random_examples()
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=16, block_size=16, vocab_size=VOCAB))
    rows = np.concatenate(loader(examples).numbers(2))
    sums = [model(*examples.batch([row])) * int(examples.num_targets[row]) for row in rows]
    expected = sum(sums) / examples.num_targets[rows].sum()
    expected.backward()
    gradient = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    model.zero_grad()

    found, losses = torch.zeros_like(gradient), []
    for rank in range(size):  # what DDP averages

        class Keep(torch.optim.SGD):
            def step(self) -> None:
                found.add_(torch.cat([p.grad.flatten() for p in self.param_groups[0]["params"]]) / size)

        mine = loader(examples, micro, rank, size)
        optimizer = Keep([{"params": model.parameters(), "lr_scale": 1.0}], lr=0.0)
        loss, _ = train_step(model, optimizer, mine.micro_batches(2), autocast(CPU, "fp32"), 0.0, 0.0)
        losses.append(loss.item() / size)
    assert sum(losses) == pytest.approx(expected.item(), abs=1e-6)
    torch.testing.assert_close(found, gradient, atol=1e-6, rtol=1e-5)


def test_dropout_is_seeded_by_the_examples_not_by_the_rank() -> None:
    def by_seed(*loaders: ExampleLoader) -> dict:
        return {batch.seed: batch.inputs.tolist() for one in loaders for batch in one.micro_batches(3)}

    examples = random_examples()
    assert by_seed(loader(examples)) == by_seed(*(loader(examples, rank=rank, size=2) for rank in range(2)))


def test_evaluation_reads_every_example_once() -> None:
    batches = length_buckets(random_examples(23), 4)
    assert sorted(np.concatenate(batches)) == list(range(23))
    assert [len(batch) for batch in batches] == [4, 4, 4, 4, 4, 3]


def test_splits_keep_the_shares_of_each_label_and_copies_together() -> None:
    rng = np.random.default_rng(3)
    texts = [f"text {rng.integers(300)}" for _ in range(500)]
    label_of = {text: "rare" if hash_of(text) else "common" for text in texts}
    labels = [label_of[text] for text in texts]
    splits = split_examples(texts, labels, [0.1, 0.2], seed=7)
    assert sorted(number for split in splits.values() for number in split) == list(range(500))
    assert splits == split_examples(texts, labels, [0.1, 0.2], seed=7) != split_examples(texts, labels, [0.1, 0.2], 8)
    sets = [{texts[number] for number in splits[name]} for name in ("val", "test", "train")]
    assert sum(map(len, sets)) == len(set(texts))
    for label in ("rare", "common"):
        distinct = len({text for text in texts if label_of[text] == label})
        found = [len({text for text in part if label_of[text] == label}) for part in sets]
        assert found[:2] == [pytest.approx(share * distinct, abs=1) for share in (0.1, 0.2)]


def hash_of(text: str) -> bool:
    return int(text.split()[1]) % 6 == 0


def test_copies_with_different_labels_stay_together() -> None:
    texts, labels = [f"text {number // 2}" for number in range(200)], ["one", "other"] * 100
    splits = split_examples(texts, labels, [0.3, 0.3], seed=1).values()
    assert sum(len({texts[number] for number in split}) for split in splits) == len(set(texts))


def test_data_is_prepared_once_for_each_identity(tmp_path: Path) -> None:
    made = []

    def make() -> tuple[dict, dict]:
        made.append(1)
        return {
            name: random_examples(5 + len(made), seed=seed) for seed, name in enumerate(("train", "val", "test"))
        }, {"labels": [1]}

    parts, facts = prepare_once(tmp_path / "data", {"file": "a"}, make, MAIN)
    again, _ = prepare_once(tmp_path / "data", {"file": "a"}, make, MAIN)
    assert len(made) == 1
    assert facts["labels"] == [1]
    assert fingerprint(again) == fingerprint(parts)
    other, _ = prepare_once(tmp_path / "data", {"file": "b"}, make, MAIN)
    assert len(made) == 2
    assert fingerprint(other)["sha256"] != fingerprint(parts)["sha256"]
    content = (tmp_path / "data" / "data.json").read_text()
    for number, corrupt in enumerate(("", content[: len(content) // 2], "{}", "[1]", "\ufffd"), 3):
        (tmp_path / "data" / "data.json").write_text(corrupt)
        prepare_once(tmp_path / "data", {"file": "b"}, make, MAIN)
        assert len(made) == number


def test_data_that_was_half_replaced_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prepare(name: str, seed: int) -> str:
        parts = {part: random_examples(seed=seed) for part in SPLITS}
        found, _ = prepare_once(tmp_path, {"file": name}, lambda: (parts, {}), MAIN)
        return fingerprint(found)["sha256"]

    def full(part: Examples, path: Path) -> None:
        if path.stem == "val":
            raise OSError("no space left")
        save(part, path)

    before, save = prepare("a", seed=1), Examples.save
    with monkeypatch.context() as patch:
        patch.setattr(Examples, "save", full)
        with pytest.raises(OSError, match="no space"):
            prepare("b", seed=2)
    assert prepare("a", seed=1) == before


def test_the_fingerprint_changes_with_every_part() -> None:
    parts = dict.fromkeys(SPLITS, random_examples(seed=1))
    changed = [parts | {name: random_examples(seed=2)} for name in SPLITS]
    assert len({fingerprint(each)["sha256"] for each in (parts, *changed)}) == 4
