"""The log of a run: metrics.jsonl, the console line, and wandb. Only rank 0 writes."""

import errno
import json
import math
import netrc
import os
import secrets
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prepare.common.cli import UserError, first_line
from prepare.common.files import atomic_write_text
from train.config.finetune import FinetuneConfig
from train.config.pretrain import Config
from train.parallel.device import peak_flops
from train.parallel.world import World

METRICS = "metrics.jsonl"
WANDB_SECONDS = 8  # to connect, and to upload the last rows at the end
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
        self.file = self.wandb = None
        if world.is_main:
            path = run_dir / METRICS
            kept = read_rows(path, step) if path.exists() else []
            kept = [row for row in kept if row["step"] < step or not row.get("event", "").startswith(CHANGED)]
            atomic_write_text(path, "".join(json.dumps(row) + "\n" for row in kept))
            for row in kept:
                self._remember(row)
            self.file = _Appender(path)
            self.wandb = start_wandb(run_dir, config)

    def write(self, step: int, kind: str, **values: Any) -> None:
        """Append a row; `values` are JSON-serializable."""
        if not self.file:
            return
        # JSON has no NaN
        values = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in values.items()}
        row = {"step": step, "kind": kind, **values}
        self._remember(row)
        self.file.append(json.dumps(row) + "\n")
        if self.wandb and kind != "event":
            self._wandb(lambda run: run.log({f"{kind}/{key}": value for key, value in values.items()}, step=step))

    def _wandb(self, work: Callable[[Any], None]) -> None:
        """Log to wandb, or finish; a failure, such as a network that breaks or a killed service, ends only that."""
        try:
            work(self.wandb)
        except Exception as failure:
            folder = Path(self.wandb.dir).parent
            print(f"wandb stopped ({first_line(failure)}): `wandb sync {folder}` uploads it later", flush=True)
            self.wandb = None

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
        if self.wandb:
            self._wandb(lambda run: run.finish())


class _Appender:
    """Append lines to a file. What does not fit on a full disk stays in memory until it does; sync raises OSError."""

    def __init__(self, path: Path) -> None:
        self.path, self.handle = path, os.open(path, os.O_WRONLY | os.O_APPEND)
        self.waiting = b""
        self.lock = threading.Lock()

    def append(self, line: str) -> None:
        with self.lock:
            was_full = bool(self.waiting)
            self.waiting += line.encode()
            try:
                self._write()
            except OSError as failure:
                if failure.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                if not was_full:
                    print(f"warning: {self.path}: {failure.strerror}; its rows are kept in memory", flush=True)

    def sync(self) -> None:
        with self.lock:
            self._write()
            os.fsync(self.handle)

    def close(self) -> None:
        with self.lock:
            self._write()
            os.close(self.handle)

    def _write(self) -> None:
        while self.waiting:
            self.waiting = self.waiting[os.write(self.handle, self.waiting) :]


def read_rows(path: Path, up_to: int | None = None) -> list[dict[str, Any]]:
    """The rows of a metrics.jsonl, without a last line that a kill has truncated.

    Args:
        up_to: drop the rows of later steps, and corrupt lines after the last kept row: after a power failure, lines
            that were not yet on disk may hold anything.

    Raises:
        UserError: another line is corrupt.
    """
    lines = path.read_text(errors="replace").splitlines()
    rows = [_row(line) for line in lines]
    wanted = [up_to is None or (row is not None and row["step"] <= up_to) for row in rows]
    last = max((number for number, keep in enumerate(wanted, 1) if keep), default=0)
    for number, (line, row) in enumerate(zip(lines, rows, strict=True), 1):
        if row is None and number < last:
            raise UserError(f"{path}:{number} is not a row of metrics ({line[:40]!r}): remove the line")
    return [row for row, keep in zip(rows, wanted, strict=True) if row and keep]


def _row(line: str) -> dict[str, Any] | None:
    """The row in a line; None if it is not one."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and type(row.get("step")) is int and "kind" in row else None


def start_wandb(run_dir: Path, config: Config | FinetuneConfig) -> Any | None:
    """Start logging to Weights & Biases; None if it is disabled. A resumed run keeps its id.

    `auto` is online where an API key is known (the environment, or `wandb login`), and disabled elsewhere, unless
    WANDB_MODE in the environment says otherwise. If it cannot get online it logs offline.
    """
    mode = config.log.wandb
    if mode == "auto":
        mode = os.environ.get("WANDB_MODE") or ("online" if _logged_in_to_wandb() else "disabled")
    if mode == "disabled":
        return None
    import wandb

    id_file = run_dir / "wandb_id"
    if not id_file.exists():
        atomic_write_text(id_file, secrets.token_hex(4))
    settings: dict[str, Any] = {"project": config.log.wandb_project, "name": run_dir.name, "id": id_file.read_text()}
    settings |= {"dir": run_dir, "config": asdict(config), "resume": "allow", "mode": mode}
    try:
        wandb.setup(wandb.Settings(x_disable_viewer=True))  # does not ask for the account's name, twice 5 s
        limits = wandb.Settings(init_timeout=WANDB_SECONDS, finish_timeout=WANDB_SECONDS, finish_timeout_raises=True)
        return wandb.init(**settings, settings=limits)
    except Exception as failure:  # wandb raises many kinds when the service cannot be reached
        reason = first_line(failure)
        if config.log.wandb != "auto":
            raise UserError(f"wandb could not start ({reason}): set log.wandb offline or disabled") from None
        print(f"wandb logs offline ({reason}): `wandb sync {run_dir}/wandb/offline-*` uploads it later", flush=True)
        wandb.teardown()  # its service still holds the run's id
        settings["mode"] = "offline"
        return wandb.init(**settings)


def _logged_in_to_wandb() -> bool:
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with suppress(OSError, netrc.NetrcParseError):
        file = os.environ.get("NETRC", Path("~/.netrc").expanduser())  # as wandb, also if others may read it
        return bool(os.environ.get("WANDB_API_KEY") or netrc.netrc(file).authenticators(host))
    return False


def duration(seconds: float) -> str:
    """3h12m, 4m05s or 12s."""
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours else f"{minutes}m{seconds:02}s" if minutes else f"{seconds}s"
