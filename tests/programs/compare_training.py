"""Our training step compared with nanoGPT's and build-nanogpt's, or with other settings of ours: docs/benchmarks.md.

    python -m tests.programs.compare_training ../nanoGPT train.precision=fp32 --config configs/quickstart.yaml

Each program runs in a process of its own, with all the cores or the whole GPU while it has its turn: A B C A B C. The
first is ours with the options as given. A checkout's model, optimizer and precision are its own; it trains with the
step that both share: micro-batches, clipping, AdamW. Losses are compared where the initial weights are the same.
"""

import ast
import itertools
import multiprocessing
import statistics
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import fields
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from prepare.common.cli import run_script
from tests.programs.step_speed import PHASES, Sample, StepBench, bench_parser, flops, heading, median_ms
from train.config.pretrain import load_config
from train.data.loader import MicroBatch
from train.parallel.world import init_distributed

CHECKOUTS = {"nanoGPT": "model.py", "build-nanogpt": "train_gpt2.py"}  # the file that defines GPT
TURN = 2  # steps before the next program has its turn


class CheckoutBench(StepBench):
    """The training step of a checkout of nanoGPT or build-nanogpt."""

    def __init__(self, checkout: Path, *args: Any) -> None:
        self.checkout = checkout
        super().__init__(*args)

    def build(self) -> int:
        config, device = self.config, self.world.device
        name, path = next((name, p) for name, file in CHECKOUTS.items() if (p := self.checkout / file).is_file())
        module = load_definitions(path)
        shape = {field.name: getattr(config.model, field.name) for field in fields(module.GPTConfig)}
        if config.model.vocab_size == 50257:
            shape["vocab_size"] = 50304  # as both of them train
        self.model = module.GPT(module.GPTConfig(**shape)).to(device)
        optim = {"weight_decay": config.optim.weight_decay, "learning_rate": config.optim.max_lr}
        if name == "nanoGPT":
            optim["betas"] = config.optim.betas
        self.optimizer = self.model.configure_optimizers(**optim, device_type=device.type)
        self.train_model = torch.compile(self.model) if config.train.compile else self.model
        bf16 = not (name == "nanoGPT" and device.type == "cpu")  # its train.py takes float32 there
        self.context = torch.autocast(device.type, dtype=torch.bfloat16, enabled=bf16)
        torch.set_float32_matmul_precision("high")  # both allow TF32
        return config.data.micro_batch_size

    def train_step(self, micro_batches: list[MicroBatch], lr: float) -> torch.Tensor:
        device = self.world.device
        total = torch.zeros((), device=device)
        for inputs, targets, *_ in micro_batches:
            x, y = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
            self.watch("forward")
            with self.context:
                _, loss = self.train_model(x, y)
                loss = loss / len(micro_batches)
            total += loss.detach()
            self.watch("backward")
            loss.backward()
        self.watch("optimizer")
        nn.utils.clip_grad_norm_(self.model.parameters(), self.config.optim.grad_clip or float("inf"))
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.watch("end")
        return total


def load_definitions(path: Path) -> ModuleType:
    """A script's classes and functions as a module: nothing is trained, and what only training imports is left out."""
    tree = ast.parse(path.read_text())
    first_class = next(node.lineno for node in tree.body if isinstance(node, ast.ClassDef))

    def is_needed(node: ast.stmt) -> bool:
        if isinstance(node, ast.ImportFrom) and (path.parent / f"{node.module}.py").exists():
            return False  # the checkout's own, with imports of its own
        imports = isinstance(node, ast.Import | ast.ImportFrom) and node.lineno < first_class
        return imports or isinstance(node, ast.ClassDef | ast.FunctionDef)

    tree.body = [node for node in tree.body if is_needed(node)]
    module = ModuleType(f"checkout_{path.stem}")
    module.__file__ = str(path)
    module.master_process = False  # build-nanogpt's configure_optimizers looks at it
    sys.modules[module.__name__] = module  # where dataclasses and torch.compile look
    exec(compile(tree, str(path), "exec"), module.__dict__)
    return module


BENCH: StepBench  # of a worker's process


def build(checkout: str, words: list[str], folder: str) -> None:
    """Build a worker's bench: ours, or a checkout's."""
    global BENCH
    config = load_config(words, "")
    parts = (config, init_distributed(config.train.device), Path(tempfile.mkdtemp(dir=folder)))
    BENCH = CheckoutBench(Path(checkout), *parts) if checkout else StepBench(*parts)


def facts() -> dict[str, Any]:
    return BENCH.facts()


def run(steps: int) -> list[Sample]:
    return BENCH.run(steps)


def main() -> None:
    others = list(itertools.takewhile(lambda word: not word.startswith("--"), sys.argv[1:]))
    options, words = bench_parser().parse_known_args(sys.argv[1 + len(others) :])
    config = load_config(words, "")
    with tempfile.TemporaryDirectory() as folder:

        def worker(checkout: str, more: list[str]) -> ProcessPoolExecutor:
            context = multiprocessing.get_context("spawn")
            return ProcessPoolExecutor(1, context, build, (checkout, [*words, *more], folder))

        workers = {"ours": worker("", [])}
        micro = workers["ours"].submit(facts).result()["micro_batch_size"]  # auto is found by ours
        for other in others:
            changes = [f"--{change}" for change in other.split(",")] if "=" in other else []
            same = ["--data.micro_batch_size", str(micro)]
            workers[other] = worker("" if changes else other, changes or same)
        samples: dict[str, list[Sample]] = {name: [] for name in workers}
        for turn in (options.warmup, *(min(TURN, options.steps - done) for done in range(0, options.steps, TURN))):
            for name, executor in workers.items():
                samples[name] += executor.submit(run, turn).result()
        found = {name: executor.submit(facts).result() for name, executor in workers.items()}
        for executor in workers.values():
            executor.shutdown()
    world = init_distributed(config.train.device)
    print(f"{heading(config, world, found['ours'])}; {options.steps} steps each after {options.warmup}")
    print_table(samples, found, options.warmup, config.data.batch_tokens)
    print(f"ours, FLOP/s: {flops(config, world, samples['ours'][options.warmup :])}")


def print_table(samples: dict[str, list[Sample]], facts: dict[str, dict], warmup: int, batch_tokens: int) -> None:
    width = max(map(len, samples))
    print(f"{'':{width}}  tokens/s: median, min, max     ratio  ms: {' '.join(PHASES)}  first step  memory")
    ours = median_ms(samples["ours"][warmup:])
    for name, taken in samples.items():
        steps = taken[warmup:]
        seconds = [step["seconds"] for step in steps]
        median, slowest, fastest = statistics.median(seconds), max(seconds), min(seconds)
        print(
            f"{name:{width}}  {batch_tokens / median:10,.0f} {batch_tokens / slowest:9,.0f} "
            f"{batch_tokens / fastest:9,.0f}  {1000 * median / ours:6.2f}  "
            + " ".join(f"{median_ms(steps, phase):{max(8, len(phase))},.1f}" for phase in PHASES)
            + f"  {taken[0]['seconds']:8.1f} s  {facts[name]['memory'] / 2**20:,.0f} MiB, {facts[name]['precision']}"
        )
    for name, taken in list(samples.items())[1:]:
        if "=" in name and facts[name]["parameters"] == facts["ours"]["parameters"]:
            worst = max(abs(a["loss"] - b["loss"]) for a, b in zip(taken, samples["ours"], strict=True))
            print(f"{name}: losses differ by at most {worst:.1e} from ours in {len(taken)} steps")


if __name__ == "__main__":
    run_script(main)
