"""The results of a sweep: each run's curve and how it ended, and the mean of each setting's seeds."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import numpy as np
import torch

from prepare.common.cli import UserError
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.run.metrics_log import METRICS, read_rows
from train.run.run_dir import CONFIG, DONE
from train.sweeping.grid import PlannedRun, read_plain_config
from train.sweeping.launch import FAILED, gave_up
from train.trainer.trainer import MAX_SKIPPED


@dataclass(frozen=True)
class Curve:
    """Validation loss in nats per token after some tokens, and after some seconds of training without evaluations:
    float64 (n,) each."""

    tokens: np.ndarray
    losses: np.ndarray
    seconds: np.ndarray  # nan where log.every is 0

    def tokens_to(self, loss: float) -> float | None:
        """The tokens after which the loss first is at most `loss`, linear between evaluations; None if it never is."""
        [reached] = np.nonzero(self.losses <= loss)
        if not len(reached):
            return None
        last = reached[0]
        if last == 0:
            return float(self.tokens[0])
        (x0, x1), (y0, y1) = self.tokens[last - 1 : last + 1], self.losses[last - 1 : last + 1]
        return float(x0 + (y0 - loss) / (y0 - y1) * (x1 - x0))

    def seconds_to(self, tokens: float) -> float:
        """The seconds that training on so many tokens took."""
        return float(np.interp(tokens, self.tokens, self.seconds))


def read_curve(run_dir: Path) -> Curve:
    """The validation losses of a run, of its first steps if it is not finished. UserError if it has none."""
    path, config = run_dir / METRICS, run_dir / CONFIG
    if not path.is_file() or not config.is_file():
        raise UserError(f"{run_dir} is not a run: it has no {METRICS} or no {CONFIG}")
    rows, batch_tokens = read_rows(path), read_plain_config(config)["data"]["batch_tokens"]
    val = [row for row in rows if row["kind"] == "val"]
    if not val:
        raise UserError(f"{run_dir} has no validation loss yet: train it first")
    tokens = np.array([row["step"] * batch_tokens for row in val], dtype=float)
    losses = np.array([row["loss"] for row in val], dtype=float)  # null, which is not finite, is nan
    return Curve(tokens, losses, seconds_after(rows, tokens))


def seconds_after(rows: Sequence[Mapping[str, Any]], tokens: np.ndarray) -> np.ndarray:
    """The seconds of training, summed over a run's train rows, after each of these numbers of tokens, (n,)."""
    train = [row for row in rows if row["kind"] == "train"]
    if not train:
        return np.full_like(tokens, np.nan)
    read = np.array([0, *(row["tokens"] for row in train)], dtype=float)
    speeds = np.array([row["tokens_per_s"] for row in train])
    return np.interp(tokens, read, np.cumsum([0, *(np.diff(read) / speeds)]))


def mean_curve(curves: Sequence[Curve]) -> Curve:
    """The mean of runs with the same evaluations. UserError if they differ."""
    if any(not np.array_equal(curve.tokens, curves[0].tokens) for curve in curves):
        raise UserError("these runs were not evaluated after the same tokens, so that their curves have no mean")
    return Curve(
        curves[0].tokens,
        np.mean([curve.losses for curve in curves], axis=0),
        np.mean([curve.seconds for curve in curves], axis=0),
    )


@dataclass(frozen=True)
class SettingResult:
    """A setting of the grid: the runs that finished, one for each seed, and what became of the others."""

    name: str
    values: dict[str, Any]  # of the grid's keys
    model: ModelConfig
    planned: int  # seeds
    curves: list[Curve]  # of the finished runs
    problems: list[str]  # of the others: a line each
    parameters: int
    hidden_parameters: int
    flops_per_token: int

    @property
    def finals(self) -> list[float]:
        """Final validation losses, one of each finished seed."""
        return [float(curve.losses[-1]) for curve in self.curves]

    @property
    def loss(self) -> float:
        """Mean final loss; nan without a finished run."""
        return fmean(self.finals) if self.curves else math.nan

    @property
    def deviation(self) -> float | None:
        """Standard deviation (n - 1) of the final losses; None with fewer than two."""
        return stdev(self.finals) if len(self.curves) > 1 else None

    @property
    def mean(self) -> Curve:
        return mean_curve(self.curves)


def read_results(runs: Sequence[PlannedRun]) -> list[SettingResult]:
    """The results of a sweep by setting, the lowest final loss first, settings without a finished run last."""
    settings: dict[str, list[PlannedRun]] = {}
    for run in runs:
        settings.setdefault(run.setting, []).append(run)
    results = [_read_setting(name, group) for name, group in settings.items()]
    return sorted(results, key=lambda result: (not result.curves, result.loss))


def _read_setting(name: str, runs: Sequence[PlannedRun]) -> SettingResult:
    model = runs[0].config.model
    for run in runs:
        if not model.vocab_size and (run.path / CONFIG).exists():
            model = ModelConfig(**read_plain_config(run.path / CONFIG)["model"])
    problems = [problem(run) for run in runs]
    curves = [read_curve(run.path) for run, found in zip(runs, problems, strict=True) if not found]
    lines = [f"{run.name} {found}" for run, found in zip(runs, problems, strict=True) if found]
    return SettingResult(name, runs[0].values, model, len(runs), curves, lines, *count(model))


def problem(run: PlannedRun) -> str:
    """Why a run does not count: it has diverged, failed, or is not finished; empty if it counts."""
    if gave_up(run):
        return f"diverged: {MAX_SKIPPED} steps in a row had a non-finite loss or gradient"
    if not (run.path / DONE).exists():
        failed, started = run.path / FAILED, (run.path / METRICS).exists()
        if failed.exists():
            return f"failed: {failed.read_text().strip()}"
        return "is not finished" if started else "is not started"
    losses = read_curve(run.path).losses
    return "" if losses[-1] <= losses[0] else f"diverged: its loss rose from {losses[0]:.4f} to {losses[-1]:.4f}"


def count(config: ModelConfig) -> tuple[int, int, int]:
    """A model's parameters, those of its layers alone (Kaplan et al. 2020: the non-embedding parameters), and its
    training FLOPs per token."""
    with torch.device("meta"):  # no memory
        model = build_model(config)
    hidden = sum(parameter.numel() for parameter in model.h.parameters())
    return model.num_parameters(), hidden, model.flops_per_token()
