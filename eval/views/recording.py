"""Run a model once and record what happens inside it, by hooks: the modules of train/model stay as they are.

Shapes: T positions, L layers, C = n_embd, H = n_head, D = C / H, V = vocab_size.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from eval.common.open_model import evaluating
from train.model.transformer import Transformer


@dataclass(frozen=True)
class Recording:
    """One forward pass over T tokens; tensors have the model's dtype and device.

    The residual stream enters layer i as `stream[i]`, and leaves it as
    `stream[i + 1] = stream[i] + attention[i] + mlp[i]`.
    """

    idx: Tensor  # (T,) int64 token ids
    embeddings: dict[str, Tensor]  # what adds up to stream[0], (T, C) each
    stream: Tensor  # (L + 1, T, C): each layer's input, then the final norm's
    q: Tensor  # (L, H, T, D) each, as they enter the scores: after rotary positions and QK norm
    k: Tensor
    v: Tensor
    heads: Tensor  # (L, H, T, D): each head's weighted sum of v, before c_proj
    attention: Tensor  # (L, T, C): attention's output, after c_proj
    mlp: Tensor  # (L, T, C): the MLP's output
    hidden: Tensor  # (T, C): the final norm's output
    logits: Tensor  # (T, V), soft-capped if the model does that


class _RecordAttention(TorchFunctionMode):
    """Append the (q, k, v) of every call of F.scaled_dot_product_attention to `calls`, (H, T, D) each."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[list[Tensor]] = []

    def __torch_function__(self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        if func is F.scaled_dot_product_attention:
            self.calls.append([tensor[0] for tensor in args[:3]])
        return func(*args, **(kwargs or {}))


@contextmanager
def _record_modules(model: Transformer) -> Iterator[dict[Any, tuple[Tensor, Tensor]]]:
    """Record every module's first input and its output while the block runs."""
    seen: dict[Any, tuple[Tensor, Tensor]] = {}

    def hook(module: nn.Module, args: tuple, output: Tensor) -> None:
        seen[module] = (args[0], output)

    with ExitStack() as handles:
        for module in model.modules():
            handles.enter_context(module.register_forward_hook(hook))
        yield seen


@torch.no_grad()
def record(model: Transformer, idx: Tensor) -> Recording:
    """Run the model over idx, (T,) int64 token ids on its device, and record everything that the views show."""
    with evaluating(model), _record_modules(model) as seen, _RecordAttention() as attention:
        logits = model(idx[None])[0]
    embeddings = {"token embedding": seen[model.h[0]][0]}  # modern normalizes it
    if model.config.architecture == "gpt2":
        embeddings = {"token embedding": seen[model.wte][1], "position embedding": seen[model.wpe][1][None]}
    q, k, v = (torch.stack(tensors) for tensors in zip(*attention.calls, strict=True))
    before_projection = torch.cat([seen[block.attn.c_proj][0] for block in model.h])  # (L, T, C)
    return Recording(
        idx=idx,
        embeddings={name: tensor[0] for name, tensor in embeddings.items()},
        stream=torch.cat([*(seen[block][0] for block in model.h), seen[model.ln_f][0]]),
        q=q,
        k=k,
        v=v,
        heads=before_projection.unflatten(-1, (model.config.n_head, -1)).transpose(1, 2),
        attention=torch.cat([seen[block.attn][1] for block in model.h]),
        mlp=torch.cat([seen[block.mlp][1] for block in model.h]),
        hidden=seen[model.ln_f][1][0],
        logits=logits,
    )
