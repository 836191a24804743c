"""Muon: momentum, orthogonalized by Newton-Schulz iterations, for the matrices of the hidden layers.

Source: Jordan et al. 2024, https://kellerjordan.github.io/posts/muon; the scale of the update is that of Liu et al.
2025, "Muon is Scalable for LLM Training", so that learning rate and weight decay are those of AdamW. On one process in
bfloat16 it is torch.optim.Muon(adjust_lr_fn="match_rms_adamw").
"""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

MOMENTUM = 0.95  # Nesterov's
COEFFICIENTS = 3.4445, -4.7750, 2.0315  # of the quintic polynomial; Jordan's, for 5 iterations
ITERATIONS = 5
Member = tuple[Any, dict[str, Any]]  # a parameter of Muon's, and its group


class Muon(torch.optim.AdamW):
    """AdamW, but Muon in the groups of parameters that have `matrices`: a (M, N) parameter is that many matrices of
    (M / matrices, N), each orthogonalized by itself (3 in c_attn: queries, keys and values)."""

    def __init__(
        self, params: Any, dtype: torch.dtype = torch.float32, rank: int = 0, world_size: int = 1, **adamw: Any
    ) -> None:
        """
        Args:
            dtype: of the Newton-Schulz iterations.
            rank, world_size: every rank keeps the momentum of all matrices, orthogonalizes its share, and all-gathers
                the rest. Each matrix is computed by itself, so the result does not depend on the world size.
            adamw: the arguments of AdamW.
        """
        super().__init__(params, **adamw)
        self.dtype, self.rank, self.world_size = dtype, rank, world_size

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # noqa: ARG002
        """Update Muon's parameters and set their gradients to None, so that AdamW's step, which follows, skips them."""
        members = [(p, group) for group in self.param_groups if "matrices" in group for p in group["params"]]
        for parameter, _ in members:
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            state["momentum"].lerp_(parameter.grad, 1 - MOMENTUM)
        shares = self._shares(members)
        own = [self._direction(*members[index]) for index in shares[self.rank]]
        for index, direction in self._all_gather(own, members, shares).items():
            parameter, group = members[index]
            # an orthogonalized matrix has a root mean square of 1 / sqrt(longer side), AdamW's update about 0.2
            longer = max(parameter.size(0) // group["matrices"], parameter.size(1))
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            parameter.add_(direction.view_as(parameter), alpha=-group["lr"] * 0.2 * longer**0.5)
            parameter.grad = None
        super().step()

    def _shares(self, members: list[Member]) -> list[list[int]]:
        """The members of each rank, by index: the most expensive first, each to the least loaded rank."""
        costs = [p.numel() * min(p.size(0) // group["matrices"], p.size(1)) for p, group in members]
        shares: list[list[int]] = [[] for _ in range(self.world_size)]
        loads = [0] * self.world_size
        for index in sorted(range(len(members)), key=lambda index: -costs[index]):
            rank = loads.index(min(loads))
            shares[rank].append(index)
            loads[rank] += costs[index]
        return shares

    def _direction(self, parameter: Any, group: dict[str, Any]) -> Tensor:
        """The orthogonalized Nesterov momentum of a parameter, flat: (M * N,) in self.dtype."""
        update = parameter.grad.lerp(self.state[parameter]["momentum"], MOMENTUM)  # (M, N)
        return torch.cat([orthogonalize(matrix.to(self.dtype)) for matrix in update.chunk(group["matrices"])]).flatten()

    def _all_gather(self, own: list[Tensor], members: list[Member], shares: list[list[int]]) -> dict[int, Tensor]:
        """The direction of every member, by its index; `own`: those that this rank has orthogonalized."""
        if self.world_size == 1:
            return dict(zip(shares[0], own, strict=True))
        sizes = [[members[index][0].numel() for index in share] for share in shares]
        length, device = max(map(sum, sizes)), members[0][0].device
        buffers = list(torch.zeros(self.world_size, length, dtype=self.dtype, device=device))
        padding = buffers[self.rank][sum(sizes[self.rank]) :]
        dist.all_gather(buffers, torch.cat([*own, padding]))
        directions: dict[int, Tensor] = {}
        for share, size, buffer in zip(shares, sizes, buffers, strict=True):
            directions |= zip(share, buffer[: sum(size)].split(size), strict=True)
        return directions

    def __setstate__(self, state: dict[str, Any]) -> None:
        torch.optim.Optimizer.__setstate__(self, state)  # AdamW's expects a `step` of every parameter


def orthogonalize(matrix: Tensor) -> Tensor:
    """Bring all singular values of a (M, N) matrix near 1 (0.7 to 1.2), by Newton-Schulz iterations, which were made
    for bfloat16."""
    a, b, c = COEFFICIENTS
    tall = matrix.size(0) > matrix.size(1)
    x = matrix.T if tall else matrix
    x = x / x.norm().clamp(min=1e-7)
    for _ in range(ITERATIONS):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
