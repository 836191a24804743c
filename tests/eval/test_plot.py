"""plot.py: which runs it draws, and where to."""

import json

from eval import plot
from tests.helpers.commands import mistake, run_command


def _run(folder):
    folder.mkdir(parents=True)
    row = {"step": 10, "kind": "train", "loss": 3.0, "lr": 1e-3, "tokens": 5120, "tokens_per_s": 100.0, "mfu": None}
    (folder / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    return folder


def _is_png(path):
    return path.read_bytes().startswith(b"\x89PNG")


def test_one_run_the_newest_by_default_is_drawn_into_its_directory(tmp_path, monkeypatch, capsys):
    named, newest = _run(tmp_path / "named"), _run(tmp_path / "newest")
    monkeypatch.setattr(plot, "newest_run", lambda: newest)
    for arguments, run in (([str(named)], named), ([], newest)):
        plot.main(arguments)
        assert _is_png(run / "loss.png")
        assert capsys.readouterr().out == f"{run / 'loss.png'}\n"


def test_several_runs_are_drawn_from_any_folder(tmp_path):
    runs = [_run(tmp_path / place / "run") for place in "ab"]
    result = run_command("python", plot.__file__, *runs, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert _is_png(tmp_path / "curves.png")


def test_mistakes_are_named(tmp_path):
    assert "absent has no metrics.jsonl" in mistake(plot.main, tmp_path / "absent")[1]
    status, error = mistake(plot.main, _run(tmp_path / "run"), "--output", tmp_path / "absent" / "x.png")
    assert (status, "--output" in error) == (2, True)
