"""Train a GPT-2: shards in, checkpoints out. Alone, or under torchrun on as many processes as there are.

The whole run is below, top to bottom. What a step does is in train/step.py, what it reads in train/loader.py.
"""

import sys
from pathlib import Path

if not __package__: sys.path[0] = str(Path(__file__).resolve().parents[1])  # noqa: E701  scripts run from anywhere

import math
import time

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel as DDP

from eval.curves import plot_runs
from eval.monitor import Monitor
from prepare.cli import UserError, run_script
from prepare.shards import find_shards, read_manifest
from train import checkpoint, distributed
from train.config import Config, load_config, sequences_per_rank
from train.distributed import World
from train.hardware import autocast, fitting_micro_batch, is_out_of_memory, keep_freed_memory
from train.loader import Loader, WindowOrder, Windows, check_tokenizer, fingerprint
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
            "same, in more micro-batches)"
        ) from None
    finally:
        distributed.stop()


def train(config: Config, world: World) -> None:
    per_rank = sequences_per_rank(config, world.size)
    run = RunDir(config, world)
    if run.is_done:
        return world.say(f"{run.path} is finished (DONE is there): eval/ scores it; another --run.dir starts a new run")
    if world.device.type == "cpu":
        keep_freed_memory()
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The data: which windows there are, and the order in which they are read.
    paths = find_shards(config.data.train)
    windows = Windows(paths, config.model.block_size, config.model.vocab_size)
    order = WindowOrder(windows.counts, config.train.seed, config.data.shuffle)
    manifest = read_manifest(paths[0].parent)
    facts = {"tokenizer": manifest and manifest["tokenizer"], "data": fingerprint(paths)}
    check_tokenizer(facts["tokenizer"], config.model.vocab_size, paths[0].parent)

    # The model and its optimizer, new or as the latest checkpoint left them.
    torch.manual_seed(config.train.seed)
    raw = GPT(config.model).to(world.device)
    optimizer = build_optimizer(raw, config.optim)
    step = checkpoint.resume(run.path, raw, optimizer, facts, config.data.allow_change)
    micro = config.data.micro_batch_size
    if micro == "auto":
        micro = world.smallest(fitting_micro_batch(raw, per_rank, world.device, config.train.precision))
    loader = Loader(windows, order, per_rank, micro, world.rank, world.size)
    model = wrap(raw, config.train.compile, world)

    log = RunLog(run.path, config, step, raw.flops_per_token(), world)
    context = autocast(world.device, config.train.precision)
    monitor = Monitor(config, raw, facts["tokenizer"], context, micro, world, log, stop)
    run.begin(config)
    describe(config, raw, loader, step, world)

    # The run. `step` counts finished steps.
    first, last, skipped = step, config.train.max_steps, 0
    batches = loader.prefetch(first, last)
    while True:
        stopping = monitor.run(step) or stop.agreed
        at_interval = config.checkpoint.every and step % config.checkpoint.every == 0
        if step > first and (at_interval or stopping or step == last):
            log.sync()
            if world.is_main:
                checkpoint.save(run.path, step, raw, optimizer, facts, config.checkpoint.keep)
        if stopping or step >= last:
            break

        began = time.perf_counter()
        micro_batches = next(batches)
        lr = learning_rate(step, config.optim, last)
        seeds = dropout_seeds(config.train.seed, loader.first_window(step), micro, len(micro_batches))
        loss, grad_norm = train_step(model, optimizer, micro_batches, context, lr, config.optim.grad_clip, seeds)
        # One collective averages the loss and lets all ranks decide together whether to stop.
        loss_sum, stop.agreed = world.sum([loss.item(), stop.requested()])
        loss, grad_norm, step = loss_sum / world.size, grad_norm.item(), step + 1
        log.train_row(step, loss, lr, grad_norm, time.perf_counter() - began)

        skipped = 0 if math.isfinite(grad_norm) else skipped + 1
        if skipped:
            log.event(step, "skipped: the gradient is not finite", in_a_row=skipped)
        if skipped == config.optim.max_skipped:
            raise UserError(
                f"{skipped} steps in a row had a non-finite gradient, up to step {step}: lower optim.max_lr, or check "
                f"the data; the last good checkpoint is kept in {run.path}"
            )
        if loader.epoch_of(step) // 1 > loader.epoch_of(step - 1) // 1 and step < last:
            log.event(step, "all windows were read; the next epoch begins", epoch=int(loader.epoch_of(step)) + 1)

    if world.is_main:
        plot_runs([run.path], run.path / "loss.png")
    if step >= last:
        run.finish(step)
        log.say(f"finished {step} steps: {run.path}")
    else:
        log.event(step, f"stopped by {stop.reason()}; the same command goes on from here")
        stop.clear()
    log.close()


def wrap(raw: GPT, compiled: bool, world: World) -> nn.Module:
    """The model as the training step calls it; `raw` stays as it is, for evaluation, generation and checkpoints."""
    model = torch.compile(raw) if compiled else raw
    if world.size == 1:
        return model
    return DDP(model, device_ids=[world.device.index] if world.device.type == "cuda" else None)


def describe(config: Config, model: GPT, loader: Loader, step: int, world: World) -> None:
    """Say what is about to be trained, on what, and how far the data reaches."""
    windows, steps, data = loader.windows, config.train.max_steps, config.data
    epochs = loader.epoch_of(steps)
    world.say(
        f"model: {model.num_parameters():,} parameters, "
        f"{'compiled' if config.train.compile else 'not compiled'}, {world.describe()}\n"
        f"data:  {windows.tokens:,} tokens in {len(windows.paths)} shards; {steps:,} steps of {data.batch_tokens:,} "
        f"tokens are {epochs:.2f} epochs\n"
        f"step:  {world.size} processes x {loader.per_rank // loader.micro_batch_size} micro-batches x "
        f"{loader.micro_batch_size} sequences x {config.model.block_size} tokens"
        + (f"\ngoing on from step {step:,}" if step else "")
    )


if __name__ == "__main__":
    run_script(main)
