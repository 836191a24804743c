"""Left: a block beside the residual stream. Right: GELU, and where the parameters of GPT-2 124M are."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from eval.common.curves import GREY
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.model.linear import linear

PLACES = {"token table": "wte", "position table": "wpe", "attention": ".attn.", "MLP": ".mlp.", "LayerNorms": "ln_"}


def draw() -> Figure:
    figure, panels = plt.subplot_mosaic([["block", "gelu"], ["block", "parameters"]], figsize=(9, 5.2))
    draw_block(panels["block"])
    draw_gelu(panels["gelu"])
    draw_parameters(panels["parameters"])
    return figure


def draw_block(panel: plt.Axes) -> None:
    """From bottom to top: the stream, and two branches that read it and add to it."""
    panel.set(title="A block beside the residual stream", xlim=(-0.5, 4), ylim=(-0.5, 11.5))
    panel.set_axis_off()
    line, head = {"color": GREY, "linewidth": 1.5}, {"arrowstyle": "-|>", "mutation_scale": 18}
    panel.annotate("", (0, 11.5), (0, -0.3), arrowprops={**head, "color": "C0", "linewidth": 3})
    panel.text(0.25, -0.2, "from the embeddings, or the block before", color="C0", va="center")
    panel.text(0.25, 11.2, "to the next block", color="C0", va="center")
    branches = {0.8: ["ln_1", "attention"], 4.8: ["ln_2", "c_fc: C to 4C", "GELU", "c_proj: 4C to C"]}
    for bottom, names in branches.items():
        top = bottom + 1.2 * len(names) + 0.6
        panel.plot((0, 2.2, 2.2), (bottom, bottom, top), **line, zorder=0)
        panel.annotate("", (0.15, top), (2.22, top), arrowprops={**head, **line})
        circle = {"boxstyle": "circle,pad=0.15", "facecolor": "C0", "edgecolor": "C0"}
        panel.text(0, top, "+", color="white", ha="center", va="center", weight="bold", bbox=circle)
        for number, name in enumerate(names):
            colour = "#fdf3e4" if name.startswith("ln") else "#e8f1fa"
            box = {"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": GREY}
            panel.text(2.2, bottom + 0.8 + 1.2 * number, name, ha="center", va="center", bbox=box)


def draw_gelu(panel: plt.Axes) -> None:
    x = torch.linspace(-4, 4, 200)[:, None]
    panel.plot(x, linear(x, torch.ones(1, 1), gelu=True), color="C0", label="GELU")
    panel.plot(x, x.relu().square(), color="C1", linestyle="--", label="squared ReLU (modern)")
    panel.set(title="Activation functions", xlabel="in", ylabel="out", ylim=(-0.6, 4.2))
    panel.legend(loc="upper left")


def draw_parameters(panel: plt.Axes) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(vocab_size=50257))
    sizes = dict.fromkeys(PLACES, 0)
    for name, parameter in model.named_parameters():
        sizes[next(place for place, part in PLACES.items() if part in name)] += parameter.numel()
    bars = panel.barh(list(sizes), [size / 1e6 for size in sizes.values()], color="C0")
    panel.bar_label(bars, [f"{size:,}" for size in sizes.values()], padding=4, fontsize=9)
    panel.invert_yaxis()
    panel.grid(visible=False, axis="y")
    panel.set(title=f"{model.num_parameters():,} parameters", xlabel="millions", xlim=(0, 78))
