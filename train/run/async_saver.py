"""Asynchronous checkpoints: the training loop waits only for a copy of the state in memory; a thread writes it."""

import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from prepare.common.cli import UserError, first_line
from train.config.pretrain import CheckpointConfig
from train.model.transformer import Transformer
from train.parallel.device import is_out_of_memory
from train.run import checkpoint
from train.run.metrics_log import MetricsLog

MAX_FAILURES = 3  # saves in a row that may fail (a full disk) before the run gives up


class AsyncSaver:
    """Saves a run's model and optimizer, on rank 0. Two writes never overlap.

    On a GPU the state is copied to pinned memory on a separate CUDA stream, during the next step's forward and backward
    passes; the optimizer step waits for the copy, on the GPU. The copy takes as much memory as the state itself;
    pinned, up to twice that, since PyTorch rounds each tensor up to a power of two.
    """

    def __init__(
        self,
        run_dir: Path,
        model: Transformer,
        optimizer: torch.optim.Optimizer,
        config: CheckpointConfig,
        log: MetricsLog,
    ) -> None:
        self.run_dir, self.model, self.optimizer, self.config, self.log = run_dir, model, optimizer, config, log
        self.failures = 0  # in a row
        self.slowest = 0.0  # seconds, of the saves so far
        self._thread = ThreadPoolExecutor(1, "saver")
        self._writing: tuple[int, float, Future[float]] | None = None  # step, seconds that the loop waited
        self._host: dict[str, Tensor] = {}  # the copy in memory, reused by each save
        self._stream = self._copied = None  # the CUDA stream of the copies, and the event after the last one
        if next(model.parameters()).is_cuda:
            self._stream = torch.cuda.Stream()
            self._pin()
            optimizer.register_step_pre_hook(lambda *_: self._hold_update())

    @property
    def gave_up(self) -> bool:
        """Whether MAX_FAILURES saves in a row have failed."""
        return self.failures >= MAX_FAILURES

    def save(self, step: int, meta: Mapping[str, Any], start: float | None = None) -> None:
        """Copy the state after `step` finished steps, and start to write it; waits for the previous write, if any.
        `start`: the time.perf_counter() at which the training loop began to wait; None: now."""
        start = start or time.perf_counter()
        self.report(wait=True)
        weights, train_state = self._snapshot()
        described = {"model": asdict(self.model.config), **meta}
        val_losses = dict(self.log.val_losses)
        pause = time.perf_counter() - start
        write = self._thread.submit(self._write, step, weights, train_state, described, val_losses)
        self._writing = step, pause, write

    def report(self, wait: bool = False) -> None:
        """Log the result of the last write, if it has ended; with `wait`, when it has."""
        if self._writing is None or not (wait or self._writing[2].done()):
            return
        (step, pause, write), self._writing = self._writing, None
        try:
            seconds = write.result()
        except (OSError, RuntimeError, SafetensorError) as failure:
            reason = first_line(failure)
            self.failures += 1
            self.log.event(
                step,
                f"the checkpoint could not be written ({reason}); the previous one is kept: make room on the disk",
                in_a_row=self.failures,
            )
        else:
            self.failures = 0
            self.slowest = max(self.slowest, pause + seconds)
            self.log.event(step, "checkpoint", pause_seconds=round(pause, 4), write_seconds=round(seconds, 3))

    def finish(self) -> None:
        """Wait for the last write, and prune the checkpoints by the final validation losses. UserError if the last
        write failed."""
        self.report(wait=True)
        self._thread.shutdown()
        if self.failures:
            raise UserError(
                f"the last checkpoint of {self.run_dir} could not be written: make room on the disk; the same "
                "command resumes from the checkpoint before it"
            )
        checkpoint.prune(self.run_dir, self.config, self.log.val_losses)

    def _pin(self) -> None:
        """Pin memory for weights and moments in advance, since that is slow; PyTorch caches it for the saves. UserError
        if the machine does not have enough memory."""
        copies = dict.fromkeys(self.model.parameters(), 1)  # the weights; a frozen parameter has no state
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                copies[parameter] += 1 if "matrices" in group else 2  # Muon's momentum, or AdamW's two moments
        try:
            _ = [torch.empty(p.shape, dtype=p.dtype, pin_memory=True) for p, n in copies.items() for _ in range(n)]
        except RuntimeError as failure:
            if not is_out_of_memory(failure):
                raise
            size = sum(parameter.nbytes * n for parameter, n in copies.items())
            raise UserError(
                "the machine (not its GPU) has no memory for a pinned copy of weights and moments, "
                f"{size / 1e9:.1f} GB and up to twice that: give this job more, or take a smaller model"
            ) from None

    def _snapshot(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        if self._stream is None:
            return self._copies()
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            copies = self._copies()
            self._copied = self._stream.record_event()
        return copies

    def _copies(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        weights = {name: self._copy(name, tensor) for name, tensor in self.model.state_dict().items()}
        # the optimizer's tensors only: its learning rate, betas and weight decay are in the configuration
        moments = {
            index: {key: self._copy(f"{index} {key}", tensor) for key, tensor in state.items()}
            for index, state in self.optimizer.state_dict()["state"].items()
        }
        return weights, {"optimizer": moments}

    def _copy(self, name: str, tensor: Tensor) -> Tensor:
        if name not in self._host:
            self._host[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._stream is not None)
        return self._host[name].copy_(tensor, non_blocking=self._stream is not None)

    def _hold_update(self) -> None:
        """Make the optimizer step wait, on the GPU, until the state that it changes is copied."""
        if self._copied is not None:
            torch.cuda.current_stream().wait_event(self._copied)

    def _write(
        self, step: int, weights: dict[str, Tensor], train_state: dict[str, Any], meta: dict, val_losses: dict
    ) -> float:
        start = time.perf_counter()
        if self._copied is not None:
            self._copied.synchronize()
        self.log.sync()  # a checkpoint relies on the rows before it
        checkpoint.write(self.run_dir, step, weights, train_state, meta)
        checkpoint.prune(self.run_dir, self.config, val_losses)
        return time.perf_counter() - start
