"""Muon: momentum, orthogonalized by Newton-Schulz iterations, for the matrices of the hidden layers.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale of the update is that of Liu et al.
2025, "Muon is Scalable for LLM Training", so that learning rate and weight decay are those of AdamW. It is
torch.optim.Muon(adjust_lr_fn="match_rms_adamw"), except that it multiplies in float32 on a CPU without bfloat16
instructions, where torch's takes 2 to 14 times as long (docs/benchmarks.md).
"""

from typing import Any

import torch
from torch import Tensor

from train.parallel.device import cpu_has_bf16

MOMENTUM = 0.95  # Nesterov's
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic polynomial; Jordan's, for 5 iterations
ITERATIONS = 5


class Muon(torch.optim.AdamW):
    """AdamW, but Muon in the groups of parameters that have `matrices`: a (M, N) parameter is that many matrices of
    (M / matrices, N), each orthogonalized by itself (3 in c_attn: queries, keys and values).

    ZeroRedundancyOptimizer shards it like AdamW: each rank keeps the momentum of its share of the parameters, and
    orthogonalizes and broadcasts those. Every matrix is computed alone, so the world size does not change a bit.
    """

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002
        """Update the parameters; the gradients of Muon's are used up (None), so that AdamW passes over them."""
        for group in self.param_groups:
            if "matrices" in group:
                for parameter in group["params"]:
                    self._update(parameter, group)
                    parameter.grad = None
        super().step()

    def _update(self, parameter: Any, group: dict[str, Any]) -> None:
        gradient, state = parameter.grad, self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(gradient)
        momentum = state["momentum"].lerp_(gradient, 1 - MOMENTUM)
        update = gradient.lerp(momentum, MOMENTUM)  # (M, N)
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        for matrix, its_update in zip(parameter.chunk(group["matrices"]), update.chunk(group["matrices"]), strict=True):
            # an orthogonalized matrix has a root mean square of 1 / sqrt(longer side), AdamW's update about 0.2
            matrix.add_(orthogonalize(its_update), alpha=-group["lr"] * 0.2 * max(matrix.shape) ** 0.5)

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's expects a `step` of every parameter


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values of a (M, N) matrix near 1 (0.7 to 1.2), by Newton-Schulz iterations; in bfloat16, as
    they were made for, where the device has it."""
    a, b, c = COEFFICIENTS
    x = matrix.bfloat16() if matrix.is_cuda or cpu_has_bf16() else matrix
    if tall := x.size(0) > x.size(1):
        x = x.T
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
