"""Faults for the tests: GPT2_FAULT=KIND@STEP:RANK in the environment makes that rank misbehave in that step.

nan     its gradient is not a number           drift   one of its parameters changes
hang    it never arrives at the step's work    die     it is gone, as after kill -9
"""

import os
import signal
import time

import torch
from torch import nn


def inject(step: int, rank: int, model: nn.Module) -> None:
    """Do what GPT2_FAULT says, if it says it of this rank in the step that makes `step` finished ones."""
    kind, _, place = os.environ.get("GPT2_FAULT", "").partition("@")
    if place != f"{step}:{rank}":
        return
    parameter = next(model.parameters())
    if kind == "nan":
        hook = parameter.register_hook(lambda gradient: (hook.remove(), gradient * torch.nan)[1])
    elif kind == "drift":
        with torch.no_grad():
            parameter.view(-1)[0] += 1e-3
    elif kind == "hang":
        time.sleep(86400)
    elif kind == "die":
        os.kill(os.getpid(), signal.SIGKILL)
