"""LoRA: train a low-rank update W + B A in place of W, with B (outputs, rank) and A (rank, inputs).

A checkpoint holds W, B and A, so that a run resumes exactly; load_model merges them into a plain model.
Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models". Its factor alpha / r, which does what the
learning rate does (section 4.1), is left out.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.model.linear import Linear


class LoraLinear(Linear):
    """A linear layer with a low-rank update. B starts at 0, so that the model starts as it was."""

    def __init__(self, plain: Linear, rank: int) -> None:
        """Take over the plain layer's parameters, under the same names."""
        nn.Module.__init__(self)
        self.weight, self.bias = plain.weight, plain.bias
        outputs, inputs = plain.weight.shape
        self.lora_a = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.lora_b = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, x: Tensor, gelu: bool = False) -> Tensor:
        y = super().forward(x) + F.linear(F.linear(x, self.lora_a), self.lora_b)
        return F.gelu(y, approximate="tanh") if gelu else y


def add_lora(block: nn.Module, rank: int) -> None:
    """Replace each linear layer of a transformer block by a LoraLinear of this rank, in place."""
    for parent in list(block.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, Linear):
                setattr(parent, name, LoraLinear(child, rank))


def merge_lora(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Merge a checkpoint's low-rank updates into their matrices; return the tensors of a plain model."""
    plain = {name: tensor for name, tensor in tensors.items() if not name.endswith((".lora_a", ".lora_b"))}
    for name, a in tensors.items():
        if name.endswith(".lora_a"):
            stem = name.removesuffix("lora_a")
            plain[f"{stem}weight"] = plain[f"{stem}weight"] + tensors[f"{stem}lora_b"] @ a
    return plain
