"""Run a training script with a fault: python tests/helpers/faults.py KIND@STEP:RANK SCRIPT [ARGUMENTS]

In the step that makes STEP finished ones, and on that rank alone:

    nan     its gradient becomes NaN               drift    one of its parameters changes
    hang    it never arrives at the step's work    SIGTERM  it gets this signal (SIGKILL ...)
    STOP    a STOP file appears
"""

import os
import runpy
import signal
import sys
import time
from pathlib import Path

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import torch
from torch import nn

from train.parallel.world import World
from train.trainer import trainer


def install(fault: str) -> None:
    """Patch the step of this process."""
    kind, _, place = fault.partition("@")
    arrived, train_step = World.record_arrival, trainer.train_step
    due = False

    def arrive(world: World, step: int) -> None:
        nonlocal due
        due = place == f"{step}:{world.rank}"
        if due and kind == "hang":
            time.sleep(86400)
        if due and kind == "STOP":
            Path(sys.argv[sys.argv.index("--run.dir") + 1], kind).touch()
        if due and kind.startswith("SIG"):
            os.kill(os.getpid(), signal.Signals[kind])
        arrived(world, step)

    def step(model: nn.Module, *arguments: object) -> tuple[torch.Tensor, torch.Tensor]:
        parameter = next(model.parameters())
        if due and kind == "nan":
            hook = parameter.register_hook(lambda gradient: (hook.remove(), gradient * torch.nan)[1])
        if due and kind == "drift":
            with torch.no_grad():
                parameter.view(-1)[0] += 1e-3
        return train_step(model, *arguments)

    World.record_arrival, trainer.train_step = arrive, step


if __name__ == "__main__":
    install(sys.argv[1])
    sys.argv = sys.argv[2:]
    runpy.run_path(sys.argv[0], run_name="__main__")
