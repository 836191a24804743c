"""A run's directory: who may use it, and whether it is new, to be gone on with, or finished."""

import json
import os
import socket
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from prepare.common.cli import UserError
from prepare.common.files import FileLock, atomic_write, atomic_write_text
from train.config.parsing import save_config
from train.config.pretrain import Config
from train.parallel.world import World
from train.run.checkpoint import latest, remove_unfinished, rename_corrupt
from train.run.metrics_log import METRICS

DONE, CONFIG, HEARTBEAT = "DONE", "config.yaml", "heartbeat.json"
BEAT_SECONDS = 1.0


class RunDir:
    """The directory of this run, held by rank 0 for as long as the process lives.

    Raises:
        UserError: another process trains in it, or `run.fresh` and it is used already.
    """

    def __init__(self, config: Config, world: World) -> None:
        self.path, self.max_steps = Path(config.run.dir).expanduser().resolve(), config.train.max_steps
        metrics, began = self.path / METRICS, f"began {self.path}"
        used = latest(self.path) or (metrics.exists() and metrics.stat().st_size > 0)
        if config.run.fresh and used and not world.has_flag(began):  # what it began itself, torchrun may start again
            raise UserError(f"{self.path} holds a run already, and run.fresh is set: choose another --run.dir")
        self.is_main = world.is_main
        self.last_beat = -BEAT_SECONDS
        if self.is_main:
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise UserError(f"run.dir {self.path} is a file, not a directory: choose another --run.dir") from None
            self._lock = FileLock(self.path / ".lock", self.path, "wait for it, or choose another --run.dir")
            remove_unfinished(self.path)
            world.set_flag(began)

    @property
    def is_done(self) -> bool:
        """Whether the run has finished train.max_steps; raised later, it goes on."""
        done = self.path / DONE
        if not done.exists():
            return False
        step = done.read_text(errors="replace").strip()
        return not step.isdecimal() or int(step) >= self.max_steps  # one that somebody has made says no step

    def begin(self, config: Config, damaged: Sequence[Path] = ()) -> None:
        """Write down the configuration that this process trains with; from here on the run is not done. The damaged
        checkpoints get another name."""
        if self.is_main:
            rename_corrupt(damaged)
            (self.path / DONE).unlink(missing_ok=True)
            save_config(config, self.path / CONFIG)

    def beat(self, step: int, last: bool = False) -> None:
        """Say in heartbeat.json, once a second at the most but for the `last`, that `step` steps were finished now, and
        by whom."""
        now = time.monotonic()
        if not self.is_main or (now - self.last_beat < BEAT_SECONDS and not last):
            return
        self.last_beat = now
        facts = {"step": step, "time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}
        with suppress(OSError), atomic_write(self.path / HEARTBEAT, fsync=False) as file:  # a full disk: not this time
            file.write(json.dumps(facts).encode() + b"\n")

    def finish(self, step: int) -> None:
        """Mark the run as finished after `step` steps."""
        if self.is_main:
            atomic_write_text(self.path / DONE, f"{step}\n")
