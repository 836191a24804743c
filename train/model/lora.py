"""Low-rank updates: W + B A learns in place of W, with B (outputs, r) and A (r, inputs).

A checkpoint holds W, B and A, so that a run goes on exactly; whoever opens it (load_model) gets the sum, a plain GPT.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Its factor alpha / r, which does what the
learning rate does (section 4.1), is left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model.gpt import Linear


class LowRankLinear(Linear):
    """A linear map and its update. B begins at 0: nothing changes before the first step."""

    def __init__(self, plain: Linear, rank: int) -> None:
        """Takes over the plain map's parameters, under their names."""
        nn.Module.__init__(self)
        self.weight, self.bias = plain.weight, plain.bias
        outputs, inputs = plain.weight.shape
        self.lora_a = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        y = super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.gelu(y, approximate="tanh") if gelu else y


def add_updates(block: nn.Module, rank: int) -> None:
    """Give each linear map of a transformer layer an update of this rank, in place."""
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, LowRankLinear(child, rank))


def merged(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint's tensors as those of a plain model: each update is added to its matrix."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            stem = name.removesuffix("lora_a")
            plain[f"{stem}weight"] = plain[f"{stem}weight"] + tensors[f"{stem}lora_b"] @ a
    return plain
