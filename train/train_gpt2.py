"""Train a GPT-2: shards in, checkpoints out. Alone, or under torchrun on as many processes as there are.

The whole run is below, top to bottom. What a step does is in train/trainer/step.py, what it reads in
train/data/windows.py.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])


import torch

from eval.monitor.pretraining import PretrainEvaluator
from prepare.common.cli import UserError, run_script
from prepare.tokens.shards import find_shards
from train.config.pretrain import Config, load_config, sequences_per_rank
from train.data.windows import WindowLoader, WindowOrder, Windows, common_tokenizer, fingerprint
from train.model.gpt import GPT
from train.parallel.compile_ddp import compile_and_wrap_ddp
from train.parallel.device import autocast, find_micro_batch_size, precision_name, prepare_device
from train.parallel.world import World, init_distributed
from train.run import checkpoint
from train.run.metrics_log import MetricsLog
from train.run.stop_request import StopRequest
from train.trainer.job import changeable_settings, close, complete, one_line_errors, open_run
from train.trainer.optim import build_optimizer
from train.trainer.trainer import Training
from train.weights.load_model import load_initial_weights

OPENING = """Train a GPT-2 on token shards, alone or under torchrun; the same command again goes on where a run stopped.

    torchrun --standalone --nproc_per_node=8 train/train_gpt2.py --config configs/gpt2_124m.yaml

"""


def main() -> None:
    config = load_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        train(config, init_distributed(config.train.device, config.train.timeout_seconds))


def train(config: Config, world: World) -> None:
    per_rank = sequences_per_rank(config, world.size)
    prepare_device(world.device)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The model and its optimizer, new or as the newest checkpoint left them.
    paths = find_shards(config.data.train)
    val_paths = find_shards(config.data.val) if config.eval.every else []
    windows = Windows(paths, config.model.block_size, config.model.vocab_size)
    facts = {
        "tokenizer": common_tokenizer([*paths, *val_paths], config.model.vocab_size),
        "data": fingerprint(windows),
        "batches": {"tokens": config.data.batch_tokens, "seed": config.train.seed, "shuffle": config.data.shuffle},
        "settings": changeable_settings(config, model__dropout=config.model.dropout),
    }
    torch.manual_seed(config.train.seed)
    raw = GPT(config.model, config.train.recompute).to(world.device)
    micro = config.data.micro_batch_size
    if micro == "auto":
        micro = world.min(find_micro_batch_size(raw, per_rank, world.device, config.train.precision))
    optimizer = build_optimizer(raw, config.optim, sharded=config.train.shard_optimizer and world.size > 1)
    resumed = checkpoint.resume(run.path, raw, optimizer, facts, config.data.allow_change)
    if config.train.init_from and not resumed.step:
        name = load_initial_weights(config.train.init_from, raw, facts["tokenizer"])
        world.print(f"begins with the weights of {name}")
    model = compile_and_wrap_ddp(raw, config.train.compile, world)

    # The data: which windows there are, and the order in which they are read.
    order = WindowOrder(windows.counts, config.train.seed, config.data.shuffle, resumed.began)
    loader = WindowLoader(windows, order, per_rank, micro, world.rank, world.size, pin=world.device.type == "cuda")

    log = MetricsLog(run.path, config, resumed.step, raw.flops_per_token(), world, loader.tokens_read)
    context = autocast(world.device, config.train.precision)
    monitor = PretrainEvaluator(config, raw, facts["tokenizer"], val_paths, context, micro, world, log, stop)
    if not world.all_equal(resumed.step, facts["data"]["sha256"], monitor.intervals["hellaswag"]):
        raise UserError(
            "the processes see different checkpoints, shards or HellaSwag files: put run.dir and the data on a file "
            "system that all of them share"
        )
    run.begin(config, resumed.damaged)
    describe(config, raw, loader, context, resumed.step, world)

    # The run, and its end.
    training = Training(
        config=config,
        world=world,
        run=run,
        stop=stop,
        log=log,
        raw=raw,
        model=model,
        optimizer=optimizer,
        context=context,
        loader=loader,
        facts=facts,
        monitor=monitor,
        resumed=resumed,
    )
    stopped = complete(training)
    if world.is_main:
        from eval.common.curves import (
            plot_runs,  # matplotlib, which no other process has to wait for, nor the first step
        )

        plot_runs([run.path], run.path / "loss.png")
    close(training, stopped)


def describe(
    config: Config, model: GPT, loader: WindowLoader, context: torch.autocast, step: int, world: World
) -> None:
    """Say what is about to be trained, on what, and how far the data reaches."""
    windows, steps, data = loader.windows, config.train.max_steps, config.data
    epochs = loader.epoch_of(steps)
    world.print(
        f"model: {model.num_parameters():,} parameters, {precision_name(context)}, "
        f"{'compiled' if config.train.compile else 'not compiled'}, {world.describe()}\n"
        f"data:  {windows.tokens:,} tokens in {len(windows.paths)} shards; {steps:,} steps of {data.batch_tokens:,} "
        f"tokens are {epochs:.2f} epochs\n"
        f"step:  {world.size} processes x {loader.per_rank // loader.micro_batch_size} micro-batches x "
        f"{loader.micro_batch_size} sequences x {config.model.block_size} tokens"
        + (f"\ngoing on from step {step:,}" if step else "")
    )


if __name__ == "__main__":
    run_script(main)
