"""Data and settings small enough for a test: a learnable stream of tokens, and a model that learns it in seconds."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prepare.tokens.shards import write_shard
from train.config.pretrain import Config, LogConfig, ModelConfig, PretrainRunConfig, TrainConfig
from train.data.loader import Mixture, WindowLoader
from train.model.build import build_model
from train.model.gpt import GPT
from train.model.transformer import Transformer
from train.parallel.world import World
from train.run import checkpoint
from train.run.run_dir import RunDir
from train.run.stop_request import StopRequest
from train.trainer.trainer import Trainer

VOCAB = 64


def rows(run: Path, kind: str | None = None) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl, of one kind or all, each line of which must be JSON."""
    found = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [row for row in found if kind in (None, row["kind"])]


def markov_tokens(n: int, seed: int) -> np.ndarray:
    """n tokens below VOCAB, uint16, each mostly decided by the one before: entropy about 1 nat a token."""
    rng = np.random.default_rng(0)
    follow = rng.integers(VOCAB, size=(VOCAB, 4))  # four likely successors of each token
    rng = np.random.default_rng(seed)
    choices, noise = rng.integers(4, size=n), rng.random(n)
    tokens = np.empty(n, dtype=np.uint16)
    token = 0
    for i in range(n):
        token = follow[token, choices[i]] if noise[i] < 0.95 else int(noise[i] * 1e6) % VOCAB
        tokens[i] = token
    return tokens


def write_shards(folder: Path, sizes: tuple[int, ...] = (6000, 5000, 3001), val: int = 3000) -> Path:
    """tiny_train_*.bin of the given sizes and a tiny_val_000000.bin in `folder`, without a manifest."""
    folder.mkdir(parents=True, exist_ok=True)
    write_shard(folder / "tiny_val_000000.bin", markov_tokens(val, seed=99))
    for number, size in enumerate(sizes, 1):
        write_shard(folder / f"tiny_train_{number:06d}.bin", markov_tokens(size, seed=number))
    return folder


def save_checkpoint(
    run: Path, step: int, model: Transformer, optimizer: torch.optim.Optimizer | None = None, **meta: Any
) -> None:
    """A checkpoint of a model as it is now; without an optimizer, of one that took no step."""
    state = optimizer.state_dict()["state"] if optimizer else {}
    described = {"model": asdict(model.config), "tokenizer": None, **meta}
    checkpoint.write(run, step, model.state_dict(), {"optimizer": state}, described)


def random_model(noise: float = 0.3, **shape: Any) -> Transformer:
    """A small random model, in evaluation mode, with clear preferences and with biases that are not 0."""
    torch.manual_seed(0)
    small = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "vocab_size": VOCAB}
    model = build_model(ModelConfig(**{**small, **shape})).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(noise * torch.randn_like(parameter))
    return model


def make_run(folder: Path, tokenizer: dict, **shape: Any) -> Path:
    """A run with a checkpoint of a small random model."""
    model = random_model(noise=0.05, **{"vocab_size": 50257, **shape})
    save_checkpoint(folder, 3, model, tokenizer=tokenizer)
    return folder


def tiny_trainer(run: Path, branch: str = "", **sections: Any) -> Trainer:
    """A trainer of a tiny model on one process, with shards in RUN/shards; `sections`: of its configuration."""
    config = Config(
        model=ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=VOCAB),
        **{
            "log": LogConfig(tensorboard=False, wandb="disabled"),
            "train": TrainConfig(max_steps=7, compile=False),
            **sections,
        },
        run=PretrainRunConfig(dir=str(run), branch=branch),
    )
    world = World(0, 1, torch.device("cpu"))
    directory = RunDir(config, world)
    shards = sorted(write_shards(run / "shards").glob("*_train_*"))
    loader = WindowLoader(Mixture({"": shards}, config.data, config.model, seed=1), 4, 2, 0, 1)
    torch.manual_seed(0)
    identity = {"tokenizer": None, "data": loader.mixture.fingerprint(), "batches": {"tokens": 32}}
    stop = StopRequest(run, 60, is_main=True)
    return Trainer(config, world, directory, stop, GPT(config.model), loader, identity)


def two_sources(data: Path) -> dict[str, str]:
    """`changes` for `settings`: write_shards' data as two named sources, with a validation loss each."""
    one, others, val = (f"{data}/tiny_{name}.bin" for name in ("train_000001", "train_00000[23]", "val_000000"))
    train = f"{{one: {{files: {one}, weight: 0.7}}, others: {{files: '{others}', weight: 0.3}}}}"
    return {"data__train": train, "data__val": f"{{one: {val}, others: [{val}]}}"}


def settings(data: Path, run: Path, **changes: object) -> list[str]:
    """A command line of train_gpt2.py for a model of 30,000 parameters on write_shards' data, on CPU.

    `changes` are keys with `__` for the dot: data__batch_tokens=256.
    """
    keys = {
        "model__n_layer": 2,
        "model__n_head": 2,
        "model__n_embd": 32,
        "model__block_size": 32,
        "model__vocab_size": VOCAB,
        "data__train": f"{data}/tiny_train_*.bin",
        "data__val": f"{data}/tiny_val_*.bin",
        "data__batch_tokens": 512,
        "data__micro_batch_size": 4,
        "optim__max_lr": 1e-2,
        "optim__warmup_steps": 5,
        "train__max_steps": 20,
        "train__device": "cpu",
        "train__precision": "fp32",  # sums in another order differ by less than the tests allow
        "train__compile": "false",
        "eval__every": 0,
        "eval__val_tokens": 2048,
        "eval__hellaswag_every": 0,
        "eval__sample_every": 0,
        "checkpoint__every": 0,
        "log__tensorboard": "false",  # 0.1 s of each start
        "log__wandb": "disabled",
        "run__dir": run,
        **changes,
    }
    return [word for key, value in keys.items() for word in (f"--{key.replace('__', '.')}", str(value))]
