"""A run's directory: its lock, its configuration, and whether the run is finished."""

import json
import time
from collections.abc import Sequence
from pathlib import Path

from prepare.common.cli import UserError
from prepare.common.files import FileLock, atomic_write_text
from train.config.finetune import FinetuneConfig
from train.config.parsing import save_config
from train.config.pretrain import Config
from train.parallel.world import World
from train.run import checkpoint
from train.run.metrics_log import METRICS, read_rows

DONE, CONFIG = "DONE", "config.yaml"


def open_run(config: Config | FinetuneConfig, world: World) -> "RunDir | None":
    """Open and lock the run's directory; if the run is finished, print that and return None. UserError if it is in use,
    or the ranks do not see the same directory."""
    run = RunDir(config, world)
    if not world.all_equal(run.is_done):
        raise UserError(f"the processes do not see the same {run.path}: put run.dir on a file system that all share")
    if run.is_done:
        world.print(f"{run.path} is finished (DONE is there): eval/ scores it; another --run.dir starts a new run")
        return None
    return run


def start_branch(source: Path, run_dir: Path) -> None:
    """Start a run with a copy of another run's checkpoint and of its metrics so far. UserError if it is not a valid
    checkpoint."""
    if source not in checkpoint.all_checkpoints(source.parents[1]):
        raise UserError(f"run.branch {source} is not a checkpoint: give RUN/checkpoints/step_XXXXXXXX of another run")
    checkpoint.read_meta(source)
    step, metrics = checkpoint.step_of(source), source.parents[1] / METRICS
    rows = read_rows(metrics, step) if metrics.exists() else []
    rows.append({"step": step, "kind": "event", "event": f"branched from {source}"})
    atomic_write_text(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    try:
        checkpoint.copy(source, run_dir)  # last: a run that has a checkpoint is resumed
    except FileNotFoundError:
        raise UserError(f"run.branch {source} was removed: keep it by checkpoint.keep_every there") from None


class RunDir:
    """The directory of a run, locked by rank 0 until its process ends. UserError if another process trains in it, or
    run.fresh is set and it holds a run already."""

    def __init__(self, config: Config | FinetuneConfig, world: World) -> None:
        self.path, self.max_steps = Path(config.run.dir).expanduser().resolve(), config.train.max_steps  # ty: ignore[invalid-argument-type]
        self.is_main, self.opened = world.is_main, time.perf_counter()
        if self.is_main:
            metrics = self.path / METRICS
            used = checkpoint.latest_checkpoint(self.path) or (metrics.exists() and metrics.stat().st_size > 0)
            if config.run.fresh and used:
                raise UserError(f"{self.path} holds a run already, and run.fresh is set: choose another --run.dir")
            try:
                self.path.mkdir(parents=True, exist_ok=True)
            except FileExistsError:
                raise UserError(f"run.dir {self.path} is a file, not a directory: choose another --run.dir") from None
            self._lock = FileLock(self.path / ".lock", self.path, "wait for it, or choose another --run.dir")
            checkpoint.remove_unfinished(self.path)
            if config.run.branch and not checkpoint.latest_checkpoint(self.path):
                start_branch(Path(config.run.branch).expanduser().resolve(), self.path)

    def close(self) -> None:
        """Release the lock before the process ends."""
        if self.is_main:
            self._lock.release()

    @property
    def is_done(self) -> bool:
        """Whether the run has finished train.max_steps; with a larger value it is resumed."""
        done = self.path / DONE
        if not done.exists():
            return False
        step = done.read_text(errors="replace").strip()
        return not step.isdecimal() or int(step) >= self.max_steps  # a DONE made by hand (touch) holds no step

    def begin(self, config: Config | FinetuneConfig, corrupt: Sequence[Path] = ()) -> None:
        """Prepare the directory for training: write config.yaml, remove DONE, and rename the corrupt checkpoints."""
        if self.is_main:
            checkpoint.rename_corrupt(corrupt)
            (self.path / DONE).unlink(missing_ok=True)
            save_config(config, self.path / CONFIG)

    def finish(self, step: int) -> None:
        """Mark the run as finished after `step` steps."""
        if self.is_main:
            atomic_write_text(self.path / DONE, f"{step}\n")
