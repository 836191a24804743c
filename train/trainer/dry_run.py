"""A dry run (run.dry): take a few steps of the run's own training loop, and predict its time, memory and energy.

It works in a temporary directory instead of the run's, which is removed at the end.
"""

import math
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import torch

from prepare.common.cli import UserError
from train.config.pretrain import CheckpointConfig, Config
from train.parallel.device import gpu_watts, peak_memory, total_memory
from train.parallel.world import World
from train.run.checkpoint import all_checkpoints, latest_checkpoint
from train.run.metrics_log import METRICS, duration, read_rows
from train.trainer.trainer import Trainer

WARMUP_STEPS = 2  # not measured: they compile, allocate, and let DDP order its buckets
MIN_STEPS, MEASURED_SECONDS = 3, 10.0  # measured: at least both


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
        log = replace(config.log, tensorboard=False, wandb="disabled")
        yield replace(config, run=replace(config.run, dir=str(path)), log=log)
    except UserError as mistake:
        raise type(mistake)(str(mistake).replace(str(path), str(own))) from None
    finally:
        if world.is_main:
            shutil.rmtree(path, ignore_errors=True)


class DryRun:
    """Takes the evaluator's place in the training loop: measures a few steps and a part of each evaluation, then ends
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
        trainer.config = replace(self.config, checkpoint=replace(self.config.checkpoint, every=0, keep_steps=[]))
        self.seconds: list[float] = []  # of each step
        self.watts: list[float] = []  # of this rank's GPU after each step

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
        now, device = time.perf_counter(), self.world.device
        if step == self.first:
            self.build_seconds = now - self.trainer.run.opened
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # of the search for a micro-batch size
        else:
            self.seconds.append(now - self.resumed)
            self.watts.append(gpu_watts(device))
        measured = self.seconds[WARMUP_STEPS:]
        enough = len(measured) >= MIN_STEPS and self.world.min(sum(measured) >= MEASURED_SECONDS) == 1
        enough = enough or step == self.last
        if enough:
            self.measured = measured or self.seconds  # all steps, if hardly any remain
            self.step_seconds = fmean(self.measured)
            self.total_watts = self.world.sum([fmean(self.watts[WARMUP_STEPS:] or self.watts)])[0]
            self.evaluations = self.time_evaluations(self.first)
            self.memory = max(self.world.gather(peak_memory(device)))
        self.resumed = time.perf_counter()
        return enough

    def parts(self) -> list[tuple[str, int, float]]:
        """The parts of the remaining time: name, count, and seconds of each. Known to rank 0 after the loop."""
        rows = read_rows(self.trainer.run.path / METRICS)
        save = next(row for row in reversed(rows) if row.get("event") == "checkpoint")
        warm_up = sum(each - self.step_seconds for each in self.seconds[:WARMUP_STEPS])
        return [
            ("start", 1, self.build_seconds + max(0.0, warm_up)),
            ("step", self.last - self.first, self.step_seconds),
            *((kind, count, seconds) for kind, (count, seconds) in self.evaluations.items()),
            ("save", count_saves(self.first, self.last, self.config.checkpoint), save["pause_seconds"]),
            ("last write", 1, save["write_seconds"]),  # the others are written while steps continue
        ]

    def table(self) -> dict[str, str]:
        """The rows of the table, known to rank 0 after the loop."""
        trainer, loader, log = self.trainer, self.trainer.loader, self.trainer.log
        layers = sum(parameter.numel() for parameter in trainer.model.h.parameters())
        size = sum(file.stat().st_size for file in latest_checkpoint(trainer.run.path).iterdir())
        total = total_memory(self.world.device)
        speed, tokens = self.config.data.batch_tokens / self.step_seconds, loader.tokens_read(self.last)
        mfu = f"{log.flops_per_token * speed / log.peak:.1%}" if log.peak else "unknown (no peak FLOP/s of this device)"
        epochs = zip(loader.mixture.epochs(loader.first_window(self.last)), loader.mixture.names, strict=True)
        parts = [part for part in self.parts() if part[1]]
        seconds = sum(count * each for _, count, each in parts)
        energy = f"{self.total_watts * seconds / 3.6e6:.3g} kWh, at {self.total_watts:,.0f} W of the GPUs alone"
        if math.isnan(self.total_watts):
            energy = "the power cannot be read here (a GPU's: pip install nvidia-ml-py)"
        rows = {
            "parameters": f"{trainer.model.num_parameters():,}, {layers:,} in the layers",
            "memory": f"{self.memory / 1e6:,.0f} MB at the peak of a process, of {total / 1e6:,.0f} MB",
            "disk": f"{size / 1e6:,.1f} MB a checkpoint",
            "data": f"{tokens:,} tokens, " + ", ".join(f"{count:.2f} epochs {name}".rstrip() for count, name in epochs),
            "compute": f"{log.flops_per_token * tokens:.3g} FLOPs, 6 N + 12 L C T a token",
            "speed": f"{speed:,.0f} tokens/s over {len(self.measured)} steps, MFU {mfu}",
            "time": f"{duration(seconds)}{f' from step {self.first:,}' if self.first else ''}: "
            + ", ".join(f"{f'{n:,} x ' if n > 1 else ''}{name} {duration(n * each)}" for name, n, each in parts),
            "energy": energy,
        }
        if price := self.config.run.price_per_hour:
            rows["cost"] = f"${price * seconds / 3600:,.2f}, at ${price:g} an hour"
        if self.predict:
            rows["loss"] = self.predict(layers)
        return rows


def count_saves(first: int, last: int, config: CheckpointConfig) -> int:
    """The checkpoints that a run saves after step `first`: at the interval, at keep_steps, and at the end."""
    steps = {*range(config.every, last, config.every or last), *config.keep_steps, last}
    return sum(first < step <= last for step in steps)
