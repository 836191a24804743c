"""Left: what Muon does to singular values. Middle: schedules. Right: a small model's loss with three optimizers."""

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.figure import Figure

from eval.common.curves import smooth
from prepare.sources.plays import read_play
from prepare.tokens.tokenizer import CharTokenizer
from train.config.pretrain import ModelConfig, OptimConfig
from train.model.gpt import GPT
from train.trainer.muon import orthogonalize
from train.trainer.optim import build_optimizer, learning_rate

STEPS, SEQUENCES, BLOCK = 200, 16, 32
# the best of five each, by the mean loss of the last 20 steps: 2.64 (gradient descent: 0.03, 0.1, 0.3, 1, 3), 2.45
# (AdamW: 1e-3, 3e-3, 5e-3, 1e-2, 3e-2), 2.17 (Muon: 3e-3, 1e-2, 2e-2, 3e-2, 6e-2)
LEARNING_RATES = {"gradient descent": 0.1, "AdamW": 3e-3, "Muon": 1e-2}


def draw() -> Figure:
    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(10, 3.4))
    for (name, lr), style in zip(LEARNING_RATES.items(), (":", "--", "-"), strict=True):
        losses, momentum = train(name, lr)
        right.plot(smooth(np.array(losses)), style, label=f"{name}, {lr:g}")
    right.set(title="Three optimizers", xlabel="step", ylabel="loss", ylim=(2, 4.2))
    right.legend(title="learning rate")
    draw_singular_values(left, momentum)
    draw_schedules(middle)
    return figure


def train(name: str, lr: float) -> tuple[list[float], torch.Tensor | None]:
    """Train on Hamlet's characters: the loss of each step, and Muon's momentum of a matrix, (256, 64)."""
    tokenizer = CharTokenizer(text := read_play("tragedies/hamlet"))
    tokens = torch.tensor(tokenizer.encode(text))
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=64, block_size=BLOCK, vocab_size=tokenizer.vocab_size))
    config = OptimConfig(
        optimizer="muon" if name == "Muon" else "adamw", max_lr=lr, warmup_steps=10, schedule="constant"
    )
    plain = name == "gradient descent"
    optimizer = torch.optim.SGD(model.parameters(), lr) if plain else build_optimizer(model, config)
    losses = []
    for step in range(STEPS):
        windows = tokens[torch.randint(len(tokens) - BLOCK, (SEQUENCES, 1)) + torch.arange(BLOCK + 1)]
        loss = model(windows[:, :-1], windows[:, 1:])
        loss.backward()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, config, STEPS)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return losses, optimizer.state[model.h[0].mlp.c_fc.weight].get("momentum")


def draw_singular_values(panel: plt.Axes, momentum: torch.Tensor) -> None:
    for name, matrix in {"averaged gradient": momentum, "Muon's update": orthogonalize(momentum)}.items():
        values = torch.linalg.svdvals(matrix)
        panel.plot(range(1, len(values) + 1), values, label=name)
    panel.set(title="Singular values", xlabel="largest first", yscale="log", ylim=(1e-5, 3))
    panel.yaxis.set_major_formatter("{x:g}")
    panel.legend(loc="lower left")


def draw_schedules(panel: plt.Axes) -> None:
    for schedule, style in {"cosine": "-", "wsd": "--"}.items():
        config = OptimConfig(max_lr=1.0, warmup_steps=100, schedule=schedule, cooldown=0.4)
        panel.plot([learning_rate(step, config, 1000) for step in range(1000)], style, label=schedule)
    panel.set(title="Schedules", xlabel="step", ylabel="share of the maximum")
    panel.legend(loc="lower left")
