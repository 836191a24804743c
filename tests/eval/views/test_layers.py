"""The contributions sum to the model's own logits, and the lens shows what a model with fewer layers says."""

import base64
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from eval.views.layers import Part, contributions, layers, logit_lens
from eval.views.recording import record
from eval.views.subject import Subject
from tests.helpers.random_gpt2 import save_random_gpt2
from tests.helpers.tiny import VOCAB, random_model
from train.model.loss import softcap_logits
from train.model.transformer import Transformer
from train.weights.huggingface import load_hf


def _check_sums(model: Transformer, vocab_size: int) -> list[Part]:
    recording = record(model, torch.randint(vocab_size, (13,)))
    tokens = torch.randint(vocab_size, (13, 40))
    parts, values = contributions(model, recording, tokens)
    assert values.shape == (len(parts), 13, 40)
    logits = values.sum(0)
    logits = softcap_logits(logits, model.softcap) if model.softcap else logits
    torch.testing.assert_close(logits, recording.logits.gather(1, tokens).double(), rtol=0, atol=1e-4)
    return parts


@pytest.mark.parametrize(
    ("shape", "n_parts"),
    [
        ({}, 2 + 2 * (2 + 1 + 1) + 1),
        ({"bias": False}, 2 + 2 * (2 + 1)),
        ({"architecture": "modern"}, 1 + 2 * (2 + 1)),
        ({"architecture": "modern", "without": ["norm_weights"]}, 1 + 2 * (2 + 1)),
        ({"architecture": "modern", "without": ["rotary", "rms_norm", "untied_head"]}, 1 + 2 * (2 + 1)),
    ],
)
def test_contributions_sum_to_the_models_logits(shape, n_parts):
    assert len(_check_sums(random_model(**shape), VOCAB)) == n_parts


def test_contributions_sum_to_the_logits_of_a_gpt2_of_twelve_layers(tmp_path: Path):
    save_random_gpt2(tmp_path, n_layer=12, vocab_size=500)
    parts = _check_sums(load_hf(tmp_path).eval(), 500)
    assert parts[:3] == [
        Part("embedding", "token embedding"),
        Part("embedding", "position embedding"),
        Part("head", "head 1", 0),
    ]
    assert parts[-2:] == [Part("mlp", "MLP", 11), Part("norm", "final norm's bias")]


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_a_heads_contribution_goes_through_the_projection_the_norm_and_the_head(architecture):
    """Each step by itself, in the order of the forward pass."""
    model = random_model(architecture=architecture)
    recording = record(model, torch.randint(VOCAB, (13,)))
    parts, values = contributions(model, recording, torch.arange(VOCAB).expand(13, VOCAB))
    with torch.no_grad():
        added = recording.heads[1, 0] @ model.h[1].attn.c_proj.weight[:, :16].T  # layer 2, head 1
        last = recording.stream[-1]
        if architecture == "gpt2":
            added = (added - added.mean(1, keepdim=True)) / (last.var(1, correction=0, keepdim=True) + 1e-5).sqrt()
        else:
            added = added / (last.square().mean(1, keepdim=True) + 1e-6).sqrt()
        expected = added * model.ln_f.weight @ model.head.T
    torch.testing.assert_close(values[parts.index(Part("head", "head 1", 1))].float(), expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_lens_is_what_a_model_with_fewer_layers_says(architecture):
    model = random_model(architecture=architecture)
    idx = torch.randint(VOCAB, (13,))
    tokens, probabilities, next_probabilities = logit_lens(model, record(model, idx).stream, idx, VOCAB)
    for depth in (2, 1, 0):
        model.h = model.h[:depth]
        with torch.no_grad():
            expected = model(idx[None])[0].softmax(-1)
        torch.testing.assert_close(probabilities[depth], expected.sort(descending=True).values[:, :5])
        torch.testing.assert_close(probabilities[depth], expected.gather(1, tokens[depth]))
        torch.testing.assert_close(next_probabilities[depth, :-1], expected[range(12), idx[1:]])


def test_chosen_tokens_are_the_likeliest_and_the_actual_next_one_without_padding():
    model = random_model()
    idx = torch.randint(60, (13,))
    data = layers(Subject(SimpleNamespace(model=model, tokenizer=SimpleNamespace(vocab_size=60)), idx))
    chosen = _unpack(data["tokens"])
    with torch.no_grad():
        logits = model(idx[None])[0, :, :60]
    for position, tokens in enumerate(chosen):
        assert len({*tokens}) == 13
        assert tokens[:12].tolist() == logits[position].topk(12).indices.tolist()
        assert position == 12 or idx[position + 1] in tokens
    assert _unpack(data["contributions"]).sum(0) == pytest.approx(
        logits.gather(1, torch.tensor(chosen)).numpy(), abs=1e-4
    )
    assert _unpack(data["probabilities"]) == pytest.approx(
        logits.softmax(-1).gather(1, torch.tensor(chosen)).numpy(), abs=1e-3
    )
    assert _unpack(data["lens"]["tokens"])[-1].tolist() == chosen[:, :5].tolist()


def _unpack(array: dict) -> np.ndarray:
    return np.frombuffer(base64.b64decode(array["data"]), array["dtype"]).reshape(array["shape"]).copy()
