"""Measure how fast a training step is, and where its time goes: train_step with the trainer's data loader.

    python tests/programs/step_speed.py --config configs/gpt2_124m.yaml            # on this machine
    torchrun --standalone --nproc_per_node=2 tests/programs/step_speed.py          # over two processes

With --trace FILE, also the all-reduce that nothing hides, the heaviest operations, and a Chrome trace of one step.
compare_training.py compares the step with other programs or settings.
"""

import sys
from pathlib import Path
from typing import Any

if not __package__:
    sys.path[0] = str(Path(__file__).resolve().parents[2])

import argparse
import math
import statistics
import tempfile
import time
from collections import defaultdict
from itertools import chain, pairwise

import numpy as np
import torch
import torch.distributed as dist

from prepare.common.cli import UserError, run_script
from prepare.tokens.shards import find_shards, write_shard
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE
from train.config.pretrain import Config, load_config, sequences_per_rank, with_vocab_size
from train.data.loader import MicroBatch, Mixture, WindowLoader, prefetch
from train.data.windows import common_tokenizer
from train.model.build import build_model
from train.parallel.compile_ddp import compile_and_wrap_ddp
from train.parallel.device import (
    autocast,
    find_micro_batch_size,
    peak_flops,
    peak_memory,
    precision_name,
    prepare_device,
)
from train.parallel.world import World, init_distributed, shut_down_distributed
from train.trainer.optim import build_optimizer, learning_rate
from train.trainer.step import train_step

PHASES = ("data", "forward", "backward", "optimizer")
Sample = dict[str, float]  # of one step: seconds, loss, and the seconds of each phase


class Stopwatch:
    """Seconds in each phase of a step; on a GPU measured by CUDA events, so that nothing waits for it."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, Any]] = []

    def __call__(self, phase: str) -> None:
        now = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            now.record()
        self.marks.append((phase, now))

    def split(self) -> dict[str, float]:
        """Return the seconds by phase since the last call; the GPU must have finished."""
        seconds: dict[str, float] = defaultdict(float)
        for (phase, start), (_, end) in pairwise(self.marks):
            seconds[phase] += start.elapsed_time(end) / 1000 if self.cuda else end - start
        self.marks.clear()
        return seconds


class StepBench:
    """The training step, built as train_gpt2.py builds it."""

    def __init__(self, config: Config, world: World, folder: Path) -> None:
        """`folder`: where a shard of random tokens is written if there are no shards."""
        shards = shards_or_random_tokens(config, folder)
        self.config = config = with_vocab_size(
            config, common_tokenizer([*chain(*shards.values())], config.model.vocab_size)
        )
        self.world, self.step = world, 0
        self.watch = Stopwatch(world.device)
        torch.manual_seed(config.train.seed)
        self.per_rank = sequences_per_rank(config, world.size)
        micro = self.build()
        mixture = Mixture(shards, config.data, config.model, config.train.seed)
        pin = world.device.type == "cuda"
        self.loader = WindowLoader(mixture, self.per_rank, micro, world.rank, world.size, pin)
        self.batches = prefetch(self.loader.micro_batches, 0, sys.maxsize)

    def build(self) -> int:
        """Build the model and its optimizer; return the micro-batch size."""
        config, world = self.config, self.world
        prepare_device(world.device)
        self.model = build_model(config.model, config.train.recompute).to(world.device)
        micro = config.data.micro_batch_size
        if micro == "auto":
            micro = world.min(find_micro_batch_size(self.model, self.per_rank, world.device, config.train.precision))
            if world.device.type == "cuda":
                torch.cuda.reset_peak_memory_stats()  # of the search
        self.context = autocast(world.device, config.train.precision)
        bf16, sharded = precision_name(self.context) == "bf16", config.train.shard_optimizer
        self.optimizer = build_optimizer(self.model, config.optim, bf16, world.rank, world.size, sharded)
        self.train_model = compile_and_wrap_ddp(self.model, config.train.compile, world)
        return micro

    def train_step(self, micro_batches: list[MicroBatch], lr: float) -> torch.Tensor:
        """Train one step; return this rank's loss."""
        grad_clip = self.config.optim.grad_clip
        return train_step(self.train_model, self.optimizer, micro_batches, self.context, lr, grad_clip, self.watch)[0]

    def run(self, steps: int) -> list[Sample]:
        """Train this number of steps, and measure each."""
        samples = []
        for _ in range(steps):
            start = time.perf_counter()
            micro_batches = next(self.batches)
            waited = time.perf_counter() - start
            lr = learning_rate(self.step, self.config.optim, self.config.train.max_steps)
            loss = self.train_step(micro_batches, lr).item()  # as in the trainer: the step has ended on the GPU too
            self.step += 1
            seconds = time.perf_counter() - start
            samples.append({"seconds": seconds, "loss": loss, "data": waited, **self.watch.split()})
        return samples

    def facts(self) -> dict[str, Any]:
        """The model, the batch, and the peak memory in bytes."""
        return {
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "precision": precision_name(self.context),
            "memory": peak_memory(self.world.device),
            "micro_batches": self.per_rank // self.loader.micro_batch_size,
            "micro_batch_size": self.loader.micro_batch_size,
        }


def shards_or_random_tokens(config: Config, folder: Path) -> dict[str, list[Path]]:
    """The shards of the data's sources; without any, one of random tokens, distributed by Zipf's law as words are."""
    try:
        return {name: find_shards(source.files) for name, source in config.data.sources.items()}
    except UserError:
        n, rng = max(1_000_000, 2 * config.data.batch_tokens), np.random.default_rng(0)
        vocab_size = config.model.vocab_size or GPT2_VOCAB_SIZE
        ranks = np.exp(rng.random(n) * math.log(vocab_size)).astype(np.uint16) - 1  # p(rank) ~ 1 / rank
        path = folder / "random_train_000000.bin"
        write_shard(path, ranks)
        return {name: [path] for name in config.data.sources}


def bench_parser() -> argparse.ArgumentParser:
    """Options besides those of train/train_gpt2.py: how many steps are measured, and how many before them are not."""
    parser = argparse.ArgumentParser(allow_abbrev=False)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--warmup", type=int, default=3)
    return parser


def main() -> None:
    parser = bench_parser()
    parser.add_argument("--trace", type=Path)
    options, words = parser.parse_known_args()
    config = load_config(words, "")
    with tempfile.TemporaryDirectory(prefix="train_bench_") as folder:
        world = init_distributed(config.train.device, config.train.timeout_seconds)
        bench = StepBench(config, world, Path(folder))
        warmup, samples = bench.run(options.warmup), bench.run(options.steps)
        facts, seconds = bench.facts(), [sample["seconds"] for sample in samples]
        speeds = (config.data.batch_tokens / each for each in (statistics.median(seconds), max(seconds), min(seconds)))
        phases = ", ".join(f"{phase} {median_ms(samples, phase):,.1f}" for phase in PHASES)
        world.print(
            f"{heading(config, world, facts)}\n"
            f"tokens/s: median {next(speeds):,.0f}, slowest {next(speeds):,.0f}, fastest {next(speeds):,.0f}\n"
            f"step:     {phases} ms; the first step took {warmup[0]['seconds']:.1f} s\n"
            f"memory:   {facts['memory'] / 2**20:,.0f} MiB, {facts['precision']}\n"
            f"FLOP/s:   {flops(config, world, samples)}"
        )
        if options.trace:
            if world.size > 1:
                world.print(f"all-reduce: {all_reduce(bench, samples)}")
            profile(bench, options.trace)
        shut_down_distributed()


def median_ms(samples: list[Sample], key: str = "seconds") -> float:
    return 1000 * statistics.median(sample[key] for sample in samples)


def heading(config: Config, world: World, facts: dict[str, int | str]) -> str:
    """What is measured, and on which device."""
    return (
        f"{facts['parameters']:,} parameters, {config.data.batch_tokens:,} tokens a step = {world.size} processes x "
        f"{facts['micro_batches']} micro-batches x {facts['micro_batch_size']} sequences x {config.model.block_size}; "
        f"{world.describe()}, torch {torch.__version__}, {'compiled' if config.train.compile else 'not compiled'}"
    )


def flops(config: Config, world: World, samples: list[Sample]) -> str:
    """FLOP/s, and MFU where the device's peak is known."""
    with torch.device("meta"):
        per_token = build_model(config.model).flops_per_token()
    achieved = 1000 * per_token * config.data.batch_tokens / median_ms(samples)
    peak = peak_flops(world.device)
    mfu = "no MFU, since this device's peak is not known"
    if peak:
        mfu = f"MFU {achieved / peak / world.size:.1%} of {peak / 1e12:,.1f} TFLOP/s a GPU, the datasheet's dense bf16"
    return f"{achieved / 1e12:,.2f} T, at {per_token / 1e6:,.1f} M a token = 6 N + 12 L C T (PaLM, appendix B); {mfu}"


def all_reduce(bench: StepBench, samples: list[Sample]) -> str:
    """The all-reduce of the gradients alone, and how much of it the backward pass does not hide."""
    gradients = torch.ones(bench.model.num_parameters(), device=bench.world.device)
    seconds = []
    for _ in range(7):
        dist.barrier()
        start = time.perf_counter()
        dist.all_reduce(gradients)
        gradients[0].item()
        seconds.append(time.perf_counter() - start)
    with bench.train_model.no_sync():  # ty: ignore[not-callable]
        without = median_ms(bench.run(len(samples)), "backward")
    return (
        f"{gradients.nbytes / 1e6:,.1f} MB of gradients in {1000 * statistics.median(seconds):,.1f} ms alone; "
        f"{median_ms(samples, 'backward') - without:,.1f} ms are not hidden by the backward pass, which takes "
        f"{without:,.1f} ms without it"
    )


def profile(bench: StepBench, path: Path) -> None:
    """Write a Chrome trace of one step, and print the ten heaviest operations."""
    with torch.profiler.profile() as record:
        bench.run(1)
    if bench.world.is_main:
        record.export_chrome_trace(str(path))
        key = "self_device_time_total" if bench.world.device.type == "cuda" else "self_cpu_time_total"
        print(record.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=70))
        print(f"{path}: open it in chrome://tracing or https://ui.perfetto.dev")


if __name__ == "__main__":
    run_script(main)
