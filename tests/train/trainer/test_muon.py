"""Muon is torch's on each matrix, and queries, keys and values are matrices of their own."""

import pytest
import torch
from torch import nn

from train.config.pretrain import OptimConfig
from train.trainer import muon
from train.trainer.optim import build_optimizer

OPTIM = OptimConfig(optimizer="muon", max_lr=0.02, weight_decay=0.5)


def layers(**weights: torch.Tensor) -> nn.Module:
    """A model with these matrices in its layers, such as h.c_fc.weight."""
    model = nn.Module()
    model.h = nn.ModuleDict({name: nn.Linear(1, 1, bias=False) for name in weights})
    for name, weight in weights.items():
        model.h[name].weight = nn.Parameter(weight.clone())
    return model


def train(optimizer: torch.optim.Optimizer, weights: list[torch.Tensor], steps: int = 4) -> None:
    """Take steps with gradients that depend on the weights and the step alone."""
    for number in range(steps):
        for weight in weights:
            weight.grad = torch.sin(weight.detach() * 50 + number)
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_it_is_torchs_on_tall_wide_and_square_matrices(dtype: torch.dtype) -> None:
    """Bit for bit in bfloat16; in float32 as closely as bfloat16 is exact."""
    torch.manual_seed(0)
    matrices = {"tall": torch.randn(48, 16), "wide": torch.randn(16, 48), "square": torch.randn(32, 32)}
    model, theirs = layers(**matrices), [nn.Parameter(matrix.clone()) for matrix in matrices.values()]
    train(build_optimizer(model, OPTIM, bf16=dtype == torch.bfloat16), list(model.parameters()))
    train(torch.optim.Muon(theirs, lr=0.02, weight_decay=0.5, adjust_lr_fn="match_rms_adamw"), theirs)
    for weight, expected, start in zip(model.parameters(), theirs, matrices.values(), strict=True):
        tolerance = 0.0 if dtype == torch.bfloat16 else 0.02 * (expected - start).abs().max().item()
        torch.testing.assert_close(weight, expected, atol=tolerance, rtol=0)


def test_queries_keys_and_values_are_orthogonalized_each_by_itself() -> None:
    torch.manual_seed(0)
    stacked = torch.randn(3 * 16, 16)
    one, three = layers(c_attn=stacked), layers(**dict(zip("qkv", stacked.chunk(3), strict=True)))
    train(build_optimizer(one, OPTIM), list(one.parameters()))
    train(build_optimizer(three, OPTIM), list(three.parameters()))
    assert torch.equal(one.h.c_attn.weight, torch.cat(list(three.parameters())))


def test_an_orthogonalized_matrix_has_singular_values_near_1() -> None:
    torch.manual_seed(0)
    values = torch.linalg.svdvals(muon.orthogonalize(torch.randn(40, 24)))
    assert 0.6 < values.min() < values.max() < 1.25
