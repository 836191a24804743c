"""What training scripts do before and behind the loop: failures in one line, and what a run may go on with changed."""

from dataclasses import replace

import pytest
import torch

from prepare.cli import UserError
from train.config import Config, OptimConfig, TrainConfig
from train.job import changeable, explained


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate\n2 GiB"), "out of memory with data.micro_batch"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried"), "micro_batch_size 24: "),
        (MemoryError(), "out of memory with data.micro_batch_size 24: lower it"),
        (RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer"), "another process of this run is gone"),
    ],
)
def test_a_failure_of_the_machine_is_one_line(failure: Exception, words: str) -> None:
    with pytest.raises(UserError) as said, explained(24):
        raise failure
    assert words in str(said.value)
    assert "\n" not in str(said.value)


@pytest.mark.parametrize("failure", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), KeyError("Timed out")])
def test_other_failures_stay_what_they_are(failure: Exception) -> None:
    with pytest.raises(type(failure)) as said, explained(24):
        raise failure
    assert said.value is failure


def test_the_values_that_may_change_are_named_by_their_keys() -> None:
    config = Config(optim=OptimConfig(max_lr=0.5), train=TrainConfig(max_steps=7))
    found = changeable(config, tune__dropout=0.25)
    assert (found["optim.max_lr"], found["train.max_steps"], found["tune.dropout"]) == (0.5, 7, 0.25)
    assert found["optim.betas"] == list(config.optim.betas)  # as JSON gives them back
    assert found.keys() == changeable(Config(), tune__dropout=0).keys()
    assert found == changeable(replace(config, train=replace(config.train, seed=99)), tune__dropout=0.25)
