"""The log of a run: metrics.jsonl, the console line, and the trackers. Only rank 0 writes."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

from prepare.common.cli import UserError
from prepare.common.files import atomic_write_text
from train.config.finetune import FinetuneConfig
from train.config.pretrain import Config
from train.parallel.device import peak_flops
from train.parallel.world import World
from train.run.appender import Appender
from train.run.trackers import call_each, configured_trackers

METRICS = "metrics.jsonl"
CHANGED = "changed: "  # begins the event that lists the settings that differ from the checkpoint's


class MetricsLog:
    """The rows of one run: each an object with `step`, the number of finished steps, and `kind`."""

    def __init__(
        self,
        run_dir: Path,
        config: Config | FinetuneConfig,
        step: int,
        flops_per_token: int,
        world: World,
        tokens_read: Callable[[int], int],
    ) -> None:
        """Open the log of a run that resumes at `step`, and drop the rows of later steps, whose work was lost.

        Args:
            flops_per_token: of training, for MFU; 0 logs no MFU.
            tokens_read: the loader's, from finished steps to tokens.
        """
        self.world, self.every, self.max_steps = world, config.log.every, config.train.max_steps
        self.tokens_read = tokens_read
        self.flops_per_token = flops_per_token
        peak = peak_flops(world.device)
        self.peak = peak and peak * world.size  # FLOP/s of all GPUs
        self.seconds: list[float] = []  # of the steps since the last row
        self.rows, self.seconds_a_step = 0, 0.0  # smoothed, for the time left
        self.recorded: set[tuple[int, str]] = set()  # step and kind of each row, or text of an event
        self.val_losses: dict[int, float] = {}  # by step
        self.file, self.trackers = None, []
        if world.is_main:
            path = run_dir / METRICS
            kept = read_rows(path, step) if path.exists() else []
            kept = [row for row in kept if row["step"] < step or not row.get("event", "").startswith(CHANGED)]
            atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            for row in kept:
                self._remember(row)
            self.file = Appender(path)
            history = [(row, self._tokens(row)) for row in kept]
            trackers = configured_trackers(config.log)
            self.trackers = call_each(trackers, lambda tracker: tracker.start(run_dir, config, history))

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append a row; `values` are JSON-serializable."""
        if not self.file:
            return
        # JSON has no NaN
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        row = {"step": step, "kind": kind, **values}
        self._remember(row)
        self.file.write((json.dumps(row) + "\n").encode())
        self.trackers = call_each(self.trackers, lambda tracker: tracker.log(row, self._tokens(row)))

    def _tokens(self, row: dict[str, Any]) -> int:
        return row["tokens"] if row["kind"] == "train" else self.tokens_read(row["step"])

    def _remember(self, row: dict[str, Any]) -> None:
        self.recorded.add((row["step"], row.get("event", row["kind"])))
        if row["kind"] == "val" and row["loss"] is not None:
            self.val_losses[row["step"]] = row["loss"]

    def has(self, step: int, kind: str) -> bool:
        """Whether there is a row of this step and kind, also from before a resume; only rank 0 knows."""
        return (step, kind) in self.recorded

    def event(self, step: int, event: str, **values: Any) -> None:
        """Append a row of kind `event` and print it, unless this step has the same event already."""
        if self.has(step, event):
            return
        self.write(step, "event", event=event, **values)
        self.world.print(f"step {step}: {event}" + "".join(f", {key} {value}" for key, value in values.items()))

    def train_row(self, step: int, loss: float, lr: float, grad_norm: float, seconds: float) -> None:
        """Record a finished step that took `seconds`; at the interval, append its row and print its line.

        MFU = FLOPs per token (Transformer.flops_per_token) * tokens/s / peak FLOP/s of all GPUs together
        (parallel/device.py).
        """
        if not self.every:
            return
        self.seconds.append(seconds)
        if step % self.every and step != self.max_steps:
            return
        average, tokens = sum(self.seconds) / len(self.seconds), self.tokens_read(step)
        speed = (tokens - self.tokens_read(step - len(self.seconds))) / sum(self.seconds)
        self.seconds.clear()
        mfu = self.flops_per_token * speed / self.peak if self.peak and self.flops_per_token else None
        self.write(step, "train", loss=loss, lr=lr, grad_norm=grad_norm, tokens=tokens, tokens_per_s=speed, mfu=mfu)
        # the first row's time, which includes compiling and allocating, is dropped at the second
        self.seconds_a_step = average if self.rows < 2 else 0.9 * self.seconds_a_step + 0.1 * average
        self.rows += 1
        left = duration((self.max_steps - step) * self.seconds_a_step)
        share = f" | mfu {mfu:.1%}" if mfu else ""
        self.world.print(
            f"step {step:>{len(str(self.max_steps))}}/{self.max_steps} | loss {loss:.4f} | lr {lr:.2e} | "
            f"grad norm {grad_norm:.2f} | {speed:,.0f} tok/s{share} | {left} left"
        )

    def sync(self) -> None:
        """Bring the rows to disk (fsync), before a checkpoint that relies on them; may be called by another thread."""
        if self.file:
            self.file.sync()

    def close(self) -> None:
        """Close the log."""
        if self.file:
            self.file.close()
            call_each(self.trackers, lambda tracker: tracker.finish())


def read_rows(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, up to a step if one is given.

    Corrupt lines after these rows are dropped: a kill truncates the last line, and after a power failure, lines that
    were not yet on disk may hold anything. UserError if a line before one of these rows is corrupt.
    """
    rows: list[dict[str, Any]] = []
    corrupt = ""
    for number, line in enumerate(path.read_text(errors="replace").splitlines(), 1):
        row = _row(line)
        if row is None:
            corrupt = corrupt or f"{path}:{number} is not a row of metrics ({line[:40]!r}): remove the line"
        elif up_to is None or row["step"] <= up_to:
            if corrupt:
                raise UserError(corrupt)
            rows.append(row)
    return rows


def _row(line: str) -> dict[str, Any] | None:
    """The row in a line; None if it is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int and "kind" in row else None


def duration(seconds: float) -> str:
    """3h12m, 4m05s or 12s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
