"""The faults that tests ask for strike the rank and step that they name, and nobody else."""

import subprocess
import sys

import pytest
import torch

from tests.helpers.commands import ROOT
from train.trainer.faults import inject


def test_a_gradient_becomes_nan_once_and_a_parameter_drifts(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = torch.nn.Linear(2, 1)
    before = model.weight.detach().clone()
    monkeypatch.setenv("GPT2_FAULT", "nan@3:1")
    for step, rank in ((2, 1), (3, 0), (3, 1), (4, 1)):
        inject(step, rank, model)
        model(torch.ones(2)).sum().backward()
        assert bool(model.weight.grad.isnan().any()) == ((step, rank) == (3, 1))
        model.zero_grad()
    monkeypatch.setenv("GPT2_FAULT", "drift@3:1")
    inject(3, 0, model)
    assert torch.equal(model.weight, before)
    inject(3, 1, model)
    assert (model.weight != before).sum() == 1


def test_a_process_dies_as_if_killed() -> None:
    code = "import torch; from train.trainer.faults import inject; inject(3, 0, torch.nn.Linear(1, 1)); print('alive')"
    for fault, status in (("die@3:0", -9), ("die@4:0", 0)):
        result = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env={"GPT2_FAULT": fault}, capture_output=True, text=True
        )
        assert result.returncode == status, result.stderr
