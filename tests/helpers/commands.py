"""Run the project's commands as a user does, and read what they say."""

import os
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import IO

import pytest

from prepare.common.cli import ArgumentError, UserError
from tests.helpers.fork_server import SUPPORTED, ForkedPopen

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "tests" / "helpers" / "faults.py"  # runs a training script with a fault


def start_command(
    *command: object,
    cwd: Path = ROOT,
    fresh: bool = False,
    stdin: int | IO | None = None,
    stdout: int = subprocess.PIPE,
    stderr: int = subprocess.STDOUT,
    **environment: str,
) -> subprocess.Popen:
    """Start a command, by default with its output in a pipe; `python` means this interpreter.

    Python's processes are forked from one that has imported PyTorch (tests/helpers/fork_server.py), which saves 3 s of
    CPU each; `fresh` starts a new interpreter, where its start itself is tested.
    """
    words = [sys.executable if word == "python" else str(word) for word in command]
    popen = subprocess.Popen if fresh or not SUPPORTED else ForkedPopen
    environment = {**os.environ, **environment}
    return popen(words, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, text=True, env=environment)


def run_command(
    *command: object, cwd: Path = ROOT, timeout: float = 600, fresh: bool = False, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command as start_command does, to its end, with standard output and error apart."""
    with start_command(*command, cwd=cwd, fresh=fresh, stderr=subprocess.PIPE, **environment) as process:
        try:
            stdout, stderr = process.communicate(timeout=timeout)
        except BaseException:
            process.kill()
            raise
    return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)


def one_line_error(result: subprocess.CompletedProcess, status: int = 1) -> str:
    """Check that a command failed as a user's mistake should, and return its `error: ...` line."""
    assert result.returncode == status, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]


def mistake(main: Callable[[list[str]], None], *words: object) -> tuple[int, str]:
    """The exit status and the message with which a command's `main` ends in this process: run_script prints them."""
    with pytest.raises((UserError, OSError)) as failure:
        main([str(word) for word in words])
    return 2 if isinstance(failure.value, ArgumentError) else 1, str(failure.value)


def free_port() -> int:
    """A TCP port that no process listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
