"""Runs of a sweep that were never trained: a configuration, rows, DONE."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from train.config.parsing import save_config
from train.config.pretrain import Config, DataConfig, ModelConfig
from train.sweeping.runs import SweepRun


def planned_run(out: Path, setting: str = "x", seed: int = 1, width: int = 8, **values: Any) -> SweepRun:
    """A run of a tiny model in `out`, 100 tokens a step."""
    model = ModelConfig(n_layer=1, n_head=1, n_embd=width, block_size=8, vocab_size=64)
    return SweepRun(
        setting, values, Config(model=model, data=DataConfig(batch_tokens=100)), out / f"{setting}_{seed}", []
    )


def write_run(run: SweepRun, losses: Sequence[float], speeds: Sequence[float] = (100,), done: bool = True) -> SweepRun:
    """Write a run with a validation loss every third step, and a train row every second step, the speeds in turn."""
    rows = [{"step": 3 * number, "kind": "val", "loss": loss} for number, loss in enumerate(losses)]
    for number, step in enumerate(range(2, 3 * len(losses) - 2, 2)):
        speed = speeds[number % len(speeds)]
        rows.append({"step": step, "kind": "train", "tokens": 100 * step, "tokens_per_s": speed})
    run.path.mkdir(parents=True)
    save_config(run.config, run.path / "config.yaml")
    rows.sort(key=lambda row: row["step"])
    (run.path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if done:
        (run.path / "DONE").touch()
    return run
