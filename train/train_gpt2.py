"""Train a GPT-2: shards in, checkpoints out. Alone, or under torchrun on as many processes as there are.

The whole run is below, top to bottom. What a step does is in train/step.py, what it reads in train/loader.py.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import math
import os
import shutil
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from eval.curves import plot_runs
from eval.monitor import Monitor
from prepare.cli import UserError, run_script
from prepare.shards import find_shards
from train import checkpoint, distributed
from train.config import Config, load_config, sequences_per_rank
from train.distributed import World
from train.hardware import autocast, computes_in, fitting_micro_batch, is_out_of_memory, keep_freed_memory
from train.loader import Loader, WindowOrder, Windows, common_tokenizer, fingerprint
from train.model import GPT
from train.optim import build_optimizer, learning_rate
from train.run_dir import RunDir
from train.run_log import RunLog
from train.step import dropout_seeds, train_step
from train.stopping import StopRequest

OPENING = """Train a GPT-2 on token shards, alone or under torchrun; the same command again goes on where a run stopped.

    torchrun --standalone --nproc_per_node=8 train/train_gpt2.py --config configs/gpt2_124m.yaml

"""


def main() -> None:
    config = load_config(None, OPENING)
    try:
        train(config, distributed.start(config.train.device))
    except (RuntimeError, MemoryError) as failure:
        if not is_out_of_memory(failure):
            raise
        raise UserError(
            f"out of memory with data.micro_batch_size {config.data.micro_batch_size}: lower it (the batch stays the "
            "same, in more micro-batches), or take a smaller model"
        ) from None
    distributed.stop()


def train(config: Config, world: World) -> None:
    per_rank = sequences_per_rank(config, world.size)
    if world.device.type == "cpu":
        keep_freed_memory()
    run = RunDir(config, world)
    if not world.agree(run.is_done):
        raise UserError(f"the processes do not see the same {run.path}: put run.dir on a file system that all share")
    if run.is_done:
        return world.say(f"{run.path} is finished (DONE is there): eval/ scores it; another --run.dir starts a new run")
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The data: which windows there are, and the order in which they are read.
    paths = find_shards(config.data.train)
    val_paths = find_shards(config.data.val) if config.eval.every else []
    windows = Windows(paths, config.model.block_size, config.model.vocab_size)
    order = WindowOrder(windows.counts, config.train.seed, config.data.shuffle)
    facts = {
        "tokenizer": common_tokenizer([*paths, *val_paths], config.model.vocab_size),
        "data": fingerprint(paths),
        "batches": {"tokens": config.data.batch_tokens, "seed": config.train.seed, "shuffle": config.data.shuffle},
    }

    # The model and its optimizer, new or as the latest checkpoint left them.
    torch.manual_seed(config.train.seed)
    raw = GPT(config.model).to(world.device)
    micro = config.data.micro_batch_size
    if micro == "auto":
        micro = world.smallest(fitting_micro_batch(raw, per_rank, world.device, config.train.precision))
    optimizer = build_optimizer(raw, config.optim)
    step = checkpoint.resume(run.path, raw, optimizer, facts, config.data.allow_change)
    loader = Loader(windows, order, per_rank, micro, world.rank, world.size, pin=world.device.type == "cuda")
    model = wrap(raw, config.train.compile, world)

    log = RunLog(run.path, config, step, raw.flops_per_token(), world)
    context = autocast(world.device, config.train.precision)
    monitor = Monitor(config, raw, facts["tokenizer"], val_paths, context, micro, world, log, stop)
    if not world.agree(step, int(facts["data"][:12], 16), monitor.intervals["hellaswag"]):
        raise UserError(
            "the processes see different checkpoints, shards or HellaSwag files: put run.dir and the data on a file "
            "system that all of them share"
        )
    run.begin(config)
    describe(config, raw, loader, context, step, world)

    def save() -> None:
        log.sync()
        if world.is_main:
            checkpoint.save(run.path, step, raw, optimizer, facts, config.checkpoint.keep)

    # The run. `step` counts finished steps.
    first, last = step, config.train.max_steps
    saved, skipped = step, 0
    batches = loader.prefetch(first, last)
    while True:
        at_interval = config.checkpoint.every and step % config.checkpoint.every == 0
        if step > saved and (at_interval or stop.agreed or step == last):
            save()
            saved = step
        stopping = stop.agreed or monitor.run(step)
        if stopping or step >= last:
            break

        began = time.perf_counter()
        micro_batches = next(batches)
        lr = learning_rate(step, config.optim, last)
        seeds = dropout_seeds(config.train.seed, loader.first_window(step), micro, len(micro_batches))
        loss, grad_norm = train_step(model, optimizer, micro_batches, context, lr, config.optim.grad_clip, seeds)
        # One collective averages the loss and lets all ranks decide together whether to stop.
        loss_sum, asked = world.sum([loss.item(), stop.requested()])
        loss, grad_norm, step, stop.agreed = loss_sum / world.size, grad_norm.item(), step + 1, asked > 0
        log.train_row(step, loss, lr, grad_norm, time.perf_counter() - began)

        skipped = 0 if math.isfinite(grad_norm) else skipped + 1
        if skipped:
            log.event(step, "skipped: the gradient is not finite", in_a_row=skipped)
        if skipped == config.optim.max_skipped:
            raise UserError(
                f"{skipped} steps in a row had a non-finite gradient, up to step {step}: lower optim.max_lr, or check "
                f"the data; what was saved before is kept in {run.path}"
            )
        if loader.epoch_of(step) // 1 > loader.epoch_of(step - 1) // 1 and step < last:
            log.event(step, "all windows were read; the next epoch begins", epoch=int(loader.epoch_of(step)) + 1)

    if step > saved:  # the stop was asked for in the middle of a measurement
        save()
    if world.is_main:
        plot_runs([run.path], run.path / "loss.png")
    if stopping:
        log.event(step, f"stopped by {stop.reason()}; the same command goes on from here")
        stop.clear()
    else:
        run.finish(step)
        log.say(f"finished {step} steps: {run.path}")
    log.close()


def wrap(raw: GPT, compiled: bool, world: World) -> nn.Module:
    """The model as the training step calls it; `raw` stays as it is, for evaluation, generation and checkpoints."""
    if compiled and not any(map(shutil.which, (os.environ.get("CXX", "c++"), "g++", "gcc", "clang"))):
        raise UserError("train.compile needs a C++ compiler, and none is there: get g++, or set train.compile false")
    model = torch.compile(raw) if compiled else raw
    if world.size == 1:
        return model
    return DDP(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)


def describe(config: Config, model: GPT, loader: Loader, context: torch.autocast, step: int, world: World) -> None:
    """Say what is about to be trained, on what, and how far the data reaches."""
    windows, steps, data = loader.windows, config.train.max_steps, config.data
    epochs = loader.epoch_of(steps)
    world.say(
        f"model: {model.num_parameters():,} parameters, {computes_in(context)}, "
        f"{'compiled' if config.train.compile else 'not compiled'}, {world.describe()}\n"
        f"data:  {windows.tokens:,} tokens in {len(windows.paths)} shards; {steps:,} steps of {data.batch_tokens:,} "
        f"tokens are {epochs:.2f} epochs\n"
        f"step:  {world.size} processes x {loader.per_rank // loader.micro_batch_size} micro-batches x "
        f"{loader.micro_batch_size} sequences x {config.model.block_size} tokens"
        + (f"\ngoing on from step {step:,}" if step else "")
    )


if __name__ == "__main__":
    run_script(main)
