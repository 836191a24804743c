"""The report of a sweep: the table, the reference, the power law of a ladder, the picture."""

import json
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from matplotlib.figure import Figure

from eval.monitor import sweep_report
from eval.monitor.sweep_report import write_report
from prepare.common.cli import UserError
from tests.helpers.sweeps import planned_run, write_run


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The pictures that are drawn, which are not written."""
    figures: list[Figure] = []
    monkeypatch.setattr(sweep_report, "save_figure", lambda figure, _output: figures.append(figure))
    yield figures
    plt.close("all")


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
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines[2:6]]
    assert [row[0] for row in cells] == ["max_lr=0.002", "max_lr=0.004", "max_lr=0.001", "max_lr=1"]
    reached = 300 + 300 * 1.9 / 2.9  # from 6.0 to 3.1, the loss of the reference being 4.1
    compared = [f"{reached:.0f}", f"{reached / 600:.1%}", "5"]
    assert cells[0][1:] == ["2", "1,464", "3.1000", "0.1414", "600", "6", "100", *compared]
    assert cells[3][1:] == ["0", "1,464", *["-"] * 8]
    assert "best: max_lr=0.002, loss 3.1000" in lines
    assert "max_lr=1_1 diverged: its loss rose from 8.0000 to 9.0000" in lines
    facts = json.loads((tmp_path / "sweep.json").read_text())
    assert facts["settings"][0]["losses"] == [3.0, 3.2]
    assert facts["settings"][0]["tokens_to_reference"] == pytest.approx(reached)
    assert (facts["reference"], facts["fit"]) == (["max_lr=0.001"], None)
    *curves, finals = figures[0].axes
    assert [len(panel.get_lines()) for panel in curves] == [4, 4, 4]  # the settings and the reference
    assert finals.get_yticklabels()[0].get_text() == "max_lr=0.002  3.1000"
    with pytest.raises(UserError, match="nothing"):
        write_report(tmp_path, runs, ["nothing"])
    write_report(tmp_path, runs, [str(runs[2].path), str(runs[3].path)])  # two runs: their mean
    assert "loss 3.1000, 600 tokens" in (tmp_path / "sweep.md").read_text()


def test_a_ladder_of_sizes_has_a_power_law(tmp_path: Path, figures: list[Figure]) -> None:
    runs = []
    for width in (8, 16, 24, 32):
        for lr, extra in ((1e-3, 0.1), (2e-3, 0.0)):
            values = {"model.n_embd": width, "optim.max_lr": lr}
            run = planned_run(tmp_path, f"n_embd={width},max_lr={lr:g}", 1, width, **values)
            runs.append(write_run(run, [8.0, 6.0, 1.5 + 30 * (12 * width**2 + 13 * width) ** -0.4 + extra]))
    write_report(tmp_path, runs, [])
    fit = json.loads((tmp_path / "sweep.json").read_text())["fit"]
    assert (fit["A"], fit["alpha"], fit["E"]) == pytest.approx((30, 0.4, 1.5), rel=0.03)
    assert fit["sizes"] == [12 * width**2 + 13 * width for width in (32, 24, 16, 8)]
    assert "power law: loss = 1.5" in (tmp_path / "sweep.md").read_text()
    assert len(figures[0].axes) == 5
