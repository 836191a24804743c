"""The preparation's benchmark: its table on a little text, and an input without text."""

from pathlib import Path

from tests.helpers.commands import one_line_error, run_command

COMMAND = ("python", "prepare/bench.py", "--megabytes", 1, "--workers", 1, "--input")


def test_the_table_of_own_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some words, over and over"}\n' * 5000)
    result = run_command(*COMMAND, path, TMPDIR=str(tmp_path))
    assert result.returncode == 0, result.stderr
    assert "whole pipeline: parquet to shards on disk" in result.stdout
    assert list(tmp_path.iterdir()) == [path]


def test_an_input_without_text(tmp_path: Path) -> None:
    (tmp_path / "blank.jsonl").write_text('{"text": ""}\n')
    assert "no text (1 files)" in one_line_error(run_command(*COMMAND, tmp_path / "blank.jsonl"))
