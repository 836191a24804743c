"""A forked Python process is what a fresh one is, to the one that started it and to its own code."""

import json
import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.commands import run_command, start_command
from tests.helpers.fork_server import SUPPORTED

pytestmark = pytest.mark.skipif(not SUPPORTED, reason="processes are adopted on Linux alone")

LOOK = """
import json, os, signal, sys, threading
print(json.dumps({
    "argv": sys.argv, "path": sys.path[:2], "cwd": os.getcwd(), "name": __name__, "package": __package__ or "",
    "environment": sorted(os.environ.items()), "parent": os.getppid(), "group": os.getpgrp(), "session": os.getsid(0),
    "shown": sorted(open("/proc/self/environ").read().strip("\\0").split("\\0")),
    "open": sorted(os.listdir("/proc/self/fd"))[:3], "read": sys.stdin.read(), "threads": threading.active_count(),
    "main": sys.modules["__main__"].__dict__ is globals(),
    "handlers": [str(signal.getsignal(number)) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGPIPE)],
    "stdout": [sys.stdout.encoding, sys.stdout.errors, sys.stdout.line_buffering, sys.stdout.write_through],
    "stderr": [sys.stderr.encoding, sys.stderr.errors, sys.stderr.line_buffering, sys.stderr.write_through],
}))
"""


@pytest.mark.parametrize("how", ["script", "-m", "-c"])
def test_it_finds_what_a_fresh_interpreter_finds(tmp_path: Path, how: str) -> None:
    (tmp_path / "look.py").write_text(LOOK)
    words = {"script": ["look.py"], "-m": ["-m", "look"], "-c": ["-c", LOOK]}[how]
    seen: list[dict[str, Any]] = []
    for fresh in (True, False):
        process = start_command(
            "python", *words, "an argument", cwd=tmp_path, fresh=fresh, stdin=subprocess.PIPE, PYTHONPATH="/a", X="y"
        )
        seen.append(json.loads(process.communicate("typed\n", timeout=60)[0]))
        assert process.returncode == 0
    assert seen[0] == seen[1]
    assert seen[0]["parent"] == os.getpid()


@pytest.mark.parametrize(
    ("code", "status", "error"),
    [
        ("pass", 0, ""),
        ("raise SystemExit(3)", 3, ""),
        ("raise SystemExit('no')", 1, "no\n"),
        ("raise ValueError('a bug')", 1, "ValueError: a bug\n"),
        ("import os; os.kill(os.getpid(), 9)", -signal.SIGKILL, ""),
        ("import os; os.kill(os.getpid(), 2)", -signal.SIGINT, "KeyboardInterrupt\n"),
        ("import atexit, sys; atexit.register(print, 'end', file=sys.stderr)", 0, "end\n"),
    ],
)
def test_it_ends_as_a_fresh_interpreter_ends(code: str, status: int, error: str) -> None:
    for fresh in (True, False):
        result = run_command("python", "-c", code, fresh=fresh)
        assert (result.returncode, result.stdout) == (status, "")
        assert result.stderr.endswith(error)


RANK = """
import os, sys, torch.distributed as dist
dist.init_process_group("gloo")
print(os.environ["RANK"], os.getsid(0) == os.getpid(), "torch._dynamo" in sys.modules, flush=True)
dist.barrier()
"""


def test_torchruns_ranks_are_forked_and_are_its_own_children(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    (tmp_path / "fail.py").write_text("import os; os._exit(5 * int(os.environ['RANK']))")
    torchrun = ("python", "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    result = run_command(*torchrun, tmp_path / "rank.py", OMP_NUM_THREADS="1")
    assert sorted(result.stdout.splitlines()) == ["0 True True", "1 True True"], result.stderr
    failed = run_command(*torchrun, tmp_path / "fail.py", OMP_NUM_THREADS="1")
    assert failed.returncode == 1
    assert "exitcode  : 5" in failed.stderr
