"""The training loop, the same for pretraining and fine-tuning: what differs is the model, the loader and the evaluator.

Nothing is carried from step to step but the number of finished steps and what a checkpoint holds.
"""

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from prepare.common.cli import UserError
from train.config.finetune import FinetuneConfig
from train.config.parsing import plain_config, values_by_key
from train.config.pretrain import Config
from train.data.examples import ExampleLoader
from train.data.loader import WindowLoader, prefetch
from train.model.transformer import Transformer
from train.parallel.compile_ddp import check_replicas, compile_and_wrap_ddp, compiler_errors
from train.parallel.device import autocast, is_out_of_memory, precision_name
from train.parallel.world import World, is_lost_connection, shut_down_distributed
from train.run.async_saver import MAX_FAILURES, AsyncSaver
from train.run.metrics_log import CHANGED, MetricsLog
from train.run.resume import gather_moments, resume
from train.run.run_dir import RunDir
from train.run.stop_request import StopRequest
from train.trainer.optim import build_optimizer, learning_rate
from train.trainer.step import train_step

DRIFT_EVERY = 100  # steps between two comparisons of all ranks' parameters
MAX_SKIPPED = 5  # steps in a row with a non-finite loss or gradient before the run gives up
# Besides optim.*: keys that may change when a run is resumed, although its losses depend on them.
CHANGEABLE = ("train.max_steps", "model.dropout", "tune.dropout", "data.class_weights")


class Trainer:
    """One rank's part of a training run, new or resumed from its latest valid checkpoint.

    The model is trained in place; `step` counts the finished steps.
    """

    def __init__(
        self,
        config: Config | FinetuneConfig,
        world: World,
        run: RunDir,
        stop: StopRequest,
        model: Transformer,
        loader: WindowLoader | ExampleLoader,
        identity: Mapping[str, Any],
        flops_per_token: int = 0,
    ) -> None:
        """Build the optimizer, load the latest checkpoint if there is one, compile the model and wrap it in DDP.

        Args:
            model: on this rank's device, newly initialized; the one that is saved and evaluated.
            identity: stored in every checkpoint, and must be the same when the run is resumed: `data`, `batches`,
                `tokenizer`, and in fine-tuning `init`, the checksum of the pretrained model.
            flops_per_token: for MFU; 0 where sequences differ in length.

        Raises:
            UserError: every checkpoint is corrupt, the latest is not of such a run, or the ranks see different files.
        """
        self.config: Any = config  # with the keys of pretraining or of one kind of fine-tuning
        self.world, self.run, self.stop = world, run, stop
        self.model, self.loader = model, loader
        settings = changeable_settings(config)
        self.identity: dict[str, Any] = {**identity, "optim.optimizer": config.optim.optimizer, "settings": settings}
        self.context = autocast(world.device, config.train.precision)
        bf16, sharded = precision_name(self.context) == "bf16", config.train.shard_optimizer
        self.optimizer = build_optimizer(model, config.optim, bf16, world.rank, world.size, sharded)
        resumed = resume(run.path, model, self.optimizer, self.identity)
        if not world.all_equal(resumed.step, hashlib.sha256(json.dumps(identity["data"]).encode()).hexdigest()):
            raise UserError(
                "the processes see different checkpoints or data: put run.dir and the data on a file system that all "
                "processes share"
            )
        self.step, self.corrupt = resumed.step, resumed.corrupt
        self.skipped = 0  # steps in a row, up to this one, with a non-finite loss or gradient
        self.stopped = False  # by a stop request, before the end
        # the model as the training step calls it: compiled, in DDP
        self.train_model = compile_and_wrap_ddp(model, config.train.compile, world)
        self.log = MetricsLog(run.path, config, self.step, flops_per_token, world, loader.tokens_read)
        self.saver = AsyncSaver(run.path, model, self.optimizer, config.checkpoint, self.log) if world.is_main else None
        if resumed.changes:
            self.log.event(self.step, CHANGED + ", ".join(resumed.changes))

    def train(self, evaluate: Callable[[int], bool]) -> None:
        """Train to train.max_steps, or until all ranks agree to stop or the evaluator ends the run (early stopping).

        When it returns, everything is saved and the process group is destroyed: only rank 0 has work left.

        Args:
            evaluate: called with the number of finished steps, from 0 or the resumed step on, by every rank; evaluates
                what is due, and returns whether to end the run here (see eval/monitor).

        Raises:
            UserError: too many steps in a row were not finite, too many saves failed, or the ranks have drifted apart.
        """
        config, world, log, last = self.config, self.world, self.log, self.config.train.max_steps
        self.run.begin(config, self.corrupt)
        saved = self.step
        batches = prefetch(self.loader.micro_batches, self.step, last)
        while True:
            # save
            every, keep_steps = config.checkpoint.every, config.checkpoint.keep_steps
            is_due = (every and self.step % every == 0) or self.step in keep_steps or self.step == last
            if self.step > saved and (is_due or self.stop.agreed):
                self.save()
                saved = self.step
            elif self.step > saved and self.step % DRIFT_EVERY == 0:
                check_replicas(self.model, self.step, world)

            # evaluate
            if self.stop.agreed or evaluate(self.step) or self.step >= last:
                break

            # step
            start = time.perf_counter()
            micro_batches = next(batches)
            world.record_arrival(self.step + 1)
            lr = learning_rate(self.step, config.optim, last)
            loss, grad_norm = train_step(
                self.train_model, self.optimizer, micro_batches, self.context, lr, config.optim.grad_clip
            )

            # agree: one collective averages the loss, and all ranks decide together whether to continue
            saves_failed = self.saver is not None and self.saver.gave_up
            loss, stops, failures = world.sum([loss.item(), self.stop.requested(), saves_failed])
            loss, grad_norm = loss / world.size, grad_norm.item()
            self.step, self.stop.agreed = self.step + 1, stops > 0

            # log
            log.train_row(self.step, loss, lr, grad_norm, time.perf_counter() - start)
            self.check_step(grad_norm, saves_failed=failures > 0)
            epoch = int(self.loader.epoch_of(self.step))
            if epoch > int(self.loader.epoch_of(self.step - 1)) and self.step < last:
                log.event(self.step, "epoch complete: every training window was read", epoch=epoch + 1)

        if self.step > saved:  # the stop was requested during an evaluation, or the evaluator ended the run
            self.save()
        self.stopped = self.stop.agreed
        shut_down_distributed()
        if self.saver:
            self.saver.finish()

    def save(self) -> None:
        """Check that all ranks hold the same parameters, and start to write a checkpoint. Every rank must call it."""
        check_replicas(self.model, self.step, self.world)
        start = time.perf_counter()
        gather_moments(self.optimizer)
        if self.saver:
            self.saver.save(self.step, self.identity, start)
            self.stop.allow_for_save(self.saver.slowest)

    def check_step(self, grad_norm: float, saves_failed: bool) -> None:
        """Log a skipped step, and the result of the last save once it is known. UserError if the run cannot continue;
        raised on every rank."""
        self.skipped = 0 if math.isfinite(grad_norm) else self.skipped + 1
        if self.skipped:
            self.log.event(self.step, "skipped: the loss or the gradient is not finite", in_a_row=self.skipped)
        if self.saver:
            self.saver.report()
        if self.skipped >= MAX_SKIPPED:
            raise UserError(
                f"{self.skipped} steps in a row had a non-finite loss or gradient, up to step {self.step}: lower "
                f"optim.max_lr, or check the data; the checkpoints before are kept in {self.run.path}"
            )
        if saves_failed:
            raise UserError(
                f"{MAX_FAILURES} saves in a row have failed, up to step {self.step}: make room on the disk; the same "
                f"command resumes from the last checkpoint of {self.run.path}"
            )

    def finish(self) -> None:
        """Print how the run ended, and mark it as DONE unless it was stopped."""
        if self.stopped:
            self.log.event(self.step, f"stopped by {self.stop.reason()}; the same command resumes the run")
            self.stop.clear()
        else:
            self.log.sync()  # DONE, like a checkpoint, promises that the rows before it are on disk
            self.run.finish(max(self.step, self.config.train.max_steps))  # also after early stopping
            self.world.print(f"finished {self.step} steps: {self.run.path}")
        self.log.close()
        self.stop.ignore_signals()


def changeable_settings(config: Config | FinetuneConfig) -> dict[str, Any]:
    """The settings, by key, that may change when a run is resumed: each change is an event in metrics.jsonl."""
    values = values_by_key(plain_config(config))
    del values["optim.optimizer"]  # its state is of another kind
    return {key: value for key, value in values.items() if key.startswith("optim.") or key in CHANGEABLE}


@contextmanager
def one_line_errors(micro_batch_size: int | str) -> Iterator[None]:
    """Turn the machine's failures into one line: out of memory, a rank that is gone, a compiler that does not work."""
    try:
        with compiler_errors():
            yield
    except (RuntimeError, MemoryError) as failure:
        if is_out_of_memory(failure):
            raise UserError(
                f"out of memory with data.micro_batch_size {micro_batch_size}: give a smaller number (the batch stays "
                "the same, by more gradient accumulation), or take a smaller model"
            ) from None
        if is_lost_connection(failure):
            raise UserError(
                "another process of this run is gone, or hangs (the first error above, or its node's log, says why): "
                "the same command resumes from the last checkpoint"
            ) from None
        raise
