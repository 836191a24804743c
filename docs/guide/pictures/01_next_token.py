"""Left: which letter follows which. Right: the loss of a small model, which starts at ln V."""

import math
from collections import Counter
from itertools import pairwise
from string import ascii_lowercase

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from docs.guide.pictures.small_model import read_text, train_small_model
from eval.common.curves import GREY, smooth

LETTERS = " " + ascii_lowercase


def draw() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4))
    text = read_text()
    draw_pairs(left, text)
    draw_loss(right, text)
    return figure


def draw_pairs(panel: Axes, text: str) -> None:
    """The shares of the letters that follow each letter, capitals counted with the small ones."""
    pairs = Counter(pairwise(text.lower().replace("\n", " ")))
    counts = np.array([[pairs[before, after] for after in LETTERS] for before in LETTERS])
    panel.imshow(counts / counts.sum(1, keepdims=True), cmap="viridis", vmin=0, vmax=0.5)
    panel.grid(False)
    names = LETTERS.replace(" ", "␣")
    panel.set_xticks(range(len(names)), names, fontsize=7)
    panel.set_yticks(range(len(names)), names, fontsize=7)
    panel.set(xlabel="next letter", ylabel="letter", title="What follows each letter")


def draw_loss(panel: Axes, text: str) -> None:
    losses = np.array(train_small_model()[2])
    singles, pairs = Counter(text), Counter(pairwise(text))
    unigram = -sum(n * math.log(n / len(text)) for n in singles.values()) / len(text)
    bigram = -sum(n * math.log(n / singles[before]) for (before, _), n in pairs.items()) / len(text)
    levels = {f"knows nothing: ln {len(singles)}": math.log(len(singles))}
    levels |= {"counts of single characters": unigram, "counts of pairs": bigram}
    panel.plot(losses, color="C0", linewidth=0.6, alpha=0.35)
    panel.plot(smooth(losses), color="C0")
    for name, level in levels.items():
        panel.axhline(level, color=GREY, linewidth=1, linestyle="--")
        panel.annotate(f"{name}, {level:.2f}", (len(losses), level + 0.03), ha="right", color=GREY, fontsize=9)
    panel.set(xlabel="steps of training", ylabel="nats per character", title="A small model's loss", ylim=(1.2, 4.5))
