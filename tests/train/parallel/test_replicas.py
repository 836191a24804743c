"""Parameters that have drifted apart are found, and their rank is named."""

import copy
from collections.abc import Sequence

import pytest
import torch

from prepare.common.cli import UserError
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.parallel.replicas import check_replicas, parameter_hash
from train.parallel.world import World

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=27)


class Hashes(World):
    """A world whose ranks have these hashes."""

    def gather(self, value: int) -> list[int]:
        return [value if other is None else other for other in self.others]


def world(others: Sequence[int | None]) -> World:
    made = Hashes(0, len(others), torch.device("cpu"))
    object.__setattr__(made, "others", others)
    return made


def test_one_bit_or_two_parameters_exchanged_change_the_hash() -> None:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    before = parameter_hash(model)
    assert 0 <= before < 2**52
    assert parameter_hash(copy.deepcopy(model)) == before
    for parameter in model.parameters():
        with torch.no_grad():
            flat = parameter.view(-1)
            was = flat[-1].clone()
            flat[-1] = torch.nextafter(was, torch.tensor(9.0))
            assert parameter_hash(model) != before
            flat[-1] = was
    assert parameter_hash(model) == before
    first, second = model.h[0].mlp, model.h[1].mlp
    model.h[0].mlp, model.h[1].mlp = second, first
    assert parameter_hash(model) != before


def test_the_ranks_that_stray_are_named() -> None:
    model = GPT(CONFIG)
    check_replicas(model, 5, world([None] * 4))
    with pytest.raises(UserError, match=r"after step 5 the parameters of rank 2 have drifted from the others'"):
        check_replicas(model, 5, world([None, None, 7, None]))
    with pytest.raises(UserError, match=r"of ranks 0, 3 have drifted"):
        check_replicas(model, 5, world([8, None, None, 7, None]))
    with pytest.raises(UserError, match=r"the parameters differ: rank 1 against the others"):
        check_replicas(model, 5, world([None, 7]))
