"""Compile the model and wrap it in DDP for the training step, and check that all replicas stay equal."""

import os
import shlex
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import cast

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from prepare.common.cli import UserError
from train.parallel.world import World

ATOMIC_COMPILER = Path(__file__).with_name("atomic_g++")


def compile_and_wrap_ddp(model: nn.Module, compiled: bool, world: World) -> nn.Module:
    """Return the model for the training step. `model` itself stays uncompiled, for evaluation and checkpoints.
    UserError if there is no C++ compiler."""
    if compiled:
        prepare_compiler()
        model = cast(nn.Module, torch.compile(model))
    if world.size == 1:
        return model
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DDP(model, device_ids=device_ids, gradient_as_bucket_view=True)


def prepare_compiler() -> None:
    """Make torch.compile's C++ compiler write its cache atomically, so that kill -9 leaves no partial file there.
    UserError if there is no C++ compiler."""
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "gcc", "clang"))):
        raise UserError("train.compile needs a C++ compiler, and none is installed: install g++, or set it false")
    from torch._inductor import config  # slow to import, and needed by torch.compile only

    compiler, has_space = config.cpp.cxx[-1], shlex.quote(str(ATOMIC_COMPILER)) != str(ATOMIC_COMPILER)
    if "g++" in compiler and "clang" not in compiler and not has_space:  # inductor splits its commands at spaces
        config.cpp.cxx = (None, str(ATOMIC_COMPILER))


@contextmanager
def compiler_errors() -> Iterator[None]:
    """Turn a failure of torch.compile's C++ compiler into a one-line UserError."""
    try:
        yield
    except RuntimeError as failure:
        lines = str(failure).splitlines()
        if not lines or not lines[0].startswith(("CppCompileError", "InvalidCxxCompiler")):
            raise
        reason = next((line for line in lines if " error: " in line), lines[0])
        raise UserError(
            "train.compile needs a C++ compiler that works, with Python's headers (python3-dev): "
            f"{reason}: fix that, or set train.compile false"
        ) from None


def parameter_hash(model: nn.Module) -> int:
    """A checksum of all float32 parameters, below 2^52: a sum over their bits, computed without a copy."""
    sums = [parameter.detach().view(torch.int32).sum(dtype=torch.int64) for parameter in model.parameters()]
    weights = torch.arange(1, len(sums) + 1, device=sums[0].device)  # so that swapped parameters change the sum
    return int((torch.stack(sums) * weights).sum()) % 2**52


def check_replicas(model: nn.Module, step: int, world: World) -> None:
    """Compare the parameters of all ranks after `step` finished steps. Every rank must call it.

    They are equal by construction: the same initial weights, the same averaged gradients. If they differ, a machine has
    computed a wrong result, which the loss would not show. UserError, on every rank, names those that differ.
    """
    hashes = world.gather(parameter_hash(model))
    (usual, count), *others = Counter(hashes).most_common()
    if not others:
        return
    strays = [rank for rank, value in enumerate(hashes) if value != usual]
    ranks = f"rank{'s' if len(strays) > 1 else ''} {', '.join(map(str, strays))}"
    who = f"of {ranks} have drifted from the others'" if count > len(strays) else f"differ: {ranks} against the others"
    raise UserError(
        f"after step {step} the parameters {who}: nothing is saved; the same command resumes from the last checkpoint; "
        "if it happens again, test the memory of that machine or GPU"
    )
