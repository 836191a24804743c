"""The results of a sweep: the curve of each run, the settings with their seeds, and the runs that do not count."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import torch

from eval.common.curves import read_metrics, series
from prepare.common.cli import UserError
from train.config.pretrain import load_config
from train.model.build import build_model
from train.run.run_dir import CONFIG, DONE
from train.sweeping.runs import OUTPUT, SweepRun


@dataclass(frozen=True)
class Curve:
    """Validation losses in nats per token, after tokens and after seconds of training alone: float64 (n,) each."""

    tokens: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray

    @property
    def final(self) -> float:
        return float(self.losses[-1])

    def tokens_to(self, loss: float) -> float | None:
        """The tokens after which the loss first is at most `loss`, linear between evaluations; None if it never is."""
        reached = np.flatnonzero(self.losses <= loss)
        if not len(reached):
            return None
        around = slice(max(0, reached[0] - 1), reached[0] + 1)
        return float(np.interp(-loss, -self.losses[around], self.tokens[around]))


def read_curve(run_dir: Path) -> Curve:
    """The curve of a run, as far as it is trained. UserError if it has no validation loss or no train row."""
    rows = read_metrics(run_dir)
    steps, losses = series(rows, "val", "loss")
    logged, tokens = series(rows, "train", "tokens")
    if not (len(steps) and len(logged)):
        raise UserError(f"{run_dir} has no validation loss or no train row yet: train it first")
    speeds = series(rows, "train", "tokens_per_s")[1]
    logged, tokens = np.append(0, logged), np.append(0, tokens)
    seconds = np.cumsum(np.append(0, np.diff(tokens) / speeds))
    return Curve(np.interp(steps, logged, tokens), np.interp(steps, logged, seconds), losses)


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of runs after the same tokens, those of the first."""
    tokens = curves[0].tokens
    seconds = [np.interp(tokens, curve.tokens, curve.seconds) for curve in curves]
    losses = [np.interp(tokens, curve.tokens, curve.losses) for curve in curves]
    return Curve(tokens, np.mean(seconds, axis=0), np.mean(losses, axis=0))


@dataclass(frozen=True)
class SettingResult:
    """A setting of the grid."""

    name: str
    values: dict[str, Any]  # of the grid's keys
    curves: list[Curve]  # of the finished runs, one for each seed
    problems: list[str]  # of the other runs: a line each
    parameters: int
    hidden_parameters: int  # those of the layers: the non-embedding parameters of Kaplan et al. 2020
    flops_per_token: int  # of training

    @property
    def final_losses(self) -> list[float]:
        """Those of the finished runs."""
        return [curve.final for curve in self.curves]

    @property
    def loss(self) -> float:
        """The mean final loss; infinite without a finished run."""
        return fmean(self.final_losses) if self.curves else float("inf")

    @property
    def mean(self) -> Curve:
        """The mean of the finished runs."""
        return mean_curve(self.curves)


def read_results(runs: Sequence[SweepRun]) -> list[SettingResult]:
    """The results of a sweep by setting, the lowest final loss first, those without a finished run last."""
    settings: dict[str, list[SweepRun]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run)
    return sorted((read_setting(group) for group in settings.values()), key=lambda result: result.loss)


def read_setting(runs: Sequence[SweepRun]) -> SettingResult:
    """The result of a setting from its runs."""
    problems = {run.path: find_problem(run) for run in runs}
    curves = [read_curve(path) for path, problem in problems.items() if not problem]
    stored = [run.path / CONFIG for run in runs if (run.path / CONFIG).exists()]  # with the vocabulary of the data
    config = load_config(["--config", str(stored[0])], "") if stored else runs[0].config
    with torch.device("meta"):  # no memory
        model = build_model(config.model)
    return SettingResult(
        name=runs[0].setting,
        values=runs[0].values,
        curves=curves,
        problems=[f"{path.name} {problem}" for path, problem in problems.items() if problem],
        parameters=model.num_parameters(),
        hidden_parameters=sum(parameter.numel() for parameter in model.h.parameters()),
        flops_per_token=model.flops_per_token(),
    )


def find_problem(run: SweepRun) -> str:
    """Why a run does not count; empty if it does."""
    if run.has_diverged:
        return "diverged: too many steps in a row had a non-finite loss or gradient"
    if (run.path / DONE).exists():
        losses = read_curve(run.path).losses
        return "" if losses[-1] <= losses[0] else f"diverged: its loss rose from {losses[0]:.4f} to {losses[-1]:.4f}"
    if not (run.path / OUTPUT).exists():
        return "is not started"
    lines = (run.path / OUTPUT).read_text(errors="replace").splitlines()
    errors = [line for line in lines if line.startswith("error: ")]  # under torchrun other lines follow it
    return f"is not finished: {(errors or lines or ['it printed nothing'])[-1]}"
