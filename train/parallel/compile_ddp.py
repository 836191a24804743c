"""The model as the training step calls it: compiled, and one of several replicas."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from prepare.common.cli import UserError
from train.config.pretrain import TrainConfig
from train.model.gpt import GPT
from train.parallel.world import World


def wrap(raw: GPT, train: TrainConfig, world: World) -> nn.Module:
    """The model of the training step; `raw` stays as it is, for evaluation, generation and checkpoints.

    Raises:
        UserError: there is no C++ compiler.
    """
    if train.compile:
        prepare_compiler("train.compile", "set train.compile false")
    model = torch.compile(raw) if train.compile else raw
    if world.size == 1:
        return model
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    return DDP(model, device_ids=device_ids, gradient_as_bucket_view=True)


def prepare_compiler(option: str, otherwise: str) -> None:
    """Have torch.compile's C++ compiler leave only whole files in its cache, which a kill -9 would spoil otherwise.

    Raises:
        UserError: there is no C++ compiler, which `option` needs; what to do `otherwise`.
    """
    if not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "gcc", "clang"))):
        raise UserError(f"{option} needs a C++ compiler, and none is there: get g++, or {otherwise}")
    from torch._inductor import config  # takes a moment, which a run without torch.compile need not wait for

    compiler, whole = config.cpp.cxx[-1], Path(__file__).with_name("whole_g++")
    plain = shlex.quote(str(whole)) == str(whole)  # inductor splits its commands at spaces
    if "g++" in compiler and "clang" not in compiler and os.access(whole, os.X_OK) and plain:  # it goes by the name
        config.cpp.cxx = (None, str(whole))


@contextmanager
def compiler_errors(option: str, otherwise: str) -> Iterator[None]:
    """Say in one line that the C++ compiler cannot do what torch.compile, by `option`, asks of it; what to do
    `otherwise`."""
    try:
        yield
    except RuntimeError as failure:
        said = str(failure).splitlines()
        if not said or not said[0].startswith(("CppCompileError", "InvalidCxxCompiler")):
            raise
        reason = next((line for line in said if " error: " in line), said[0])
        raise UserError(
            f"{option} needs a C++ compiler that works, with Python's headers (python3-dev), and here: {reason}: mend "
            f"that, or {otherwise}"
        ) from None
