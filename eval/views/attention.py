"""View 3, attention: how much each position takes from each earlier one, in every head, and why.

Shapes: T positions, L layers, H heads, D = C / H.
"""

import math
from typing import Any

import torch
from torch import Tensor

from eval.views.subject import Subject, pack


def attention(subject: Subject) -> dict[str, Any]:
    """Every head's q, k and v (L, H, T, D), scores and weights (L, H, T, T) over the prompt.

    The scores are not masked yet: the page shows the mask and the softmax as steps of its own.
    """
    recording = subject.recording
    scores, weights = attention_weights(recording.q, recording.k)
    return {
        **{name: pack(getattr(recording, name)) for name in ("q", "k", "v")},
        "scores": pack(scores, "float32"),
        "weights": pack(weights, "float32"),
    }


def attention_weights(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
    """Scores q.k / sqrt(D), not masked, and weights, their softmax over the positions up to each query's own.

    This is how F.scaled_dot_product_attention, which does not return them, weights the rows of v.

    Args:
        q, k: (..., T, D), as they enter the scores.

    Returns:
        Two tensors (..., T, T), [..., i, j] for the query at position i and the key at position j.
    """
    scores = q @ k.mT / math.sqrt(q.size(-1))
    later = torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).triu(1)
    return scores, scores.masked_fill(later, -math.inf).softmax(-1)
