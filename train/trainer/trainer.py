"""The training loop, the same for whatever is trained: what differs is the model, the loader and the monitor.

Nothing is carried from step to step but the number of finished steps and what a checkpoint holds.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

import torch
from torch import nn

from prepare.common.cli import UserError
from train.config.pretrain import Config
from train.data.windows import Began
from train.model.gpt import GPT
from train.parallel.compile_ddp import check_replicas
from train.parallel.world import World
from train.run.async_saver import MAX_FAILURES, AsyncSaver
from train.run.checkpoint import ResumeState
from train.run.metrics_log import CHANGED, MetricsLog
from train.run.run_dir import RunDir
from train.run.stop_request import StopRequest
from train.trainer import faults
from train.trainer.grad_norms import GradNorms
from train.trainer.optim import gather_moments, learning_rate
from train.trainer.step import MicroBatches, train_step

DRIFT_EVERY = 100  # steps between two comparisons of all ranks' parameters
MAX_SKIPPED = 5  # steps in a row with a non-finite loss or gradient before the run gives up


class Reads(Protocol):
    """One rank's share of what is read (train.data.windows.WindowLoader, train.examples.ExampleLoader), by the step alone."""

    began: Began

    def prefetch(self, first: int, last: int) -> Iterator[MicroBatches]:
        """The micro-batches of steps first ... last - 1."""

    def weights(self, step: int) -> Sequence[float]:
        """The weight of each micro-batch's mean loss in the mean of the whole batch."""

    def seeds(self, step: int) -> Sequence[int]:
        """The seed of each one's dropout."""

    def epoch_of(self, step: int) -> float:
        """Epochs read when `step` steps are done."""

    def position(self, step: int) -> dict[str, int]:
        """Where the data is after `step` steps, as a checkpoint states it."""


class Measures(Protocol):
    """What is measured between the steps (eval.monitor.pretraining.PretrainEvaluator)."""

    finished: bool  # there is nothing left to gain: the run ends here, before train.max_steps

    def run(self, step: int) -> bool:
        """Measure what is due after `step` finished steps; whether to stop here. On every rank."""


@dataclass
class Training:
    """A run with all of its parts, where `resumed` says that it goes on."""

    config: Config  # or one of fine-tuning's: the sections optim, train and checkpoint
    world: World
    run: RunDir
    stop: StopRequest
    log: MetricsLog
    raw: GPT  # the module itself: it is saved and measured
    model: nn.Module  # as the step calls it: compiled, in DDP
    optimizer: torch.optim.Optimizer
    context: torch.autocast
    loader: Reads
    facts: dict[str, Any]  # what the run must agree with when it is resumed
    monitor: Measures
    resumed: ResumeState

    def __post_init__(self) -> None:
        """At the step that it goes on from; what is different from before is written down."""
        config, resumed = self.config, self.resumed
        self.step = resumed.step  # finished steps
        self.skipped = resumed.skipped  # steps in a row up to this one whose loss or gradient was not finite
        self.norms = GradNorms(config.optim.spike_window, config.optim.spike_zscore, resumed.grad_norms)
        main = self.world.is_main
        self.saver = AsyncSaver(self.run.path, self.raw, self.optimizer, config.checkpoint, self.log) if main else None
        if resumed.changes:
            self.log.event(resumed.step, CHANGED + ", ".join(resumed.changes))


def run_steps(t: Training) -> bool:
    """Train up to train.max_steps, or until all ranks agree to stop or the monitor has seen enough; whether one of the
    two ended it. Either way the run is saved, once `t.saver` has finished.

    Raises:
        UserError: too many steps in a row were not finite, too many saves failed, or the ranks have drifted apart.
    """
    config, world, log, last = t.config, t.world, t.log, t.config.train.max_steps
    saved = t.step
    batches = t.loader.prefetch(t.step, last)
    while True:
        at_interval = config.checkpoint.every and t.step % config.checkpoint.every == 0
        if t.step > saved and (at_interval or t.stop.agreed or t.step == last):
            save(t)
            saved = t.step
        elif t.step > saved and t.step % DRIFT_EVERY == 0:
            check_replicas(t.raw, t.step, world)
        stopping = t.stop.agreed or t.monitor.run(t.step)
        if stopping or t.step >= last:
            break

        start = time.perf_counter()
        micro_batches = next(batches)
        faults.inject(t.step + 1, world.rank, t.raw)
        world.arrived(t.step + 1)
        lr, limit = learning_rate(t.step, config.optim, last), t.norms.limit()
        loss, grad_norm = train_step(
            t.model,
            t.optimizer,
            micro_batches,
            t.context,
            lr,
            config.optim.grad_clip,
            t.loader.seeds(t.step),
            skip_above=limit if config.optim.skip_spikes else math.inf,
            weights=t.loader.weights(t.step),
        )
        # One collective averages the loss and lets all ranks decide together whether to go on.
        gave_up = t.saver is not None and t.saver.gave_up
        loss, stops, failures = world.sum([loss.item(), t.stop.requested(), gave_up])
        loss, grad_norm = loss / world.size, grad_norm.item()
        t.step, t.stop.agreed = t.step + 1, stops > 0
        log.train_row(t.step, loss, lr, grad_norm, time.perf_counter() - start)

        t.norms.add(grad_norm)
        t.run.beat(t.step)
        t.skipped = 0 if math.isfinite(grad_norm) else t.skipped + 1
        judge(t, grad_norm, limit, saves_failed=failures > 0)
        epoch = int(t.loader.epoch_of(t.step))
        if epoch > int(t.loader.epoch_of(t.step - 1)) and t.step < last:
            log.event(t.step, "all the data was read; the next epoch begins", epoch=epoch + 1)

    if t.step > saved:  # the stop was asked for in the middle of a measurement
        save(t)
    return stopping


def save(t: Training) -> None:
    """Begin a checkpoint of the present step, unless the ranks differ. Every rank must call it."""
    check_replicas(t.raw, t.step, t.world)
    gather_moments(t.optimizer)
    if t.saver:
        state = {"position": t.loader.position(t.step), "grad_norms": list(t.norms.latest), "skipped": t.skipped}
        t.saver.save(t.step, {**t.facts, "began": asdict(t.loader.began), **state})
        t.stop.allow_for(t.saver.slowest)


def judge(t: Training, grad_norm: float, limit: float, saves_failed: bool) -> None:
    """Write down what was wrong with the step just made, and how the last save went.

    Raises:
        UserError: the run cannot go on; on all ranks.
    """
    optim = t.config.optim
    if t.skipped:
        t.log.event(t.step, "skipped: the loss or the gradient is not finite", in_a_row=t.skipped)
    elif grad_norm > limit:
        words = "a gradient norm out of line" + (": the step is skipped" if optim.skip_spikes else "")
        t.log.event(t.step, words, grad_norm=grad_norm, limit=limit)
    if t.saver:
        t.saver.report()
    if t.skipped >= MAX_SKIPPED:
        raise UserError(
            f"{t.skipped} steps in a row had a non-finite loss or gradient, up to step {t.step}: lower optim.max_lr, "
            f"or check the data; what was saved before is kept in {t.run.path}"
        )
    if saves_failed:
        raise UserError(
            f"{MAX_FAILURES} saves in a row have failed, up to step {t.step}: make room on the disk; the same command "
            f"goes on from the last checkpoint of {t.run.path}"
        )
