"""AdamW or Muon over named groups of parameters, and the learning rate as a pure function of the step."""

import math
from typing import Any

import torch
from torch import nn

from train.config.pretrain import OptimConfig
from train.trainer.muon import Muon


def learning_rate(step: int, optim: OptimConfig, max_steps: int) -> float:
    """The learning rate of the next update, after `step` finished ones.

    Warmup is linear, (step + 1) / warmup_steps of max_lr; then cosine or linear decay, so that the last update, at
    step max_steps - 1, is made with min_lr; or constant at max_lr. wsd (warmup, stable, decay: Hu et al. 2024, MiniCPM;
    Hagele et al. 2024) is constant, then linear decay in the last `cooldown` of the steps. A run shorter than its
    warmup only warms up.
    """
    if step < optim.warmup_steps:
        return optim.max_lr * (step + 1) / optim.warmup_steps
    first = optim.warmup_steps  # step of the decay
    if optim.schedule == "wsd":
        first = max(first, max_steps - round(optim.cooldown * max_steps))
    if optim.schedule == "constant" or step < first:
        return optim.max_lr
    done = min(1.0, (step + 1 - first) / max(1, max_steps - first))
    share = 0.5 * (1 + math.cos(math.pi * done)) if optim.schedule == "cosine" else 1 - done
    return optim.min_lr + share * (optim.max_lr - optim.min_lr)


def parameter_groups(model: nn.Module, optim: OptimConfig) -> list[dict[str, Any]]:
    """The trainable parameters in groups, for AdamW or Muon; a checkpoint's state counts them in this order.

    A group has a `name`: embeddings, hidden (the matrices of the layers; under Muon c_attn's, which stack queries, keys
    and values, are `qkv`), head (other matrices outside the layers), or vectors (biases and norms, without weight
    decay). Its learning rate is `lr_scale` times that of the step.
    """
    muon = optim.optimizer == "muon"
    embeddings = {module.weight for module in model.modules() if isinstance(module, nn.Embedding)}
    members: dict[str, list[nn.Parameter]] = {name: [] for name in ("embeddings", "qkv", "hidden", "head", "vectors")}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if parameter.dim() < 2:
            members["vectors"].append(parameter)
        elif name.startswith("h."):
            members["qkv" if muon and name.endswith("c_attn.weight") else "hidden"].append(parameter)
        else:
            members["embeddings" if parameter in embeddings else "head"].append(parameter)
    own = {"embeddings": optim.embedding_lr, "head": optim.head_lr, "vectors": optim.vector_lr}
    groups: list[dict[str, Any]] = []
    for name, parameters in members.items():
        lr, decay = own.get(name) or optim.max_lr, 0.0 if name == "vectors" else optim.weight_decay
        group = {"params": parameters, "name": name, "lr": lr, "lr_scale": lr / optim.max_lr, "weight_decay": decay}
        if muon and name in ("qkv", "hidden"):
            group["matrices"] = 3 if name == "qkv" else 1
        if parameters:
            groups.append(group)
    return groups


def build_optimizer(
    model: nn.Module,
    optim: OptimConfig,
    bf16: bool = False,
    rank: int = 0,
    world_size: int = 1,
    sharded: bool = False,
) -> torch.optim.Optimizer:
    """AdamW (fused), or Muon for the matrices of the layers and AdamW for the rest. Every rank must build it.

    Args:
        bf16: the precision of Muon's matrix products; else float32.
        sharded: each rank keeps the state of its part of the parameters, updates that part, and broadcasts it (ZeRO
            stage 1, Rajbhandari et al. 2020).
    """
    algorithm = Muon if optim.optimizer == "muon" else torch.optim.AdamW
    groups = parameter_groups(model, optim)
    settings: dict[str, Any] = {"lr": optim.max_lr, "betas": optim.betas, "eps": optim.eps, "fused": True}
    if algorithm is Muon:
        settings["dtype"] = torch.bfloat16 if bf16 else torch.float32
        settings |= {} if sharded else {"rank": rank, "world_size": world_size}
    if not sharded or world_size == 1:
        return algorithm(groups, **settings)
    from torch.distributed.optim import ZeroRedundancyOptimizer  # takes a second to import

    # as views of one buffer a rank, so that an update takes one broadcast a rank
    return ZeroRedundancyOptimizer(groups, algorithm, parameters_as_bucket_view=True, **settings)
