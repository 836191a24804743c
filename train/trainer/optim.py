"""AdamW as GPT-2's successors use it, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from train.config.pretrain import OptimConfig


def learning_rate(step: int, optim: OptimConfig, max_steps: int) -> float:
    """The learning rate of the next update, after `step` finished ones.

    Warmup is linear, (step + 1) / warmup_steps of max_lr; then cosine or linear decay, so that the last update, at
    step max_steps - 1, is made with min_lr; or constant at max_lr. A run shorter than its warmup only warms up.
    """
    if step < optim.warmup_steps:
        return optim.max_lr * (step + 1) / optim.warmup_steps
    if optim.schedule == "constant":
        return optim.max_lr
    done = min(1.0, (step + 1 - optim.warmup_steps) / max(1, max_steps - optim.warmup_steps))
    share = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.min_lr + share * (optim.max_lr - optim.min_lr)


def build_optimizer(model: nn.Module, optim: OptimConfig, sharded: bool = False) -> torch.optim.Optimizer:
    """AdamW with weight decay on matrices and embeddings only (biases and LayerNorms are vectors), fused.

    Args:
        sharded: each rank keeps the moments of its part of the parameters, updates that part, and broadcasts it (ZeRO
            stage 1, Rajbhandari et al. 2020). Every rank must build it.
    """
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": optim.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    settings: dict[str, Any] = {"lr": optim.max_lr, "betas": optim.betas, "eps": optim.eps, "fused": True}
    if not sharded:
        return torch.optim.AdamW(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes a second to import

    return ZeroRedundancyOptimizer(groups, torch.optim.AdamW, **settings)
