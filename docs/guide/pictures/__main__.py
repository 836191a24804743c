"""Draw the guide's pictures again: `make guide`, or `python -m docs.guide.pictures 04` for one chapter.

NN_name.py beside this file has draw(), which returns the figure of the chapter NN_name.md.
"""

import sys
import time
from importlib import import_module
from pathlib import Path

import matplotlib.pyplot as plt

from eval.common.curves import STYLE, save_figure

GUIDE = Path(__file__).resolve().parents[1]
WIDTH = 7.0  # inches of a picture, at 150 dots per inch


def main(numbers: list[str]) -> None:
    chapters = [path.stem for path in sorted(GUIDE.glob("[0-9]*.md")) if not numbers or path.name[:2] in numbers]
    for chapter in chapters:
        started = time.perf_counter()
        with plt.rc_context(STYLE | {"figure.figsize": (WIDTH, 3.5), "figure.constrained_layout.use": True}):
            picture = save_figure(import_module(f"docs.guide.pictures.{chapter}").draw(), GUIDE / f"{chapter}.png")
        size, seconds = picture.stat().st_size / 1000, time.perf_counter() - started
        print(f"{picture.relative_to(GUIDE.parents[1])}: {size:.0f} kB, drawn in {seconds:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
