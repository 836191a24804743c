"""Run the project's commands as a user does, and read what they say."""

import os
import socket
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
FAULTS = ROOT / "tests" / "helpers" / "faults.py"  # runs a training script with a fault


def run_command(
    *command: object, cwd: Path = ROOT, timeout: float = 600, **environment: str
) -> subprocess.CompletedProcess:
    """Run a command to its end with text output captured; `python` means this interpreter."""
    words = [sys.executable if word == "python" else str(word) for word in command]
    return subprocess.run(
        words, cwd=cwd, timeout=timeout, capture_output=True, text=True, env={**os.environ, **environment}
    )


def one_line_error(result: subprocess.CompletedProcess, status: int = 1) -> str:
    """Check that a command failed as a user's mistake should, and return its `error: ...` line."""
    assert result.returncode == status, f"exit {result.returncode}\n{result.stdout}\n{result.stderr}"
    assert "Traceback" not in result.stderr, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    return errors[0]


def free_port() -> int:
    """A TCP port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]
