"""Over time: what each checkpoint writes after the prompt, with the same random numbers, and the run's loss curves."""

from typing import Any

import numpy as np
import torch

from eval.generation.sampling import generate
from eval.views.subject import Subject, pack
from train.run.metrics_log import METRICS, read_rows

SAMPLE_TOKENS, TEMPERATURE, SEED = 48, 0.8, 1337
CURVE_POINTS = 300


def over_time(subject: Subject) -> dict[str, Any]:
    """A sample of this checkpoint, and the loss so far and later.

    Returns:
        sample: the text after the prompt, drawn at TEMPERATURE from all tokens.
        train, val: of a run, `steps` (n,) int32 and `losses` (n,) float32 of its metrics.jsonl; empty for other models.
    """
    tokenizer, generator = subject.tokenizer, torch.Generator().manual_seed(SEED)
    new = generate(
        subject.loaded.model,
        subject.ids[None],
        SAMPLE_TOKENS,
        TEMPERATURE,
        generator=generator,
        vocab_size=tokenizer.vocab_size,
        stop=tokenizer.eot,
    )
    sample = tokenizer.decode([token for token in map(int, new) if token != tokenizer.eot])
    metrics = subject.loaded.run / METRICS if subject.loaded.run else None
    rows = read_rows(metrics) if metrics and metrics.exists() else []
    return {"sample": sample, **{kind: loss_curve(rows, kind) for kind in ("train", "val")}}


def loss_curve(rows: list[dict[str, Any]], kind: str) -> dict[str, Any]:
    """The losses of one kind of row, at most CURVE_POINTS, log-spaced, as the page draws them."""
    found = [row for row in rows if row["kind"] == kind and "loss" in row]
    if len(found) > CURVE_POINTS:
        indices = np.unique(np.geomspace(1, len(found), CURVE_POINTS).round().astype(int)) - 1
        found = [found[index] for index in indices]
    steps, losses = ([row[name] for row in found] for name in ("step", "loss"))
    return {"steps": pack(np.array(steps), "int32"), "losses": pack(np.array(losses), "float32")}
