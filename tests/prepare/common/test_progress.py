"""Progress: a bar on a terminal, plain lines elsewhere."""

import os
import pty
import subprocess
import sys
import termios
from pathlib import Path

import pytest

from prepare.common.progress import Progress
from tests.helpers.commands import ROOT


def test_progress_off_a_terminal_is_plain_lines(capsys: pytest.CaptureFixture) -> None:
    with Progress("reading", 100, "B", every=0.0) as progress:
        progress.update(40)
        progress.note("half way")
        progress.update(60)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("reading:  40%, 40.0 of 100 [")
    assert lines[1] == "half way"
    assert lines[2].startswith("reading: 100%, 100 of 100 [")
    assert "\r" not in "".join(lines)


def test_progress_on_a_terminal_is_a_bar(tmp_path: Path) -> None:
    script = tmp_path / "bar.py"
    script.write_text(
        "from prepare.common.progress import Progress\nwith Progress('reading', 100, 'B') as p:\n    p.update(100)\n"
    )
    read_end, write_end = pty.openpty()
    termios.tcsetwinsize(write_end, (24, 80))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, script], stderr=write_end, check=True, env=environment)
    os.close(write_end)
    assert "\rreading: 100%|" in os.read(read_end, 10_000).decode()
