"""Chapter 12: an example's tokens with their loss mask, and LoRA's matrices to scale."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from eval.common.curves import GREY
from prepare.finetuning.instructions import Template, encode_conversation, question
from prepare.tokens.tokenizer import GPT2Tokenizer

ROWS = 3  # of tokens
CHARACTER = 0.0215  # width of a letter, of the panel's width
GAP = 0.01
WIDTH, RANK = 768, 32  # of GPT-2 124M's square matrices; 32 because 8 would be too thin to see


def draw() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.4), width_ratios=(1.1, 1))
    draw_loss_mask(left)
    draw_lora(right)
    for panel in left, right:
        panel.axis("off")
    return figure


def draw_loss_mask(panel: Axes) -> None:
    """The tokens in lines, in the colour of the loss mask."""
    tokenizer = GPT2Tokenizer()
    messages = [*question("Name a colour."), ("assistant", "Blue, like the sea.")]
    tokens, loss_mask, _ = encode_conversation(messages, tokenizer, Template(), max_tokens=64)
    x, y = 0.0, 0.82
    for token, counts in zip(tokens, loss_mask, strict=True):
        text = tokenizer.decode([token]).replace(" ", "␣").replace("\n", "⏎")
        width = CHARACTER * len(text) + 2 * GAP
        color = "#f0b46e" if counts else "#d9d9d9"
        panel.add_patch(Rectangle((x, y), width, 0.1, facecolor=color))
        panel.text(x + width / 2, y + 0.045, text, family="monospace", fontsize=9, ha="center", va="center")
        x += width + GAP
        if ("⏎" in text and len(text) == 1) or x > 0.85:
            x, y = 0.0, y - 0.14
    panel.add_patch(Rectangle((0, 0.05), 0.05, 0.07, facecolor="#f0b46e"))
    panel.text(0.07, 0.085, "loss mask true: a target of the loss", va="center", fontsize=9)
    panel.add_patch(Rectangle((0, -0.06), 0.05, 0.07, facecolor="#d9d9d9"))
    panel.text(0.07, -0.025, "false: read, but left out of the loss", va="center", fontsize=9)
    panel.set(xlim=(0, 1), ylim=(-0.08, 1), title="An example and its loss mask")


def draw_lora(panel: Axes) -> None:
    """W, B and A as rectangles, in the model's units."""
    for x, y, width, height, color, name in (
        (0, 0, WIDTH, WIDTH, "#d9d9d9", f"W, frozen\n{WIDTH} x {WIDTH}"),
        (1000, 0, RANK, WIDTH, "#3b6fb6", ""),
        (1130, WIDTH - RANK, WIDTH, RANK, "#3b6fb6", ""),
    ):
        panel.add_patch(Rectangle((x, y), width, height, facecolor=color))
        panel.text(x + width / 2, y + height / 2, name, ha="center", va="center")
    panel.text(880, WIDTH / 2, "+", ha="center", va="center", fontsize=18)
    panel.text(1000 + RANK / 2, -30, f"B, trained\n{WIDTH} x {RANK}", ha="center", va="top", fontsize=9)
    panel.text(1130 + WIDTH / 2, WIDTH - 3 * RANK, f"A, trained\n{RANK} x {WIDTH}", ha="center", va="top", fontsize=9)
    share = 2 * WIDTH * RANK / WIDTH**2
    panel.text(1130, 120, f"together {share:.0%} of W", fontsize=9, color=GREY)
    panel.set(xlim=(0, 1130 + WIDTH), ylim=(-230, WIDTH), aspect="equal", title=f"LoRA of rank {RANK}, to scale")
