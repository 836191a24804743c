"""How fast a training step is, and where its time goes: the trainer's own train_step, on the trainer's own loader.

    python train/bench.py --config configs/gpt2_124m.yaml                          # this machine's figures
    python train/bench.py --compare ../build-nanogpt train.precision=fp32          # in turn with others: A B C A B C
    torchrun --standalone --nproc_per_node=2 train/bench.py                        # over processes: all-reduce too

Programs that are compared run in processes of their own, each with all the cores or the whole GPU while it has its
turn. Losses are compared with those of the first program, step by step, where the weights begin the same.
"""

import sys
from pathlib import Path

if not __package__:  # run as a script, from any directory: the repository's root goes first on the path
    sys.path[0] = str(Path(__file__).resolve().parents[1])

import argparse
import json
import math
import re
import resource
import statistics
import subprocess
import tempfile
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import NoReturn

import numpy as np
import torch
import torch.distributed as dist

from prepare.common.cli import ArgumentError, UserError, positive, run_script
from prepare.tokens.shards import find_shards, write_shard
from train.config.pretrain import Config, LogConfig, load_config, sequences_per_rank
from train.data.windows import WindowLoader, WindowOrder, Windows
from train.model.gpt import GPT
from train.parallel.compile_ddp import compile_and_wrap_ddp
from train.parallel.device import autocast, find_micro_batch_size, peak_flops, precision_name, prepare_device
from train.parallel.world import World, init_distributed, shut_down_distributed
from train.peers import Peer
from train.run.async_saver import AsyncSaver
from train.run.checkpoint import gather_moments
from train.run.metrics_log import METRICS, MetricsLog, read_rows
from train.trainer.optim import build_optimizer, learning_rate
from train.trainer.step import train_step

OPENING = """Measure the training step: tokens a second, where its time goes, MFU, memory.

    python train/bench.py --config configs/gpt2_124m.yaml

"""
PHASES = ("data", "forward", "backward", "optimizer")
TURN = 2  # steps before the next program has its turn
REASON = re.compile(r"error: |[\w.]+(Error|Exception|Interrupt)\b")  # begins the line that says what went wrong
SAID = "@bench "  # what a program that is compared says begins with it; all else that it prints is passed over


class Options(argparse.ArgumentParser):
    """The bench's own options; all others are the configuration's."""

    def error(self, message: str) -> NoReturn:
        raise ArgumentError(f"{message} (see --help)")


class Stopwatch:
    """Seconds in each phase of a step. On a GPU by events in its stream, so that nothing waits for the watch."""

    def __init__(self, device: torch.device) -> None:
        self.cuda = device.type == "cuda"
        self.marks: list[tuple[str, torch.cuda.Event | float]] = []

    def __call__(self, phase: str) -> None:
        moment = torch.cuda.Event(enable_timing=True) if self.cuda else time.perf_counter()
        if self.cuda:
            moment.record()
        self.marks.append((phase, moment))

    def split(self) -> dict[str, float]:
        """Seconds by phase since the last call; the GPU must have finished."""
        seconds: dict[str, float] = defaultdict(float)
        for (phase, begun), (_, ended) in pairwise(self.marks):
            seconds[phase] += begun.elapsed_time(ended) / 1000 if self.cuda else ended - begun
        self.marks.clear()
        return seconds


class Program:
    """One program's step, ours or a peer's, built as for training."""

    def __init__(self, config: Config, world: World, folder: Path, peer: Path | None) -> None:
        """`folder` is where random tokens may be written."""
        self.config, self.world, self.step = config, world, 0
        self.watch = Stopwatch(world.device)
        torch.manual_seed(config.train.seed)
        per_rank, micro = sequences_per_rank(config, world.size), config.data.micro_batch_size
        if peer:
            self.peer, self.name = Peer(peer, config.model, config.optim, world.device), str(peer)
            self.model, self.context = self.peer.model, self.peer.context
            if config.train.compile:
                self.peer.model = torch.compile(self.model)
        else:
            prepare_device(world.device)
            self.peer, self.name = None, "ours"
            self.model = GPT(config.model, config.train.recompute).to(world.device)
            if micro == "auto":
                found = find_micro_batch_size(self.model, per_rank, world.device, config.train.precision)
                micro = world.min(found)
                if world.device.type == "cuda":
                    torch.cuda.reset_peak_memory_stats()  # of the tries
            sharded = config.train.shard_optimizer and world.size > 1
            self.optimizer = build_optimizer(self.model, config.optim, sharded)
            self.wrapped = compile_and_wrap_ddp(self.model, config.train.compile, world)
            self.context = autocast(world.device, config.train.precision)
        windows = Windows(tokens(config, folder), config.model.block_size, config.model.vocab_size)
        order = WindowOrder(windows.counts, config.train.seed, config.data.shuffle)
        self.loader = WindowLoader(
            windows, order, per_rank, micro, world.rank, world.size, pin=world.device.type == "cuda"
        )
        self.batches = self.loader.prefetch(0, sys.maxsize)

    def run(self, steps: int) -> list[dict[str, float]]:
        """Train so many steps: `seconds` and `loss` of each, and its seconds in each phase."""
        return [self._timed() for _ in range(steps)]

    def _timed(self) -> dict[str, float]:
        began = time.perf_counter()
        micro_batches = next(self.batches)
        waited = time.perf_counter() - began
        optim = self.config.optim
        lr = learning_rate(self.step, optim, self.config.train.max_steps)
        if self.peer:
            loss = self.peer.step(micro_batches, lr, optim.grad_clip, self.watch)
        else:
            parts = (self.wrapped, self.optimizer, micro_batches, self.context)
            loss, _ = train_step(*parts, lr, optim.grad_clip, mark=self.watch)
        self.step += 1
        loss = loss.item()  # as the trainer does: the step has ended on the device too
        return {"seconds": time.perf_counter() - began, "loss": loss, "data": waited, **self.watch.split()}

    def facts(self) -> dict[str, object]:
        """What it is, and the most memory that it has taken from the machine or the GPU, in bytes."""
        cuda = self.world.device.type == "cuda"
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
        return {
            "name": self.name,
            "peer": self.peer is not None,
            "parameters": sum(parameter.numel() for parameter in self.model.parameters()),
            "precision": precision_name(self.context),
            "memory": torch.cuda.max_memory_reserved() if cuda else memory,  # with that of CUDA graphs
            "micro_batches": self.loader.per_rank // self.loader.micro_batch_size,
            "micro_batch_size": self.loader.micro_batch_size,
        }


def tokens(config: Config, folder: Path) -> list[Path]:
    """The configuration's shards; where there are none, one of random tokens as unevenly frequent as words are."""
    try:
        return find_shards(config.data.train)
    except UserError:
        n, rng = max(1_000_000, 2 * config.data.batch_tokens), np.random.default_rng(0)
        ranks = np.exp(rng.random(n) * math.log(config.model.vocab_size)).astype(np.uint16) - 1  # p(rank) ~ 1 / rank
        path = folder / "random_train_000000.bin"
        write_shard(path, ranks)
        return [path]


class Ended(UserError):
    """A program ended in a failure of its own, no mistake of the user's: the others can go on."""


class Remote:
    """A program in a process of its own, which runs steps when it is told to."""

    def __init__(self, name: str, arguments: list[str]) -> None:
        self.name, self.errors = name, tempfile.TemporaryFile("w+")  # noqa: SIM115  open as long as the process
        command = [sys.executable, str(Path(__file__).resolve()), *arguments, "--turns"]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=self.errors, text=True)

    def run(self, steps: int) -> list[dict[str, float]]:
        return self._ask(str(steps))

    def facts(self) -> dict[str, object]:
        return {**self._ask("facts"), "name": self.name}

    def close(self) -> None:
        with suppress(BrokenPipeError):  # it may have ended already, with something unread
            self.process.stdin.close()
        self.process.wait()

    def _ask(self, what: str) -> object:
        with suppress(BrokenPipeError):  # it has ended: what it said last tells why
            print(what, file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(SAID):
                return json.loads(line.removeprefix(SAID))
        self.errors.seek(0)
        lines = [line for line in self.errors.read().splitlines() if line.strip()] or ["no word"]
        reasons = [line for line in lines if REASON.match(line)] or lines  # advice may follow what went wrong
        kind = UserError if reasons[-1].startswith("error: ") else Ended
        raise kind(f"{self.name} ended: {reasons[-1].removeprefix('error: ')}")


def answer(program: Program) -> None:
    """A compared program's side: a line in, a line out."""
    for line in sys.stdin:
        what = program.facts() if line.strip() == "facts" else program.run(int(line))
        print(SAID + json.dumps(what), flush=True)


def own_options() -> Options:
    """The parser of what is not the configuration's."""
    own = Options(add_help=False, allow_abbrev=False, usage=argparse.SUPPRESS)
    own.add_argument(
        "--compare",
        nargs="+",
        default=[],
        metavar="WHAT",
        help="checkouts of nanoGPT or build-nanogpt, or ours with other values: section.key=value,section.key=value",
    )
    own.add_argument("--steps", type=positive, default=20, metavar="N", help="of each program, after the warm-up")
    own.add_argument("--warmup", type=positive, default=3, metavar="N", help="steps that do not count")
    own.add_argument("--profile", type=Path, metavar="FILE", help="write a Chrome trace of one step of ours")
    own.add_argument("--saves", type=positive, default=0, metavar="N", help="checkpoints to time and throw away")
    own.add_argument("--turns", action="store_true", help=argparse.SUPPRESS)
    own.add_argument("--peer", type=Path, help=argparse.SUPPRESS)
    return own


def as_words(changes: str) -> list[str]:
    """section.key=value,section.key=value as a command line has it."""
    return [word for change in changes.split(",") for word in (f"--{change.split('=')[0]}", change.split("=", 1)[-1])]


def main() -> None:
    own = own_options()
    options, words = own.parse_known_args()
    config = load_config(words, OPENING + own.format_help() + "\n")
    with tempfile.TemporaryDirectory(prefix="train_bench_") as folder:
        if options.compare:
            return compare(config, options, words)
        world = init_distributed(config.train.device, config.train.timeout_seconds)
        program = Program(config, world, Path(folder), options.peer)
        if options.turns:
            return answer(program)
        samples = measure([program], options.steps, options.warmup)[program]
        report(config, world, [program.facts()], [samples], options.warmup)
        world.print(loader_rate(program, samples[options.warmup :]))
        if world.size > 1:
            world.print(all_reduce(program, samples[options.warmup :]))
        if options.saves:
            world.print(saving(program, options.saves, samples[options.warmup :], Path(folder)))
        if options.profile:
            profile(program, options.profile)
        shut_down_distributed()


def compare(config: Config, options: argparse.Namespace, words: list[str]) -> None:
    """Run ours and the others in turn, and print their table."""
    programs = [Remote("ours", words)]
    try:
        same = ["--data.micro_batch_size", str(programs[0].facts()["micro_batch_size"])]  # where it is auto, too
        for what in options.compare:
            programs.append(Remote(what, [*words, *(as_words(what) if "=" in what else [*same, "--peer", what])]))
        samples = measure(programs, options.steps, options.warmup)
        facts = [program.facts() for program in samples]
        report(config, init_distributed(config.train.device), facts, [*samples.values()], options.warmup)
    finally:
        for program in programs:
            program.close()


def measure(
    programs: list[Program] | list[Remote], steps: int, warmup: int
) -> dict[Program | Remote, list[dict[str, float]]]:
    """All steps of each program, the warm-up's first; after it they take turns. One that fails is left out, unless it
    is the first, which the others are compared with."""
    samples: dict[Program | Remote, list[dict[str, float]]] = {program: [] for program in programs}
    for turn in (warmup, *(min(TURN, steps - done) for done in range(0, steps, TURN))):
        for program in tuple(samples):
            try:
                samples[program] += program.run(turn)
            except Ended as failure:
                if program is programs[0]:
                    raise
                print(f"{failure}: left out", flush=True)
                del samples[program]
    return samples


def report(config: Config, world: World, facts: list[dict], samples: list[list[dict]], warmup: int) -> None:
    """Print what was measured."""
    first, size = facts[0], config.data.batch_tokens
    world.print(
        f"{first['parameters']:,} parameters, {size:,} tokens a step = {world.size} processes x "
        f"{first['micro_batches']} micro-batches x {first['micro_batch_size']} sequences x {config.model.block_size}; "
        f"{world.describe()}, torch {torch.__version__}, {'compiled' if config.train.compile else 'not compiled'}; "
        f"{len(samples[0]) - warmup} steps each after {warmup}"
    )
    width = max(len(fact["name"]) for fact in facts)
    world.print(
        f"{'':{width}}  tokens/s: median, min, max     ratio  ms: data forward backward optimizer  first step  memory"
    )
    medians = []
    for fact, steps in zip(facts, samples, strict=True):
        counted = steps[warmup:]
        seconds = [step["seconds"] for step in counted]
        medians.append(size / statistics.median(seconds))
        split = " ".join(
            f"{1000 * statistics.median(step[phase] for step in counted):{max(8, len(phase))},.1f}" for phase in PHASES
        )
        world.print(
            f"{fact['name']:{width}}  {medians[-1]:10,.0f} {size / max(seconds):9,.0f} {size / min(seconds):9,.0f}"
            f"  {medians[0] / medians[-1]:6.2f}  {split}  {steps[0]['seconds']:8.1f} s"
            f"  {fact['memory'] / 2**20:,.0f} MiB, {fact['precision']}"
        )
    with torch.device("meta"):
        flops = GPT(config.model).flops_per_token()
    achieved = flops * medians[0]
    words = f"{flops / 1e6:,.1f} MFLOP a token = 6 N + 12 L C T (PaLM, appendix B): {achieved / 1e12:,.2f} TFLOP/s"
    if peak := peak_flops(world.device):
        peak *= world.size
        words += f", MFU {achieved / peak:.1%} of {peak / 1e12:,.1f} TFLOP/s, the datasheet's dense bf16"
    else:
        words += "; no MFU, since this device's peak is not known"
    world.print(words)
    for fact, steps in list(zip(facts, samples, strict=True))[1:]:
        if fact["parameters"] == first["parameters"] and not fact["peer"]:  # whose weights begin as they like
            worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(steps, samples[0], strict=True))
            world.print(f"{fact['name']}: losses differ by at most {worst:.1e} from ours in {len(steps)} steps")


def loader_rate(program: Program, samples: list[dict[str, float]]) -> str:
    """How fast the loader is by itself, one thread of it, beside this process's steps and a copy of the same bytes."""
    loader, tokens, rates, copies = program.loader, 0, [], []
    for _ in range(7):
        began = time.perf_counter()
        batches = loader.micro_batches(program.step)
        seconds = time.perf_counter() - began
        tokens = sum(batch.inputs.numel() for batch in batches)
        arrays = [tensor.numpy() for batch in batches for tensor in (batch.inputs, batch.targets)]
        places = [np.ones_like(array) for array in arrays]
        began = time.perf_counter()
        for place, array in zip(places, arrays, strict=True):
            np.copyto(place, array)
        rates.append(tokens / seconds)
        copies.append(tokens / (time.perf_counter() - began))
    rate = statistics.median(rates)
    step = tokens / statistics.median(sample["seconds"] for sample in samples)
    return (
        f"loader alone: {rate:,.0f} tokens/s, {rate / step:,.0f} times this process's steps, "
        f"{rate / statistics.median(copies):.0%} of copying its inputs and targets (16 bytes a token)"
    )


def all_reduce(program: Program, samples: list[dict[str, float]]) -> str:
    """What the exchange of gradients takes by itself, and how much of that the backward pass does not hide."""
    gradients = torch.ones(sum(p.numel() for p in program.model.parameters()), device=program.world.device)
    alone = []
    for _ in range(7):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        gradients[0].item()
        alone.append(time.perf_counter() - began)
    with program.wrapped.no_sync():
        silent = program.run(len(samples))
    hidden = [statistics.median(step["backward"] for step in steps) for steps in (samples, silent)]
    return (
        f"all-reduce of {gradients.nbytes / 1e6:,.1f} MB of gradients: {1000 * statistics.median(alone):,.1f} ms "
        f"alone; {1000 * (hidden[0] - hidden[1]):,.1f} ms are not hidden behind the backward pass, which takes "
        f"{1000 * hidden[1]:,.1f} ms without it"
    )


def saving(program: Program, saves: int, samples: list[dict[str, float]], folder: Path) -> str:
    """How long the loop waits for a save, and what the step beside it takes."""
    config = replace(program.config, log=LogConfig(wandb="disabled"))
    log = MetricsLog(folder, config, 0, 0, program.world, int)
    saver = (
        AsyncSaver(folder, program.model, program.optimizer, config.checkpoint, log) if program.world.is_main else None
    )
    beside = []
    for number in range(saves):
        gather_moments(program.optimizer)
        if saver:
            saver.save(number, {"tokenizer": None})
        beside += program.run(1)
        if saver:
            saver.report(wait=True)
    if saver:
        saver.finish()
    log.close()
    rows = read_rows(folder / METRICS) if saver else []
    pauses = [1000 * row["pause_seconds"] for row in rows if "pause_seconds" in row]
    others, those = (1000 * statistics.median(step["seconds"] for step in steps) for steps in (samples, beside))
    return (
        f"checkpoints: the loop waited {', '.join(f'{pause:.1f}' for pause in pauses)} ms, at most "
        f"{max(pauses, default=0) / others:.1%} of a step; steps beside them took {those:,.1f} ms, others {others:,.1f}"
    )


def profile(program: Program, path: Path) -> None:
    """Write a Chrome trace of one step, and print the ten heaviest operations."""
    on_gpu = program.world.device.type == "cuda"
    with torch.profiler.profile() as record:
        program.run(1)
    if program.world.is_main:
        record.export_chrome_trace(str(path))
        key = "self_device_time_total" if on_gpu else "self_cpu_time_total"
        print(record.key_averages().table(sort_by=key, row_limit=10, max_name_column_width=70))
        print(f"{path}: open it in chrome://tracing or https://ui.perfetto.dev")


if __name__ == "__main__":
    run_script(main)
