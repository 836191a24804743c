"""Programs that are compared, each in a process of its own, which works when it is told to."""

import json
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from prepare.common.cli import UserError

REPLY = "@reply "  # begins a worker's replies; all else that it prints is passed over


class WorkerEnded(UserError):
    """A worker has failed; its own error is on stderr."""


class Worker:
    """`python -m` of a module that calls `serve`."""

    def __init__(self, name: str, *command: str) -> None:
        self.name, pipe = name, subprocess.PIPE
        self.process = subprocess.Popen([sys.executable, "-m", *command], stdin=pipe, stdout=pipe, text=True)

    def ask(self, request: Any) -> Any:
        """Send a request, and wait for the reply.

        Raises:
            WorkerEnded: there is none.
        """
        with suppress(BrokenPipeError):
            print(json.dumps(request), file=self.process.stdin, flush=True)
        for line in self.process.stdout:
            if line.startswith(REPLY):
                return json.loads(line.removeprefix(REPLY))
        raise WorkerEnded(f"{self.name} has ended, with the error above")

    def close(self) -> None:
        """End the process, once it has finished its work."""
        with suppress(BrokenPipeError):
            self.process.stdin.close()
        self.process.wait()


def serve(answer: Callable[[Any], Any]) -> None:
    """A worker's side: answer each request."""
    for line in sys.stdin:
        print(REPLY + json.dumps(answer(json.loads(line))), flush=True)
