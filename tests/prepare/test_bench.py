"""The preparation's benchmark: its table on a little text, and mistakes in one line."""

from pathlib import Path

from tests.helpers.commands import one_line_error, run_command

COMMAND = ("python", "prepare/bench.py")


def test_the_table_of_own_text(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    path.write_text('{"text": "some words, over and over"}\n' * 5000)
    result = run_command(*COMMAND, "--input", path, "--megabytes", 1, "--runs", 1, "--workers", 1, "--folder", tmp_path)
    assert result.returncode == 0, result.stderr
    assert "whole stage: parquet to shards on disk" in result.stdout
    assert list(tmp_path.iterdir()) == [path]


def test_mistakes(tmp_path: Path) -> None:
    for name, content in (("empty.jsonl", ""), ("blank.jsonl", '{"text": ""}\n')):
        (tmp_path / name).write_text(content)
        assert "no text (1 files)" in one_line_error(run_command(*COMMAND, "--input", tmp_path / name))
    absent = tmp_path / "absent"
    assert f"--folder {absent} is no folder" in one_line_error(run_command(*COMMAND, "--folder", absent))
