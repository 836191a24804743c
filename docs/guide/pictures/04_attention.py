"""The attention weights of a trained model's eight heads, while it reads a line."""

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure

from docs.guide.pictures.small_model import train_small_model
from eval.views.attention import attention_weights
from eval.views.recording import record

LINE = "HAMLET:\nTo be, or not to be"


def draw() -> Figure:
    model, tokenizer, _ = train_small_model()
    recording = record(model, torch.tensor(tokenizer.encode(LINE)))
    _, weights = attention_weights(recording.q, recording.k)  # (L, H, T, T)
    layers, heads = weights.shape[:2]
    figure, panels = plt.subplots(layers, heads, figsize=(11, 6), layout="compressed", sharex=True, sharey=True)
    names = [{" ": "␣", "\n": "⏎"}.get(character, character) for character in LINE]
    for (layer, head), panel in zip(
        torch.cartesian_prod(*map(torch.arange, (layers, heads))), panels.flat, strict=True
    ):
        image = panel.imshow(weights[layer, head], cmap="viridis", vmin=0, vmax=1)
        panel.set_title(f"layer {layer + 1}, head {head + 1}", fontsize=10)
        panel.set_xticks(range(len(names)), names, fontsize=6)
        panel.set_yticks(range(len(names)), names, fontsize=6)
        panel.tick_params(length=0)
        panel.grid(False)
    figure.supxlabel("looks at")
    figure.supylabel("position")
    figure.colorbar(image, ax=panels, label="weight", shrink=0.6)
    return figure
