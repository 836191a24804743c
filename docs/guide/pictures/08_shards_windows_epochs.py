"""Which window of which shard is read when, over two epochs and a half."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from eval.common.curves import GREY
from train.data.windows import WindowOrder

COUNTS = [80, 80, 80, 50]  # windows of each shard
EPOCHS, STEP = 2.5, 20  # STEP: windows in a step


def draw() -> Figure:
    order = WindowOrder(COUNTS, seed=1337, shuffle=True)
    figure, panel = plt.subplots(figsize=(9, 3.8))
    numbers = np.arange(int(EPOCHS * order.per_epoch))
    first = np.cumsum([0, *COUNTS])  # of each shard, among all windows
    shards, windows = np.array([order.locate(number) for number in numbers.tolist()]).T
    for epoch in range(int(EPOCHS) + 1):
        start, chosen = epoch * order.per_epoch, numbers // order.per_epoch == epoch
        panel.plot(numbers[chosen] / STEP, (first[shards] + windows)[chosen], "o", markersize=3, color=f"C{epoch % 2}")
        panel.axvline(start / STEP, color=GREY, linewidth=1, linestyle="--")
        panel.text((start + 4) / STEP, first[-1] + 5, f"epoch {epoch + 1}", color=GREY)
    panel.set_yticks((first[1:] + first[:-1]) / 2, [f"shard {shard}" for shard in range(len(COUNTS))])
    panel.set_yticks(first, minor=True)
    panel.grid(visible=False, axis="y")
    panel.grid(visible=True, axis="y", which="minor")
    panel.set(xlabel=f"step of {STEP} windows", ylim=(-4, first[-1] + 22), xlim=(0, numbers[-1] / STEP))
    panel.set_title("Which window is read when")
    return figure
