"""Attention's weights against the model's own output and an independent computation in float64."""

import math

import numpy as np
import pytest
import torch

from eval.views.attention import attention_weights
from eval.views.recording import record
from tests.helpers.tiny import VOCAB, random_model


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_weights_of_the_values_give_the_models_own_attention(architecture):
    model = random_model(architecture=architecture)
    idx = torch.randint(VOCAB, (17,))
    recording = record(model, idx)
    _, weights = attention_weights(recording.q, recording.k)
    torch.testing.assert_close(weights @ recording.v, recording.heads, rtol=0, atol=1e-5)
    assert weights.std() > 0.1  # not all alike


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_scores_and_weights_equal_those_computed_by_hand_from_the_layers_input(architecture):
    """In float64, pair by pair, from the weights of the model: with rotary positions and QK norm in modern."""
    model = random_model(architecture=architecture)
    idx = torch.randint(VOCAB, (9,))
    recording = record(model, idx)
    scores, weights = attention_weights(recording.q, recording.k)
    for layer, block in enumerate(model.h):
        x = recording.stream[layer].double().numpy()
        if architecture == "gpt2":
            x = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
        else:
            x = x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6)
        x = x * block.ln_1.weight.detach().double().numpy()
        if architecture == "gpt2":
            x = x + block.ln_1.bias.detach().double().numpy()
        qkv = x @ block.attn.c_attn.weight.detach().double().numpy().T
        if architecture == "gpt2":
            qkv += block.attn.c_attn.bias.detach().double().numpy()
        for head in range(2):
            q, k = (qkv[:, 32 * part + 16 * head : 32 * part + 16 * head + 16] for part in (0, 1))
            if architecture == "modern":
                q, k = _rotated_and_normalized(q), _rotated_and_normalized(k)
            for i in range(9):
                expected = [sum(q[i] * k[j]) / 4 for j in range(9)]
                assert scores[layer, head, i].tolist() == pytest.approx(expected, abs=1e-4)
                exponentials = [math.exp(score) if j <= i else 0 for j, score in enumerate(expected)]
                expected = [e / sum(exponentials) for e in exponentials]
                assert weights[layer, head, i].tolist() == pytest.approx(expected, abs=1e-5)


def _rotated_and_normalized(x: np.ndarray) -> np.ndarray:
    """(T, 16): the pairs (d, d + 8) as complex numbers, turned clockwise by t / 10000^(2 d / 16), then RMS norm."""
    turned = (x[:, :8] + 1j * x[:, 8:]) * np.exp(-1j * np.outer(np.arange(len(x)), 10000.0 ** (-np.arange(8) / 8)))
    x = np.concatenate([turned.real, turned.imag], 1)
    return x / np.sqrt((x**2).mean(1, keepdims=True) + 1e-6)
