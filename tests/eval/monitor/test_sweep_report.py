"""The report of a sweep: the table, the reference, the power law of a ladder, the picture."""

import json
import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure

from eval.monitor import sweep_picture
from eval.monitor.sweep_report import write_report
from prepare.common.cli import UserError
from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.sweeps import planned_run, write_run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that are drawn, which are not written."""
    figures: list[Figure] = []
    monkeypatch.setattr(sweep_picture, "save_figure", lambda figure, output: figures.append(figure) or output)
    yield figures
    plt.close("all")


def labels(figure: Figure) -> list[str]:
    """The texts of the legend of all curves."""
    [legend] = [panel.get_legend() for panel in figure.axes if panel.get_label() == "L"]
    return [text.get_text() for text in legend.get_texts()]


def test_a_table_against_a_reference(tmp_path: Path, figures: list[Figure]) -> None:
    """100 tokens a step and 100 tokens a second; the best first, the diverged one last."""
    runs = []
    for lr, finals in ((1e-3, (4.0, 4.2)), (2e-3, (3.0, 3.2)), (4e-3, (3.5,))):
        for seed, final in enumerate(finals, 1):
            run = planned_run(tmp_path, f"max_lr={lr:g}", seed, **{"optim.max_lr": lr})
            runs.append(write_run(run, [8.0, 6.0, final]))
    runs.append(write_run(planned_run(tmp_path, "max_lr=1", 1, **{"optim.max_lr": 1.0}), [8.0, 9.0, 9.0]))
    write_report(tmp_path, runs, ["max_lr=0.001"])
    lines = (tmp_path / "sweep.md").read_text().splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:6]] == [
        "max_lr=0.002",
        "max_lr=0.004",
        "max_lr=0.001",
        "max_lr=1",
    ]
    best, diverged = ([cell.strip() for cell in lines[number].split("|")[2:-1]] for number in (2, 5))
    reached = 300 + 300 * 1.9 / 2.9  # from 6.0 to 3.1, the loss of the reference being 4.1
    assert best == [
        "2/2",
        "1,464",
        "3.1000 +- 0.1414",
        "600",
        "6",
        "100",
        f"{reached:.0f}",
        f"{reached / 600:.1%}",
        "5",
    ]
    assert diverged == ["0/1", "1,464", *["-"] * 7]
    assert "best: max_lr=0.002, validation loss 3.1000 +- 0.1414" in lines
    assert "max_lr=1,seed=1 diverged: its loss rose from 8.0000 to 9.0000" in lines
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["settings"][0]["losses"] == [3.0, 3.2]
    assert facts["settings"][0]["tokens_to_reference"] == pytest.approx(reached)
    assert (facts["reference"], facts["fit"]) == ("max_lr=0.001", None)
    assert labels(figures[0]) == [
        "0.002: 3.1000 ± 0.1414",
        "0.004: 3.5000",
        "0.001: 4.1000 ± 0.1414",
        "final loss of the reference",
    ]
    assert len(figures[0].axes) == 5  # with the final loss against the learning rate, and the legend
    with pytest.raises(UserError, match="nothing is not a run"):
        write_report(tmp_path, runs, ["nothing"])
    write_report(tmp_path, runs[:2] + runs[-1:], [str(runs[2].path), str(runs[3].path)])  # of two runs, their mean
    assert len(figures[1].axes) == 4
    text = (tmp_path / "sweep.md").read_text()
    assert "validation loss 3.1000 after 600 tokens" in text
    assert "the best optim.max_lr is the smallest of this sweep: widen the grid" in text


def test_a_ladder_of_sizes_has_a_power_law_and_many_curves_are_grouped(tmp_path: Path, figures: list[Figure]) -> None:
    runs = []
    for width in (8, 16, 24, 32):
        for lr, extra in ((1e-3, 0.1), (2e-3, 0.0), (4e-3, 0.05)):
            values = {"model.n_embd": width, "optim.max_lr": lr}
            run = planned_run(tmp_path, f"n_embd={width},max_lr={lr:g}", 1, width, **values)
            runs.append(write_run(run, [8.0, 6.0, 1.5 + 30 * (12 * width**2 + 13 * width) ** -0.4 + extra]))
    write_report(tmp_path, runs, [])
    fit = json.loads((tmp_path / "sweep.json").read_text())["fit"]
    assert (fit["A"], fit["alpha"], fit["E"]) == pytest.approx((30, 0.4, 1.5), rel=0.01)
    assert fit["sizes"] == [12 * width**2 + 13 * width for width in (32, 24, 16, 8)]
    assert "power law: loss = 1.50" in (tmp_path / "sweep.md").read_text()
    assert labels(figures[0])[-1] == "2 others"
    assert len(labels(figures[0])) == 11
    assert len(figures[0].axes) == 6


def test_bits_per_byte_where_the_data_is_at_hand(tmp_path: Path, figures: list[Figure]) -> None:
    """As eval/val_loss.py: the bytes of the evaluated targets, here two of each three."""
    tokenizer = CharTokenizer("ab\u00e9")
    tokens = np.array([0, 1, 2] * 20, dtype=np.uint16)
    shard = write_shard(tmp_path / "x_val_000000.bin", tokens)
    write_manifest(tmp_path, build_manifest("", None, [], tokenizer.describe(), {}, [shard]))
    run = planned_run(tmp_path, val=str(tmp_path / "*_val_*.bin"))
    write_run(run, [8.0, 3.0])
    write_report(tmp_path, [run], [])
    [row] = json.loads((tmp_path / "sweep.json").read_text())["settings"]
    targets = tokens[1 : 1 + 56]
    assert row["bits_per_byte"] == pytest.approx(3 / math.log(2) / (1 + (targets == 2).mean()))
    assert figures
