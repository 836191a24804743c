"""The modern architecture: each part can be left out, and nothing else changes with it. Against NanoChat: see
tests/train/weights/test_nanochat.py."""

import math
import re
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn

from train.config.pretrain import Component, ModelConfig
from train.model.kv_cache import KVCache
from train.model.modern import SOFTCAP, Modern, norm, rotary_tables, rotate

SHAPE = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=90, architecture="modern")


def random_model(config: ModelConfig = SHAPE) -> Modern:
    """A model with weights away from their initial zeros."""
    torch.manual_seed(0)
    model = Modern(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def test_the_layers_of_a_new_model_pass_their_input_on() -> None:
    """Residual projections are 0, so only they and what is outside the layers have a gradient."""
    torch.manual_seed(0)
    model, idx = Modern(SHAPE), torch.randint(90, (3, 24))
    loss = model(idx, idx)
    assert loss.item() == pytest.approx(math.log(90), abs=0.05)
    expected = nn.functional.normalize(model.wte(idx), dim=-1) * 32**0.5
    torch.testing.assert_close(model.hidden(idx), expected, atol=1e-3, rtol=1e-4)
    loss.backward()
    moved = {name for name, parameter in model.named_parameters() if parameter.grad.any()}
    assert moved == {name for name in model.state_dict() if re.search("c_proj|ln_f|lm_head|wte", name)}


@pytest.mark.parametrize("part", get_args(Component))
def test_each_part_can_be_left_out_alone(part: str) -> None:
    whole, model = Modern(SHAPE), Modern(replace(SHAPE, without=[part]))
    added = model.state_dict().keys() - whole.state_dict().keys()
    assert added == ({"wpe.weight"} if part == "rotary" else set())
    removed = whole.state_dict().keys() - model.state_dict().keys()
    norms = {"h.0.ln_1.weight", "h.0.ln_2.weight", "h.1.ln_1.weight", "h.1.ln_2.weight", "ln_f.weight"}
    assert removed == {"untied_head": {"lm_head.weight"}, "norm_weights": norms}.get(part, set())
    assert bool(model.h[1].mlp.c_proj.weight.any()) == (part == "zero_init")
    # with the same weights the logits differ
    tensors = random_model().state_dict()
    for each in (whole, model):
        with torch.no_grad():
            for name, parameter in each.named_parameters():
                scale = 10 if parameter.dim() == 2 else 1
                parameter.copy_(scale * tensors[name] if name in tensors else torch.randn_like(parameter))
    idx = torch.randint(90, (1, 24))
    found, expected = model(idx), whole(idx)
    assert found.isfinite().all()
    assert (part == "zero_init") == torch.equal(found, expected)
    cache, cut = KVCache(SHAPE, 1, 24), 7
    parts = [model.logits(model.hidden(each, cache)) for each in (idx[:, :cut], idx[:, cut : cut + 1], idx[:, 8:])]
    torch.testing.assert_close(torch.cat(parts, 1), found, atol=2e-5, rtol=1e-5)


def test_a_rotation_depends_on_the_distance_alone() -> None:
    q, k = torch.randn(2, 1, 1, 2, 1, 8, dtype=torch.float64)
    scores = []
    for start in (0, 5, 900):
        tables = rotary_tables(torch.tensor([start, start + 3]), 8).double()  # (2, 2, 1, 1, 4)
        scores.append((rotate(q, tables[:, :1]) * rotate(k, tables[:, 1:])).sum().item())
    assert scores[1:] == pytest.approx(scores[:1] * 2, abs=1e-4)  # angles are float32
    assert scores[0] != pytest.approx((q * k).sum().item(), abs=1e-3)


def test_logits_are_capped() -> None:
    model = random_model()
    with torch.no_grad():
        model.lm_head.weight.mul_(1e3)
    logits = model(torch.randint(90, (2, 24)))
    assert 0.99 * SOFTCAP < logits.abs().max() <= SOFTCAP


def test_flops_count_the_head_but_not_the_embedding() -> None:
    layers, head, attention = 2 * (12 * 32**2 + 2 * 32) + 32, 90 * 32, 12 * 2 * 32 * 24  # with the norms' weights
    assert Modern(SHAPE).flops_per_token() == 6 * (layers + head) + attention
    tied = replace(SHAPE, without=["untied_head", "rotary"])
    assert Modern(tied).flops_per_token() == 6 * (layers + head) + attention


def test_norms_are_computed_in_float32() -> None:
    x = torch.randn(5, 32) * 100
    low = norm(SHAPE).bfloat16()(x.bfloat16())
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low, norm(SHAPE)(x.bfloat16().float()).bfloat16(), atol=0, rtol=0)
