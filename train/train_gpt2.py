"""Train a GPT-2 or modern model: shards in, checkpoints out. In one process, or in several under torchrun.

A whole run is `train` below (what is built) and Trainer.train in train/trainer/trainer.py (the loop).
"""

import sys
from contextlib import nullcontext
from itertools import chain
from pathlib import Path

if __name__ == "__main__":  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])
    from prepare.common.cli import run_command

    run_command(__file__, unattended=True)  # imports this file as a module, runs its main, and exits

import torch

from eval.monitor.pretraining import PretrainEvaluator
from prepare.tokens.shards import find_shards
from train.config.pretrain import Config, load_config, sequences_per_rank, with_vocab_size
from train.data.loader import Mixture, WindowLoader
from train.data.windows import check_training_shards, common_tokenizer
from train.model.build import build_model
from train.parallel.device import find_micro_batch_size, precision_name, prepare_device
from train.parallel.world import World, init_distributed
from train.run.checkpoint import latest_checkpoint
from train.run.run_dir import open_run
from train.run.stop_request import StopRequest
from train.sweeping.power_law import open_fit
from train.trainer.dry_run import DryRun, temporary_run
from train.trainer.trainer import Trainer, one_line_errors
from train.weights.load_model import load_initial_weights

MAX_EPOCHS = 4  # up to here repeated text trains about as well as new text (Muennighoff et al. 2023)
OPENING = """Train a GPT-2 or modern model on token shards, also under torchrun; the same command again resumes the run.

    torchrun --standalone --nproc_per_node=8 train/train_gpt2.py --config configs/gpt2_124m.yaml

"""


def main() -> None:
    config = load_config(None, OPENING)
    with one_line_errors(config.data.micro_batch_size):
        world = init_distributed(config.train.device, config.train.timeout_seconds)
        with temporary_run(config, world) if config.run.dry else nullcontext(config) as config:
            train(config, world)


def train(config: Config, world: World) -> None:
    # The run directory
    per_rank = sequences_per_rank(config, world.size)
    prepare_device(world.device)
    run = open_run(config, world)
    if run is None:
        return
    stop = StopRequest(run.path, config.checkpoint.margin_seconds, world.is_main)

    # The shards
    sources = {name: find_shards(source.files) for name, source in config.data.sources.items()}
    val = {name: find_shards(globs) for name, globs in config.data.val_globs.items()} if config.eval.every else {}
    val_shards = list(chain(*val.values()))
    check_training_shards(sources, val_shards)
    tokenizer = common_tokenizer([*chain(*sources.values()), *val_shards], config.model.vocab_size)
    config = with_vocab_size(config, tokenizer)
    mixture = Mixture(sources, config.data, config.model, config.train.seed)

    # The model
    torch.manual_seed(config.train.seed)
    model = build_model(config.model, config.train.recompute).to(world.device)
    if config.train.init_from and not latest_checkpoint(run.path):
        world.print(f"initial weights: {load_initial_weights(config.train.init_from, model, tokenizer)}")

    # The data loader
    micro = config.data.micro_batch_size
    if micro == "auto":
        micro = world.min(find_micro_batch_size(model, per_rank, world.device, config.train.precision))
    loader = WindowLoader(mixture, per_rank, micro, world.rank, world.size, pin=world.device.type == "cuda")

    # The run
    batches = {"tokens": config.data.batch_tokens, "seed": config.train.seed, "shuffle": config.data.shuffle}
    identity = {"tokenizer": tokenizer, "data": mixture.fingerprint(), "batches": batches}
    trainer = Trainer(config, world, run, stop, model, loader, identity, model.flops_per_token())
    evaluator = PretrainEvaluator(trainer, val, micro)
    print_summary(trainer)
    if config.run.dry:
        DryRun(trainer, evaluator.time_evaluations, open_fit(config.run.fit)).run()
        return
    trainer.train(evaluator.run)
    if world.is_main:
        from eval.common.curves import plot_runs  # imports matplotlib, which only rank 0 needs, at the end

        plot_runs([run.path], run.path / "loss.png")
    trainer.finish()


def print_summary(trainer: Trainer) -> None:
    """Print the model, the steps and the data of the run that is about to start; log its sources."""
    config, world, loader = trainer.config, trainer.world, trainer.loader
    steps, compiled = config.train.max_steps, "compiled" if config.train.compile else "not compiled"
    world.print(
        f"model: {trainer.model.num_parameters():,} parameters, {precision_name(trainer.context)}, {compiled}, "
        f"{world.describe()}\n"
        f"step:  {world.size} processes x {loader.per_rank // loader.micro_batch_size} micro-batches x "
        f"{loader.micro_batch_size} sequences x {config.model.block_size} tokens"
        + (f"\nresumed at step {trainer.step:,}" if trainer.step else "")
    )
    mixture, windows = loader.mixture, loader.first_window(steps)
    tokens = mixture.windows_read(windows) * config.model.block_size
    facts = zip(mixture.names, mixture.windows, tokens, mixture.epochs(windows), strict=True)
    for name, source, read, epochs in facts:
        size = f"{source.tokens:,} tokens in {len(source.paths)} shards"
        if name:
            event = f"source {name}: {size}; {steps:,} steps read {read:,}, {epochs:.2f} epochs"
            trainer.log.event(trainer.step, event)
        else:
            world.print(
                f"data:  {size}; {steps:,} steps of {config.data.batch_tokens:,} tokens are {epochs:.2f} epochs"
            )
        if epochs > MAX_EPOCHS:
            event = f"warning: source {name or 'data.train'} is read {epochs:.1f} times, but after {MAX_EPOCHS} "
            event += "repeating gains little (arXiv:2305.16264): add text, or lower its weight or train.max_steps"
            trainer.log.event(trainer.step, event)
