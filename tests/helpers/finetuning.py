"""What the tests of both kinds of fine-tuning share: a model to begin with, and runs as subprocesses."""

import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import FAULTS, ROOT, run_command
from tests.helpers.tiny import VOCAB, save_checkpoint
from train.config.pretrain import ModelConfig
from train.data.examples import Examples
from train.model.build import build_model
from train.model.loss import IGNORE_INDEX

SETTINGS = {
    "data.batch_examples": 16,
    "data.micro_batch_size": 4,
    "optim.max_lr": 3e-3,
    "optim.warmup_steps": 2,
    "train.max_steps": 12,
    "train.device": "cpu",
    "train.precision": "fp32",
    "eval.every": 4,
    "eval.patience": 0,
    "checkpoint.every": 4,
    "log.every": 1,
    "log.tensorboard": "false",
    "log.wandb": "disabled",
}


def base_model(folder: Path, tokenizer: dict | None = None, **shape: Any) -> Path:
    """A run with a checkpoint of a random model, for --init."""
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 16, "block_size": 48, "vocab_size": 50257, **shape}
    save_checkpoint(folder, 3, build_model(ModelConfig(**shape)), tokenizer=tokenizer or GPT2Tokenizer().describe())
    return folder


def random_examples(n: int = 23, seed: int = 0, longest: int = 16) -> Examples:
    """n random examples of 2 to `longest` tokens, each with a prompt that the loss mask leaves out."""
    rng = np.random.default_rng(seed)
    rows = []
    for _ in range(n):
        length = int(rng.integers(2, longest + 1))
        prompt = int(rng.integers(0, length))
        targets = rng.integers(VOCAB, size=length)
        targets[:prompt] = IGNORE_INDEX
        rows.append((rng.integers(VOCAB, size=length).tolist(), targets.tolist()))
    return Examples.from_rows(rows)


def words(init: Path, data: Path, run: Path, **changes: object) -> list[str]:
    """A command line; `changes` are keys with `__` for the dot."""
    keys = {"init": init, "data.train": data, "run.dir": run, **SETTINGS}
    keys |= {key.replace("__", "."): value for key, value in changes.items()}
    return [word for key, value in keys.items() for word in (f"--{key}", str(value))]


def finetune(
    kind: str, init: Path, data: Path, run: Path, processes: int = 1, fault: str = "", **changes: object
) -> subprocess.CompletedProcess:
    """Run train/finetune_<kind>.py to its end."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"] if processes > 1 else []
    script = ROOT / "train" / f"finetune_{kind}.py"
    fault_script = [FAULTS, fault] if fault else []
    return run_command(
        "python", *torchrun, *fault_script, script, *words(init, data, run, **changes), OMP_NUM_THREADS="1"
    )
