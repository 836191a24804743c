"""What is recorded of a forward pass recomputes the model's own output, part by part."""

import pytest
import torch

from eval.views.recording import record
from tests.helpers.tiny import VOCAB, random_model
from train.model.transformer import attention


def _close(a: torch.Tensor, b: torch.Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {},
        {"bias": False},
        {"architecture": "modern"},
        {"architecture": "modern", "without": ["rotary", "rms_norm", "untied_head"]},
    ],
)
def test_recorded_parts_recompute_the_models_logits(shape):
    model = random_model(**shape, dropout=0.5).train()  # recorded without dropout, and left in its mode
    idx = torch.randint(VOCAB, (13,))
    r = record(model, idx)
    assert model.training
    model.eval()
    with torch.no_grad():
        torch.testing.assert_close(r.logits, model(idx[None])[0], rtol=0, atol=0)
        _close(sum(r.embeddings.values()), r.stream[0])
        _close(r.stream[1:], r.stream[:-1] + r.attention + r.mlp)
        _close(model.ln_f(r.stream[-1]), r.hidden)
        _close(model.logits(r.hidden), r.logits)
        for layer, block in enumerate(model.h):
            after_attention = r.stream[layer] + r.attention[layer]
            _close(block.mlp(block.ln_2(after_attention)), r.mlp[layer])
            concatenated = r.heads[layer].transpose(0, 1).flatten(1)
            _close(block.attn.c_proj(concatenated), r.attention[layer])
            q, k, v = (tensor[layer][None] for tensor in (r.q, r.k, r.v))
            _close(attention(q, k, v, 0.0, layer, None, None)[0], concatenated)
