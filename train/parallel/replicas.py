"""Whether all ranks still hold the same parameters. They do by construction: the same start, the same averaged
gradients. Where they do not, a machine computes wrongly, and no loss would say so."""

from collections import Counter

import torch
from torch import nn

from prepare.common.cli import UserError
from train.parallel.world import World


def parameter_hash(model: nn.Module) -> int:
    """A sum over the bits of all float32 parameters, below 2^52: one read of the memory, no copy of it."""
    sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in model.parameters()]
    weights = torch.arange(1, len(sums) + 1, device=sums[0].device)  # two parameters exchanged are another model
    return int((torch.stack(sums) * weights).sum()) % 2**52


def check_replicas(model: nn.Module, step: int, world: World) -> None:
    """Compare the parameters of all ranks after `step` finished steps. Every rank must call it.

    Raises:
        UserError: some differ; names the ranks, on every rank.
    """
    hashes = world.gather(parameter_hash(model))
    (usual, count), *others = Counter(hashes).most_common()
    if not others:
        return
    strays = [rank for rank, value in enumerate(hashes) if value != usual]
    ranks = f"rank{'s' if len(strays) > 1 else ''} {', '.join(map(str, strays))}"
    who = f"of {ranks} have drifted from the others'" if count > len(strays) else f"differ: {ranks} against the others"
    raise UserError(
        f"after step {step} the parameters {who}: nothing is saved; the same command goes on from the last checkpoint; "
        "if it happens again, test the memory of that machine or GPU"
    )
