"""Chapter 10: the words after "thou" in five tragedies, by temperature and after each cut."""

import re
from collections import Counter
from itertools import pairwise

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from eval.generation.sampling import restrict_logits
from prepare.sources.plays import PLAYS, read_play

SHOWN = 25  # words
SETTINGS: list[tuple[str, float, dict]] = [
    ("temperature 0.5", 0.5, {}),
    ("temperature 1", 1.0, {}),
    ("temperature 2", 2.0, {}),
    ("top-k 5", 1.0, {"top_k": 5}),
    ("top-p 0.5", 1.0, {"top_p": 0.5}),
    ("min-p 0.1", 1.0, {"min_p": 0.1}),
]


def draw() -> Figure:
    text = " ".join(read_play(play) for play in PLAYS if play.startswith("tragedies/"))
    words = re.findall(r"[a-z']+|[.,;:?!]", text.lower())
    counts = Counter(following for word, following in pairwise(words) if word == "thou").most_common()
    logits = torch.tensor([[count for _, count in counts]]).float().log()  # (1, V), the most likely word first
    names = [word for word, _ in counts[:SHOWN]]
    figure, panels = plt.subplots(2, 3, figsize=(7, 4.2), sharex=True, sharey="row")
    for panel, (title, temperature, cut) in zip(panels.flat, SETTINGS, strict=True):
        whole = (logits / temperature).softmax(-1)[0]
        left = restrict_logits(logits / temperature, **cut).softmax(-1)[0]
        panel.bar(range(SHOWN), left[:SHOWN], color="C0")
        if cut:
            panel.step(range(SHOWN), whole[:SHOWN], where="mid", color="C1", linewidth=1, label="before the cut")
            remark = f"keeps {int((left > 0).sum())} of {len(counts)} words"
        else:
            remark = f"{whole[SHOWN:].sum():.0%} in {len(counts) - SHOWN} other words"
        panel.text(0.97, 0.93, remark, transform=panel.transAxes, ha="right", va="top", fontsize=8)
        panel.set_title(title, fontsize=10)
        panel.set_xticks(range(SHOWN), names, rotation=90, fontsize=6)
        panel.grid(axis="x", visible=False)
    panels[1, 0].legend(loc="center right", fontsize=8)
    for row in panels:
        row[0].set_ylabel("probability")
    return figure
