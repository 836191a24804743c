"""What the scripts of this room share: options, the model and the processes, and how scores are reported."""

import argparse
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from prepare.common.cli import nonempty, nonempty_path, positive
from prepare.common.files import atomic_write_json
from train.parallel.device import autocast, precision_name, prepare_device
from train.parallel.world import World, init_distributed, shut_down_distributed
from train.weights.load_model import LoadedModel, load_model


def add_model_options(parser: ArgumentParser) -> None:
    """Declare `--model` and `--device`."""
    kinds = "a run, a checkpoint, a Hugging Face directory, or a hub name; when not given, the newest run"
    parser.add_argument("--model", type=nonempty, metavar="X", help=kinds)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")


def add_set_options(parser: ArgumentParser, data: Path, unit: str) -> None:
    """Declare `--model`, `--device` and what a published set needs: `--data`, `--limit`, `--output`, `--batch-tokens`,
    `--precision`.

    Args:
        data: where the set usually lies.
        unit: what it consists of, in the plural.
    """
    add_model_options(parser)
    parser.add_argument("--data", type=nonempty_path, default=data, metavar="FILE", help=f"the {unit}")
    parser.add_argument("--limit", type=positive, metavar="N", help=f"only the first N {unit}")
    parser.add_argument("--output", type=output_file, metavar="FILE", help=f"scores, and those of each of the {unit}")
    parser.add_argument("--batch-tokens", type=positive, metavar="N", help="in a forward pass")
    kinds = "up to the logits: fp32 for numbers to compare, bf16 for speed, where the device has it"
    parser.add_argument("--precision", choices=("fp32", "bf16"), default="fp32", help=kinds)


def output_file(text: str) -> Path:
    """argparse's type for a file to be written: asked for before the work, not after it."""
    path = nonempty_path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: name a file, in a folder that is there")
    return path


@contextmanager
def opened(
    spec: str | None, device: str, classifier: bool = False, precision: str = "fp32"
) -> Iterator[tuple[LoadedModel, World]]:
    """What `--model` and `--device` name, and the processes that share the work: torchrun's, or this one alone.

    Matrix products are exact float32 in the block, also on GPUs that could take TF32 for them, unless `--precision`
    asks for bf16.

    Raises:
        UserError: there is no such model or device, or it is a classifier where none is wanted, or the other way round.
    """
    try:
        world = init_distributed(device)
        prepare_device(world.device)
        torch.set_float32_matmul_precision("highest")
        loaded = load_model(spec, world.device, classifier=classifier)
        context = autocast(world.device, precision)
        loaded.precision = precision_name(context)
        with context:
            yield loaded, world
    finally:
        shut_down_distributed()


def report(
    loaded: LoadedModel, lines: Mapping[str, str], output: Path | None, data: Path, scores: Mapping[str, Any]
) -> None:
    """Print labelled lines, without the empty ones, and write the scores with what they are of."""
    lines = {"model": loaded.name, "precision": "bf16" if loaded.precision == "bf16" else "", **lines}
    lines = {label: text for label, text in lines.items() if text}
    width = max(map(len, lines)) + 2
    for label, text in lines.items():
        print(f"{label + ':':<{width}}{text}")
    if output:
        described = {"model": loaded.name, "step": loaded.step, "precision": loaded.precision, "data": str(data)}
        atomic_write_json(output, {**described, **scores})
        print(f"{'written:':<{width}}{output}")
