"""The model as the training step calls it: compiled, and one of several replicas."""

import os
import shlex
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from prepare.common.cli import UserError
from train.config.pretrain import TrainConfig
from train.model.gpt import GPT
from train.parallel.world import World

CUDA_GRAPHS = ("reduce-overhead", "max-autotune")  # the modes of torch.compile that use them


def wrap(raw: GPT, train: TrainConfig, world: World) -> nn.Module:
    """The model of the training step; `raw` stays as it is, for evaluation, generation and checkpoints.

    Raises:
        UserError: there is no C++ compiler.
    """
    if train.compile:
        prepare_compiler("train.compile", "set train.compile false")
    mode = train.compile if isinstance(train.compile, str) else None
    if world.device.type == "cuda" and mode in CUDA_GRAPHS:
        own_gradients(raw)
    model = torch.compile(raw, mode=mode) if train.compile else raw
    if world.size == 1:
        return model
    device_ids = [world.device.index] if world.device.type == "cuda" else None
    replica = DDP(model, device_ids=device_ids, gradient_as_bucket_view=True)
    if train.all_reduce == "bf16":
        replica.register_comm_hook(None, average_in_bf16)
    return replica


def own_gradients(model: nn.Module) -> None:
    """Have gradients accumulate in memory of their own. Those that a CUDA graph returns lie in the graph's, where its
    next replay, the next micro-batch, writes others (https://github.com/pytorch/pytorch/issues/169545)."""

    def take(parameter: nn.Parameter) -> None:
        if parameter not in buffers:
            buffers[parameter] = torch.empty_like(parameter.grad)
        if parameter.grad is not buffers[parameter]:
            parameter.grad = buffers[parameter].copy_(parameter.grad)

    buffers: dict[nn.Parameter, torch.Tensor] = {}
    for parameter in model.parameters():
        parameter.register_post_accumulate_grad_hook(take)


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


def average_in_bf16(_: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
    """Average a bucket of gradients over the ranks in half of the bytes. (PyTorch's own hook refuses gloo.)"""
    gradients = bucket.buffer()
    rounded = (gradients / dist.get_world_size()).bfloat16()
    return dist.all_reduce(rounded, async_op=True).get_future().then(lambda sent: gradients.copy_(sent.value()[0]))
