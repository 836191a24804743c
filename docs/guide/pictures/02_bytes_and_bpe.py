"""One sentence, cut into tokens by vocabularies of five sizes."""

import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from docs.guide.pictures.small_model import read_text
from prepare.tokens.tokenizer import BPETokenizer, GPT2Tokenizer
from prepare.train_tokenizer import train

LINE = "To be, or not to be: that is the question 😀"
SIZES = (257, 300, 1000, 4096)
COLORS = "#cfe3f5", "#f9d8a8"


def draw() -> Figure:
    figure, panel = plt.subplots(figsize=(9, 2.6))
    text = [read_text().encode()]
    rows = {f"{size:,}": BPETokenizer(train(text, size)) for size in SIZES} | {"50,257 (GPT-2)": GPT2Tokenizer()}
    names = []
    for row, (name, tokenizer) in enumerate(rows.items()):
        ids = tokenizer.encode(LINE)
        draw_tokens(panel, row, [tokenizer.decode_bytes([number]) for number in ids])
        names.append(f"V = {name}: {len(ids)} tokens")
    panel.set_yticks(range(len(names)), names)
    panel.set(xlim=(0, len(LINE.encode())), ylim=(len(names) - 0.4, -0.6), xticks=[], title="Five vocabularies")
    panel.grid(False)
    panel.spines[:].set_visible(False)
    panel.tick_params(length=0)
    return figure


def draw_tokens(panel: Axes, row: int, tokens: list[bytes]) -> None:
    """A box for each token, as wide as its bytes; bytes of an emoji stand as hexadecimal numbers."""
    start = 0
    for number, token in enumerate(tokens):
        box = Rectangle((start, row - 0.4), len(token), 0.8, facecolor=COLORS[number % 2], edgecolor="white")
        panel.add_patch(box)
        for place, byte in enumerate(token, start):
            text, size = (chr(byte).replace(" ", "␣"), 9) if byte < 128 else (f"{byte:x}", 6)
            panel.text(place + 0.5, row, text, ha="center", va="center", family="monospace", fontsize=size)
        start += len(token)
