"""Chapter 11: a thousand guessers next to GPT-2 124M on HellaSwag, and the noise by the number of tasks."""

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.figure import Figure

from eval.common.curves import GREY
from eval.common.score_table import PUBLISHED
from eval.scoring.log_likelihood import standard_error

TASKS = 10042
CHANCE = 0.25


def draw() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6))
    gpt2 = PUBLISHED["hellaswag plain acc_norm"][1]["124M"]
    guesses = (np.random.default_rng(0).random((1000, TASKS)) < CHANCE).mean(axis=1)
    left.hist(guesses, bins=20, color=GREY, label="1,000 guessers")
    left.errorbar(gpt2, 60, xerr=2 * standard_error(gpt2, TASKS), fmt="o", color="C0", capsize=4)
    left.annotate(f"GPT-2 124M, {gpt2}\n± 2 standard errors", (gpt2, 68), ha="center", color="C0", fontsize=9)
    left.annotate("1,000 guessers", (CHANCE, 157), ha="center", color=GREY, fontsize=9)
    left.set(title="On all 10,042 tasks", xlabel="share of right answers", ylabel="guessers", xlim=(0.23, 0.31))
    left.set_ylim(0, 170)

    tasks = np.geomspace(50, TASKS)
    for accuracy, name, color in (gpt2, "GPT-2 124M", "C0"), (CHANCE, "guessing", GREY):
        errors = np.array([standard_error(accuracy, n) for n in tasks])
        right.fill_between(tasks, accuracy - 2 * errors, accuracy + 2 * errors, color=color, alpha=0.3, linewidth=0)
        right.axhline(accuracy, color=color, label=f"{name} ± 2 standard errors")
    right.set(title="The fewer tasks, the more luck", xlabel="tasks", ylabel="share of right answers", xscale="log")
    right.set_xticks([50, 200, 1000, TASKS], ["50", "200", "1,000", f"{TASKS:,}"])
    right.minorticks_off()
    right.legend()
    return figure
