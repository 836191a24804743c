"""Chapter 9: which rank reads which windows of a step, and the losses of real runs with 1, 2 and 4 processes."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eval.common.curves import read_metrics, series

ROOT = Path(__file__).resolve().parents[3]
WINDOWS, MICRO, BLOCK = 16, 2, 32  # windows in a step, and in a micro-batch; tokens in a window
WORLD_SIZES = 1, 2, 4
OPTIONS = {
    "model.n_layer": 2,
    "model.n_head": 2,
    "model.n_embd": 32,
    "model.block_size": BLOCK,
    "data.batch_tokens": WINDOWS * BLOCK,
    "data.micro_batch_size": MICRO,
    "optim.max_lr": 1e-2,
    "optim.warmup_steps": 10,
    "train.max_steps": 100,
    "train.device": "cpu",
    "train.precision": "fp32",
    "train.compile": "false",
    "eval.every": 0,
    "eval.hellaswag_every": 0,
    "eval.sample_every": 0,
    "checkpoint.every": 0,
    "log.wandb": "disabled",
}


def draw() -> Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.8), width_ratios=(1.4, 1, 1))
    draw_ranks(left)
    losses = train()
    for number, (world_size, values) in enumerate(losses.items()):
        color = plt.get_cmap("viridis")(number / len(losses))
        label = f"{world_size} process{'es' if world_size > 1 else ''}"
        middle.plot(values, color=color, linewidth=6 - 2.5 * number, label=label)
        if number:
            right.semilogy(np.abs(values - losses[1]), ".", color=color, markersize=4, label=label)
    middle.set(title="Loss", xlabel="step", ylabel="nats per character")
    right.set(title="Distance from 1 process", xlabel="step", ylim=(1e-8, 1))
    right.yaxis.set_major_formatter("{x:.0e}")
    middle.legend()
    right.legend(markerscale=3)
    return figure


def draw_ranks(panel: Axes) -> None:
    """A row for each world size: the windows of one step, coloured by rank, with a frame around each micro-batch."""
    for row, world_size in enumerate(WORLD_SIZES):
        per_rank = WINDOWS // world_size
        for start in range(0, WINDOWS, MICRO):
            color = plt.get_cmap("cividis")(0.2 + 0.25 * (start // per_rank))
            panel.add_patch(Rectangle((start, row + 0.25), MICRO, 0.6, facecolor=color, edgecolor="white", linewidth=2))
        for rank in range(world_size):
            panel.text((rank + 0.5) * per_rank, row + 0.2, f"rank {rank}", ha="center", fontsize=9)
    panel.set(xlim=(0, WINDOWS), ylim=(len(WORLD_SIZES), 0), title="Who reads which window of a step", xlabel="window")
    panel.set_xticks(np.arange(WINDOWS) + 0.5, [str(window) for window in range(WINDOWS)], fontsize=8)
    panel.set_yticks(np.arange(len(WORLD_SIZES)) + 0.55, [str(size) for size in WORLD_SIZES])
    panel.set_ylabel("processes")
    panel.grid(False)


def train() -> dict[int, np.ndarray]:
    """The losses of 100 steps on the plays, by world size: runs of train_gpt2.py that torchrun starts."""
    losses = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        run("prepare/shakespeare.py", "--level", "char", "--out", folder / "data")
        shards = {f"data.{split}": folder / f"data/*_{split}_*.bin" for split in ("train", "val")}
        for world_size in WORLD_SIZES:
            options = OPTIONS | shards | {"run.dir": folder / str(world_size)}
            words = [word for key, value in options.items() for word in (f"--{key}", value)]
            torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={world_size}"]
            run(*(torchrun if world_size > 1 else []), "train/train_gpt2.py", *words)
            losses[world_size] = series(read_metrics(folder / str(world_size)), "train", "loss")[1]
    return losses


def run(*words: object) -> None:
    command, environment = [sys.executable, *map(str, words)], os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
