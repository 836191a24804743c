"""plot.py: which runs it draws, where to, and its messages."""

import json
import os

import pytest

from eval import plot
from prepare.common.cli import ArgumentError, UserError
from tests.helpers.commands import one_line_error, run_command


def _run(folder, loss=3.0):
    folder.mkdir(parents=True)
    row = {"step": 10, "kind": "train", "loss": loss, "lr": 1e-3, "tokens": 5120, "tokens_per_s": 100.0, "mfu": None}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def _is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_one_run_is_drawn_into_its_directory(tmp_path, capsys):
    run = _run(tmp_path / "run")
    plot.main([str(run)])
    assert _is_png(run / "loss.png")
    assert capsys.readouterr().out == f"{run / 'loss.png'}\n"


def test_several_runs_of_the_same_name_are_drawn_from_any_folder(tmp_path):
    runs = [_run(tmp_path / place / "run") for place in "ab"]
    result = run_command("python", plot.__file__, *runs, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert _is_png(tmp_path / "curves.png")


def test_without_a_run_the_newest_is_drawn(tmp_path, monkeypatch):
    monkeypatch.setattr(plot, "RUNS", tmp_path)
    with pytest.raises(UserError, match="name a RUN"):
        plot.main([])
    for age, name in ((50, "older"), (10, "newer"), (90, "oldest")):
        metrics = _run(tmp_path / name) / "metrics.jsonl"
        os.utime(metrics, (1e9 - age, 1e9 - age))
    plot.main([])
    assert [path.parent.name for path in tmp_path.glob("*/loss.png")] == ["newer"]


def test_mistakes_are_one_line(tmp_path):
    run, begun = _run(tmp_path / "run"), tmp_path / "begun"
    line = one_line_error(run_command("python", "eval/plot.py", tmp_path / "absent"))
    assert "absent has no metrics.jsonl" in line
    begun.mkdir()
    (begun / "metrics.jsonl").write_text('{"step": 0, "kind": "event", "event": "started"}\n')
    with pytest.raises(UserError, match="nothing to draw yet"):
        plot.main([str(begun)])
    for output in (tmp_path / "absent" / "x.png", tmp_path):
        with pytest.raises(ArgumentError, match="name a file"):
            plot.main([str(run), f"--output={output}"])
