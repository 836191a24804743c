"""Linear cross-entropy: the output head and its loss, in chunks, so that the full logits never exist at once.

The gradients are computed in the forward pass, chunk by chunk, so that no logits are stored or computed twice.
With e = exp(logits - max(logits)) and s = sum(e), the gradient of the logits is e / s - one_hot(target): e enters
the matrix products as it is, and 1 / s and the one-hot are applied to their smaller operands.

Sources: Hsu et al. 2024, "Liger Kernel" (gradients in the forward pass); torch.nn.functional.linear_cross_entropy does
the same from torch 2.13 on, but torch.compile cannot see into it.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

IGNORE_INDEX = -1  # a target that is left out of the loss
CHUNK_BYTES = 2**30  # of logits at a time; each chunk reads and writes the weight's float32 gradient once more
ALIGNMENT = 64  # the vocabulary is padded to a multiple of this, for fast matrix products


def softcap_logits(logits: Tensor, softcap: float) -> Tensor:
    """Cap logits smoothly at plus and minus `softcap`."""
    return softcap * torch.tanh(logits / softcap)


def linear_cross_entropy(hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None = None) -> Tensor:
    """F.cross_entropy(F.linear(hidden, weight).float(), targets, ignore_index=IGNORE_INDEX), in less memory.

    Args:
        hidden: (N, C) states.
        weight: (V, C) embeddings of the tokens.
        targets: (N,) int64 token ids, or IGNORE_INDEX, which is left out.
        softcap: cap the logits smoothly at plus and minus this, see `softcap_logits`.

    Returns:
        the mean over the other targets, in nats: a float32 scalar (float64 for float64 inputs).
    """
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        if torch.is_grad_enabled() and hidden.requires_grad:
            return _LinearCrossEntropy.apply(hidden, weight, targets, softcap, dtype)
        return _chunked(hidden, weight, targets, softcap, dtype, gradients=False)[0]


class _LinearCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, dtype: torch.dtype
    ) -> Tensor:
        loss, d_hidden, d_weight = _chunked(hidden, weight, targets, softcap, dtype, gradients=True)
        ctx.save_for_backward(d_hidden, d_weight)
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, d_loss: Tensor) -> tuple[Tensor | None, ...]:
        d_hidden, d_weight = ctx.saved_tensors
        return d_hidden * d_loss, d_weight * d_loss, None, None, None


def _chunked(
    hidden: Tensor, weight: Tensor, targets: Tensor, softcap: float | None, dtype: torch.dtype, gradients: bool
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """The loss and, with `gradients`, its gradients with respect to hidden (N, C) and weight (V, C)."""
    vocab_size, exact = weight.size(0), torch.promote_types(dtype, torch.float32)
    padded = -(-vocab_size // ALIGNMENT) * ALIGNMENT
    table = F.pad(weight.to(dtype), (0, 0, 0, padded - vocab_size))  # (P, C), P = padded
    counts = targets != IGNORE_INDEX
    share = counts.to(exact) / counts.sum()  # (N,): the weight of each row in the mean
    targets = targets.where(counts, 0)
    loss = torch.zeros((), dtype=exact, device=hidden.device)
    d_hidden, d_weight = [], torch.zeros_like(weight, dtype=exact) if gradients else None
    rows = max(1, CHUNK_BYTES // (padded * dtype.itemsize))
    for x, target, part in zip(*(tensor.split(rows) for tensor in (hidden, targets, share)), strict=True):
        x, target = x.to(dtype), target.unsqueeze(1)
        logits, slope = F.linear(x, table).to(exact), None  # (n, P)
        if softcap:  # by tanh(z) = 2 sigmoid(2 z) - 1, without the -1: it takes a sixth of tanh's time on a CPU
            sigmoid = logits.mul_(2 / softcap).sigmoid_()
            if gradients:  # of the capped logits, (n, P)
                slope = torch.addcmul(sigmoid, sigmoid, sigmoid, value=-1).mul_(4)
            logits = sigmoid.mul_(2 * softcap)
        logits[:, vocab_size:] = -torch.inf
        top, chosen = logits.amax(1, keepdim=True), logits.gather(1, target)  # (n, 1) each
        e = logits.sub_(top).exp_()
        s = e.sum(1, keepdim=True)  # (n, 1)
        loss = loss + (part * (s.log() + top - chosen).squeeze(1)).sum()
        if not gradients:
            continue
        part = part.unsqueeze(1)
        scale = part / s  # (n, 1)
        if slope is not None:
            e, part = e.mul_(slope), part * slope.gather(1, target)
        e = e.to(dtype)
        d_hidden.append((e @ table).to(exact) * scale - weight[target.squeeze(1)].to(exact) * part)  # (n, C)
        d_weight += (e.T @ (x.to(exact) * scale).to(dtype))[:vocab_size]  # (P, n) @ (n, C)
        d_weight.index_add_(0, target.squeeze(1), -part * x.to(exact))
    return loss, torch.cat(d_hidden).to(hidden.dtype) if gradients else None, d_weight
