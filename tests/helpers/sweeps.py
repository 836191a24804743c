"""Runs of a sweep that were never trained: a configuration, rows, DONE."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.config.parsing import save_config
from train.config.pretrain import Config, DataConfig, ModelConfig, RunConfig
from train.sweeping.grid import PlannedRun


def planned_run(
    out: Path, setting: str = "x", seed: int = 1, width: int = 8, val: str = "none", **values: Any
) -> PlannedRun:
    """A run of a tiny model in `out`, 100 tokens a step."""
    model = ModelConfig(n_layer=1, n_head=1, n_embd=width, block_size=8, vocab_size=64)
    path = out / f"{setting},seed={seed}"
    config = Config(model=model, data=DataConfig(batch_tokens=100, val=val), run=RunConfig(dir=str(path)))
    return PlannedRun(setting, seed, values, config, [])


def write_run(
    run: PlannedRun, losses: Sequence[float], speeds: Sequence[float] = (100,), every: int = 3, done: bool = True
) -> PlannedRun:
    """Write a run with a validation loss every `every` steps, and a train row every second step, the speeds in turn."""
    rows = [{"step": every * number, "kind": "val", "loss": loss} for number, loss in enumerate(losses)]
    for number, step in enumerate(range(2, every * (len(losses) - 1) + 1, 2)):
        speed = speeds[number % len(speeds)]
        rows.append({"step": step, "kind": "train", "tokens": 100 * step, "tokens_per_s": speed})
    run.path.mkdir(parents=True)
    save_config(run.config, run.path / "config.yaml")
    rows.sort(key=lambda row: row["step"])
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (run.path / "DONE").touch()
    return run
