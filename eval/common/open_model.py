"""Open a model for evaluation: what `--model` and `--device` name, and the processes that share the work."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import nn

from train.parallel.device import prepare_device
from train.parallel.world import World, init_distributed, shut_down_distributed
from train.weights.load_model import LoadedModel, load_model

DIVERGED = "the model's logits are not finite: it has diverged, or its weights are corrupt"


@contextmanager
def open_model(spec: str | None, device: str, classifier: bool = False) -> Iterator[tuple[LoadedModel, World]]:
    """Load a model and join torchrun's process group, which is left at the end of the block.

    Matrix products are exact float32, never TF32.

    Args:
        spec: the value of `--model`; None: the newest run.
        classifier: whether the model must be a classifier; if not, a language model.

    Raises:
        UserError: no such model or device, or a model of the other kind.
    """
    with prepared_world(device) as world:
        yield load_model(spec, world.device, classifier=classifier), world


@contextmanager
def prepared_world(device: str) -> Iterator[World]:
    """Join torchrun's process group, as open_model does, for a command that loads its models later."""
    try:
        world = init_distributed(device)
        prepare_device(world.device)
        torch.set_float32_matmul_precision("highest")
        yield world
    finally:
        shut_down_distributed()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Switch dropout off for the block, and restore the model's mode after it."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)
