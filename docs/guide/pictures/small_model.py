"""A model of characters, small enough to train in a minute on a CPU, for the pictures of several chapters."""

from functools import cache

import torch
from torch import Tensor

from prepare.sources.plays import PLAYS, read_play
from prepare.tokens.tokenizer import CharTokenizer
from train.config.pretrain import ModelConfig, OptimConfig
from train.model.gpt import GPT
from train.trainer.optim import build_optimizer, learning_rate

BLOCK, SEQUENCES, STEPS = 64, 32, 600


def read_text() -> str:
    """The plays that the quickstart trains on, in one string."""
    return "".join(read_play(name) for name in PLAYS)


def random_windows(tokens: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs and targets of a training step, (SEQUENCES, BLOCK) int64 each."""
    starts = torch.randint(len(tokens) - BLOCK, (SEQUENCES, 1), generator=generator)
    windows = tokens[starts + torch.arange(BLOCK + 1)]
    return windows[:, :-1], windows[:, 1:]


@cache
def train_small_model() -> tuple[GPT, CharTokenizer, list[float]]:
    """Train for STEPS steps of SEQUENCES x BLOCK characters: the model, its tokenizer and the loss of each step."""
    tokenizer = CharTokenizer(text := read_text())
    tokens = torch.tensor(tokenizer.encode(text))
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=4, n_embd=64, block_size=BLOCK, vocab_size=tokenizer.vocab_size))
    optim = OptimConfig(optimizer="muon", max_lr=1e-2, min_lr=0.0, warmup_steps=10, schedule="linear")
    optimizer = build_optimizer(model, optim)
    generator, losses = torch.Generator().manual_seed(0), []
    for step in range(STEPS):
        for group in optimizer.param_groups:
            group["lr"] = group["lr_scale"] * learning_rate(step, optim, STEPS)
        loss = model(*random_windows(tokens, generator))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return model.eval(), tokenizer, losses
