"""`--model` and `--device`, the same for every script of this room."""

from argparse import ArgumentParser

import torch

from train import distributed
from train.checkpoint import LoadedModel, load_model
from train.distributed import World


def add_model_options(parser: ArgumentParser) -> None:
    """Declare `--model` and `--device`."""
    kinds = "a run directory, a checkpoint, a Hugging Face directory or a hub name; when not given, the newest run"
    parser.add_argument("--model", metavar="X", help=kinds)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")


def open_model(spec: str | None, device: str) -> tuple[LoadedModel, World]:
    """What the options name, and the processes that share the work: torchrun's, or this one alone.

    Matrix products are exact float32 from here on, also on GPUs that could take TF32 for them.

    Raises:
        UserError: there is no such model or device.
    """
    world = distributed.start(device)
    torch.set_float32_matmul_precision("highest")
    return load_model(spec, world.device), world
