"""What the commands of eval/ share: their options, and how scores are printed and written."""

import argparse
from argparse import ArgumentParser
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from prepare.common.cli import nonempty, nonempty_path, positive
from prepare.common.files import atomic_write_json
from train.weights.load_model import LoadedModel


def add_model_options(parser: ArgumentParser) -> None:
    """Declare `--model` and `--device`."""
    kinds = "a run, a checkpoint, nanoGPT's .pt, a Hugging Face directory, or a hub name; default: the newest run"
    parser.add_argument("--model", type=nonempty, metavar="X", help=kinds)
    parser.add_argument("--device", choices=("auto", "cpu", "cuda", "mps"), default="auto", help="where to compute")


def add_dataset_options(parser: ArgumentParser, data: Path, unit: str) -> None:
    """Declare the options of a command that scores a published dataset: those of the model, `--data`, `--limit` and
    `--output`.

    Args:
        data: default path of the dataset.
        unit: what the dataset consists of, in the plural.
    """
    add_model_options(parser)
    parser.add_argument("--data", type=nonempty_path, default=data, metavar="FILE", help=f"the {unit}, as JSON lines")
    parser.add_argument("--limit", type=positive, metavar="N", help=f"score the first N {unit}")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help=f"write the scores, and those of each of the {unit}"
    )


def output_file(text: str) -> Path:
    """argparse type: a file to write, whose folder is checked before the work begins."""
    path = nonempty_path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"{text}: give a file name in an existing folder")
    return path


def report_scores(
    loaded: LoadedModel, lines: Mapping[str, str], output: Path | None = None, data: Path | None = None, **scores: Any
) -> None:
    """Write the scores to `output` as JSON, and print labelled lines, leaving out empty ones."""
    if output:
        about = {"model": loaded.name, "step": loaded.step, "data": str(data)}
        atomic_write_json(output, about | scores)
    lines = {"model": loaded.name} | {label: text for label, text in lines.items() if text}
    width = max(map(len, lines)) + 2
    for label, text in lines.items():
        print(f"{label + ':':<{width}}{text}")
    if output:
        print(f"{'written:':<{width}}{output}")
