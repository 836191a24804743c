"""A tiny trained model, its checkpoints, and ways to corrupt them."""

import os
from pathlib import Path

import torch

from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig, OptimConfig
from train.model.build import build_model
from train.model.transformer import Transformer
from train.trainer.optim import build_optimizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=27)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz\n"
FACTS = {
    "tokenizer": CharTokenizer(CHARACTERS).describe(),
    "data": {"shards": 3, "tokens": 14_001, "sha256": "0123456789abcdef" * 4},
    "batches": {"tokens": 512, "seed": 1, "shuffle": True},
    "optim.optimizer": "adamw",
    "settings": {"optim.max_lr": 1e-3, "optim.betas": [0.9, 0.95], "train.max_steps": 20},
}


def trained(seed: int = 0, config: ModelConfig = CONFIG) -> tuple[Transformer, torch.optim.Optimizer]:
    """A model and its optimizer after one step, so that every state is there."""
    torch.manual_seed(seed)
    model = build_model(config)
    optimizer = build_optimizer(model, OptimConfig())
    idx = torch.randint(config.vocab_size, (2, 8))
    model(idx, idx).backward()
    optimizer.step()
    return model, optimizer


def save(run: Path, step: int, seed: int = 0) -> tuple[Transformer, torch.optim.Optimizer]:
    model, optimizer = trained(seed)
    save_checkpoint(run, step, model, optimizer, **FACTS)
    return model, optimizer


def corrupt_file(file: Path, how: str) -> None:
    content = bytearray(file.read_bytes())
    if how == "missing":
        file.unlink()
    elif how == "flipped":  # one bit, in the middle
        content[len(content) // 2] ^= 1
        file.write_bytes(content)
    else:
        os.truncate(file, len(content) // 2 if how == "cut" else 0)
