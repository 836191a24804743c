"""Parts switched off by hooks, against copies of the model whose weights are zero there; the induction score."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from eval.views import switch_off
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.model.transformer import Transformer


def random_model(architecture: str) -> Transformer:
    torch.manual_seed(0)
    model = build_model(ModelConfig(2, 2, 16, block_size=12, vocab_size=40, architecture=architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases and modern's projections too, which begin at 0
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


@torch.no_grad()
def without(model: Transformer, layer: int, part: int) -> Transformer:
    """A copy in which the last projection of head 0 or 1, attention (2), MLP (3) or both (4) is zero."""
    model = copy.deepcopy(model)
    block = model.h[layer]
    off: list[nn.Module] = [[], [], [block.attn], [block.mlp], [block.attn, block.mlp]][part]
    for parameter in (parameter for module in off for parameter in module.c_proj.parameters()):
        parameter.zero_()
    if part < 2:
        block.attn.c_proj.weight[:, 8 * part : 8 * part + 8] = 0
    return model


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_each_part_is_switched_off_as_if_its_weights_were_zero(architecture: str) -> None:
    model, idx = random_model(architecture), torch.arange(3, 39, 4)
    before = copy.deepcopy(model.state_dict())
    result = switch_off.measure_without(model, idx, 40)
    assert result["without"]["loss"].shape == (2, 5, 8)
    cases = {(layer, part): without(model, layer, part) for layer in range(2) for part in range(5)}
    for place, changed in {None: model, **cases}.items():
        found = result["whole"] if place is None else {name: t[place] for name, t in result["without"].items()}
        with torch.no_grad():
            logits = changed(idx[None])[0]
        losses = F.cross_entropy(logits[:-1], idx[1:], reduction="none")
        torch.testing.assert_close(found["loss"], losses, atol=1e-5, rtol=0)
        probabilities = logits.softmax(-1)
        torch.testing.assert_close(found["probabilities"], probabilities.gather(1, found["ids"]), atol=1e-5, rtol=0)
        torch.testing.assert_close(found["probabilities"], probabilities.sort(descending=True)[0][:, :10])
    assert (result["without"]["loss"].mean(-1) - result["whole"]["loss"].mean()).abs().min() > 1e-3
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(model(idx[None]), random_model(architecture)(idx[None]))  # no hook is left


def test_a_head_that_looks_at_the_token_after_the_earlier_occurrence_has_induction_score_1() -> None:
    n, weights = 4, torch.zeros(3, 8, 8)
    weights[0, range(n, 2 * n), range(1, n + 1)] = 1  # induction
    weights[1, range(n, 2 * n), range(n)] = 1  # looks at the earlier occurrence itself
    weights[2] = torch.ones(8, 8).tril() / torch.arange(1, 9)[:, None]  # looks everywhere
    expected = [1, 0, sum(1 / i for i in (5, 6, 7, 8)) / 4]
    torch.testing.assert_close(switch_off.induction_score(weights), torch.tensor(expected))


def test_induction_scores_are_of_a_random_sequence_and_its_repetition(monkeypatch: pytest.MonkeyPatch) -> None:
    record, recorded = switch_off.record, []
    monkeypatch.setattr(switch_off, "record", lambda *args: recorded.append(record(*args)) or recorded[-1])
    scores = switch_off.induction_scores(random_model("gpt2"))
    assert all(torch.equal(each.idx[:6], each.idx[6:]) and len(each.idx) == 12 for each in recorded)  # half a block
    assert len({tuple(each.idx.tolist()) for each in recorded}) == 4
    assert ((scores > 0) & (scores < 1)).all()
