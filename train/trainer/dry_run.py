"""A dry run (run.dry): a few steps of the run's own training loop, and from them what the whole run will be.

It works in a temporary directory in the place of the run's, and leaves nothing behind.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path
from statistics import fmean

import torch

from prepare.common.cli import UserError
from train.config.pretrain import Config
from train.parallel.device import peak_memory, total_memory
from train.parallel.power import PowerMeter
from train.parallel.world import World
from train.run.checkpoint import all_checkpoints, latest_checkpoint
from train.run.metrics_log import METRICS, duration, read_rows
from train.run.stop_request import StopRequest
from train.trainer.trainer import Trainer

WARMUP_STEPS = 2  # not measured: they compile, allocate, and let DDP order its buckets
MIN_STEPS, MAX_STEPS, MEASURED_SECONDS = 3, 200, 10
NAMES = {"val": "validation", "hellaswag": "HellaSwag", "sample": "sample"}


@contextmanager
def temporary_run(config: Config, world: World) -> Iterator[Config]:
    """Yield the configuration of the same run in a temporary directory, on the same file system as its own.

    The directory holds links to the run's checkpoints and a copy of its metrics, so that training resumes as the run
    would; it is removed at the end. Errors name the run's own directory.
    """
    own = Path(config.run.dir).expanduser().resolve()  # ty: ignore[invalid-argument-type]
    parent = next(folder for folder in own.parents if folder.exists())
    path = parent / f".{own.name}.dry_{world.gather(os.getpid())[0]}"
    try:
        if world.is_main:
            (path / "checkpoints").mkdir(parents=True)
            for checkpoint in all_checkpoints(own):
                (path / "checkpoints" / checkpoint.name).symlink_to(checkpoint)
            if (own / METRICS).exists():
                shutil.copy(own / METRICS, path)
        world.sum([0])  # a barrier: every rank reads the checkpoint
        yield replace(config, run=replace(config.run, dir=str(path)), log=replace(config.log, wandb="disabled"))
    except UserError as mistake:
        raise type(mistake)(str(mistake).replace(str(path), str(own))) from None
    finally:
        if world.is_main:
            shutil.rmtree(path, ignore_errors=True)


@dataclass(frozen=True)
class Part:
    """A part of a run's time: `count` times `each` seconds."""

    name: str
    count: int
    each: float

    @property
    def seconds(self) -> float:
        """The total."""
        return self.count * self.each

    def __str__(self) -> str:
        """`5 x validation 12s`, or `start 3s`."""
        return f"{f'{self.count:,} x ' if self.count > 1 else ''}{self.name} {duration(self.seconds)}"


class DryRun:
    """Stands in for the evaluator in the training loop: measures a few steps and a part of each evaluation, then ends
    the loop, which saves a checkpoint."""

    def __init__(
        self,
        trainer: Trainer,
        time_evaluations: Callable[[int], dict[str, tuple[int, float]]],
        predict: Callable[[int], str] | None,
    ) -> None:
        """
        Args:
            time_evaluations: PretrainEvaluator's.
            predict: describes the loss of a model with this number of parameters in its layers.
        """
        self.predict = predict
        self.trainer, self.world, self.time_evaluations = trainer, trainer.world, time_evaluations
        self.config, self.first, self.last = trainer.config, trainer.step, trainer.config.train.max_steps
        # no save between the measured steps
        trainer.config = replace(self.config, checkpoint=replace(self.config.checkpoint, every=0))
        self.wanted = WARMUP_STEPS + MIN_STEPS
        self.seconds: list[float] = []  # of each step
        self.power = PowerMeter(self.world)

    def run(self) -> None:
        """Measure, and print the table on rank 0. Every rank must call it; it destroys the process group."""
        if self.first >= self.last:
            self.world.print(f"all of train.max_steps {self.last} are done: a larger number resumes the run")
            return
        self.trainer.train(self.evaluate)
        if self.trainer.stopped:
            self.world.print("stopped before everything was measured")
        elif self.world.is_main:
            print("\n" + "\n".join(f"{name:<12} {text}" for name, text in self.table().items()), flush=True)
        self.trainer.log.close()  # NFS keeps a directory that has open files
        self.trainer.run.close()

    def evaluate(self, step: int) -> bool:
        """Record the step that has just ended; return whether enough is measured. Every rank must call it."""
        now = time.perf_counter()
        if step == self.first:
            self.build_seconds = now - self.trainer.run.opened
            if self.world.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # of the search for a micro-batch size
        else:
            self.seconds.append(now - self.resumed)
        if len(self.seconds) >= WARMUP_STEPS:
            self.power.sample()
        if len(self.seconds) == self.wanted == WARMUP_STEPS + MIN_STEPS:
            steps = math.ceil(MEASURED_SECONDS / self.step_seconds)
            self.wanted = WARMUP_STEPS + self.world.min(min(max(steps, MIN_STEPS), MAX_STEPS))
        enough = len(self.seconds) >= self.wanted or step == self.last
        if enough:
            self.watts = self.power.watts()
            self.evaluations = self.time_evaluations(self.first)
            self.memory = max(self.world.gather(peak_memory(self.world.device)))
        self.resumed = time.perf_counter()
        return enough

    @property
    def measured(self) -> list[float]:
        """The seconds of the measured steps; of all, where so few remain."""
        return self.seconds[WARMUP_STEPS:] or self.seconds

    @property
    def step_seconds(self) -> float:
        """The mean of the measured steps."""
        return fmean(self.measured)

    def parts(self) -> list[Part]:
        """The parts of the time that remains, known to rank 0 after the loop."""
        rows = read_rows(self.trainer.run.path / METRICS)
        save = next(row for row in reversed(rows) if row.get("event") == "checkpoint")
        warm_up = sum(each - self.step_seconds for each in self.seconds[:WARMUP_STEPS])
        return [
            Part("start", 1, self.build_seconds + max(0.0, warm_up)),
            Part("step", self.last - self.first, self.step_seconds),
            *(Part(NAMES[kind], count, seconds) for kind, (count, seconds) in self.evaluations.items()),
            Part("save", count_saves(self.first, self.last, self.config.checkpoint.every), save["pause_seconds"]),
            Part("last write", 1, save["write_seconds"]),  # the others are written while steps continue
        ]

    def table(self) -> dict[str, str]:
        """What the run will be, known to rank 0 after the loop."""
        config, trainer, loader, log = self.config, self.trainer, self.trainer.loader, self.trainer.log
        layers = sum(parameter.numel() for parameter in trainer.model.h.parameters())
        size = sum(file.stat().st_size for file in latest_checkpoint(trainer.run.path).iterdir())
        saves, keep_every = config.checkpoint, config.checkpoint.keep_every
        kept = saves.keep + bool(config.eval.every) + (self.last // keep_every if keep_every else 0)
        kept = min(kept, count_saves(0, self.last, saves.every))
        speed, tokens = config.data.batch_tokens / self.step_seconds, loader.tokens_read(self.last)
        mfu = "no MFU, since the peak of this device is not known"
        if log.peak:
            peak = f"{log.peak / self.world.size / 1e12:,.1f} TFLOP/s a GPU, the datasheet's dense bf16"
            mfu = f"MFU {log.flops_per_token * speed / log.peak:.1%} of {peak}"
        epochs = zip(loader.mixture.epochs(loader.first_window(self.last)), loader.mixture.names, strict=True)
        parts = self.parts()
        seconds = sum(part.seconds for part in parts)
        end = datetime.now() + timedelta(seconds=seconds)
        energy = "the power cannot be read here (a GPU's: pip install nvidia-ml-py)"
        if self.watts:
            what = "GPUs" if self.world.device.type == "cuda" else "CPUs"
            energy = f"{self.watts * seconds / 3.6e6:.3g} kWh, at {self.watts:,.0f} W of the {what} alone"
        rows = {
            "measured": f"{len(self.measured)} steps in {sum(self.measured):.1f} s, evaluations in part, and a save",
            "parameters": f"{trainer.model.num_parameters():,}, {layers:,} of them in the layers",
            "memory": f"{as_size(self.memory)} at the peak, of {as_size(total_memory(self.world.device))}"
            + (", in the largest process" if self.world.size > 1 else ""),
            "disk": f"{kept} checkpoints of {as_size(size)} at most, and one more during a save; "
            f"{as_size(shutil.disk_usage(trainer.run.path).free)} are free",
            "data": f"{tokens:,} tokens, " + ", ".join(f"{count:.2f} epochs {name}".rstrip() for count, name in epochs),
            "compute": f"{log.flops_per_token * tokens:.3g} FLOPs, 6 N + 12 L C T a token",
            "speed": f"{speed:,.0f} tokens/s, {mfu}",
            "time": f"{duration(seconds)}{f' from step {self.first:,}' if self.first else ''}: "
            + ", ".join(str(p) for p in parts if p.count),
            "end": f"{end:%Y-%m-%d %H:%M}, if it starts now",
            "energy": energy,
        }
        if math.isfinite(trainer.stop.end):
            rows["slurm"] = slurm_jobs(trainer.stop, seconds, parts[0].seconds)
        if price := config.run.price_per_hour:
            rows["cost"] = f"${price * seconds / 3600:,.2f}, at ${price:g} an hour"
        if self.predict:
            rows["loss"] = self.predict(layers)
        return rows


def count_saves(first: int, last: int, every: int) -> int:
    """The checkpoints that a run saves after step `first`: at the interval, and at the end."""
    return last // every - first // every + (last % every > 0) if every else 1


def slurm_jobs(stop: StopRequest, seconds: float, start: float) -> str:
    """How many jobs with the time limit of this one the run takes, each of which needs `start` seconds to start."""
    limit = stop.end - float(os.environ.get("SLURM_JOB_START_TIME") or time.time())
    useful = limit - stop.margin - start
    if useful <= 0:
        return f"a job of {duration(limit)} has no time to train between its start and its last save: ask for more"
    return f"{math.ceil((seconds - start) / useful)} jobs of {duration(limit)}"


def as_size(n: float) -> str:
    """1.5 GB, or 13.6 MB."""
    return f"{n / 1e9:,.1f} GB" if n >= 1e9 else f"{n / 1e6:,.1f} MB"
