"""Left: the small letters' embeddings in a trained model, in two dimensions. Right: its positions, compared."""

import matplotlib.pyplot as plt
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch.nn import functional as F

from docs.guide.pictures.small_model import train_small_model

GROUPS = {"vowels": ("aeiou", "C1"), "consonants": ("bcdfghjklmnpqrstvwxyz", "C0")}


def draw() -> Figure:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 4.2), layout="compressed")
    model, tokenizer, _ = train_small_model()
    characters = "".join(group for group, _ in GROUPS.values())
    wte, wpe = model.wte.weight.detach(), model.wpe.weight.detach()
    rows = wte[tokenizer.encode(characters)]  # (characters, C)
    rows = F.normalize(rows - rows.mean(0))
    _, _, directions = torch.linalg.svd(rows - rows.mean(0), full_matrices=False)
    draw_letters(left, dict(zip(characters, (rows @ directions[:2].T).tolist(), strict=True)))
    positions = F.normalize(wpe - wpe.mean(0))
    image = right.imshow(positions @ positions.T, cmap="viridis", vmin=-1, vmax=1)
    figure.colorbar(image, label="cosine", shrink=0.85)
    right.grid(False)
    right.set(title="wpe: positions that are alike", xlabel="position", ylabel="position")
    return figure


def draw_letters(panel: Axes, places: dict[str, list[float]]) -> None:
    for name, (group, color) in GROUPS.items():
        for character in group:
            panel.text(*places[character], character, color=color, ha="center", va="center", fontsize=13)
        panel.plot([], [], "o", color=color, label=name)
    x, y = zip(*places.values(), strict=True)
    panel.set(xlim=(min(x) - 0.1, max(x) + 0.1), ylim=(min(y) - 0.1, max(y) + 0.25), xticks=[], yticks=[])
    panel.set_title("wte: letters that are alike")
    panel.legend(loc="upper left", ncols=3)
