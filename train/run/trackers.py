"""Trackers, which show a run's rows in TensorBoard and wandb. A third one: a class here, in configured_trackers too."""

import json
import netrc
import os
import secrets
import socket
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prepare.common.cli import UserError, first_line
from prepare.common.files import atomic_write_text
from train.config.finetune import FinetuneConfig
from train.config.parsing import plain_config, values_by_key
from train.config.pretrain import Config, LogConfig
from train.run.appender import Appender

AnyConfig = Config | FinetuneConfig
Row = dict[str, Any]  # of metrics.jsonl
EVENT_FILES = "events.out.tfevents."  # the beginning of their names, before the time: TensorBoard reads them in order
WAIT_SECONDS = 8  # for wandb to connect, and to upload the last rows at the end


class Tracker:
    """Shows the rows of one run in another program. A method that fails ends the tracker, and never the run."""

    advice: str  # what to do about a failure

    def start(self, run_dir: Path, config: AnyConfig, history: list[tuple[Row, int]]) -> None:
        """Start, or continue after a resume; `history`: what `log` takes, for the rows so far."""

    def log(self, row: Row, tokens: int) -> None:
        """Show a row of metrics.jsonl; `tokens`: read by the run up to its step."""

    def finish(self) -> None:
        """Close what is open, at the end of the run."""


def configured_trackers(log: LogConfig) -> list[Tracker]:
    """The trackers that the configuration turns on."""
    is_on = {TensorBoard: log.tensorboard, Wandb: wandb_mode(log) != "disabled"}
    return [kind() for kind in is_on if is_on[kind]]


def call_each(trackers: list[Tracker], method: Callable[[Tracker], None]) -> list[Tracker]:
    """Call a method of each tracker, and return those that did not fail; a failure, such as a broken network or a
    missing package, prints one line."""
    running = []
    for tracker in trackers:
        try:
            method(tracker)
            running.append(tracker)
        except UserError:
            raise
        except Exception as failure:
            print(f"{type(tracker).__name__} stopped ({first_line(failure)}): {tracker.advice}", flush=True)
    return running


class TensorBoard(Tracker):
    """An event file in the run directory, for `tensorboard --logdir runs`.

    Each number of a row is a scalar KIND/KEY at its step, and again vs_tokens/KIND/KEY at its tokens; samples and
    events are text, and the configuration is the run's hyperparameters. metrics.jsonl is the truth: a start empties the
    previous event file, which a kill may have cut or left ahead of the checkpoint, and writes all rows to a new one.
    """

    advice = "`pip install tensorboard`, or set log.tensorboard false"

    def start(self, run_dir: Path, config: AnyConfig, history: list[tuple[Row, int]]) -> None:
        # TensorBoard's EventFileWriter would import TensorFlow if it is installed, and write every two minutes
        from tensorboard.compat.proto import event_pb2
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb
        from tensorboard.plugins.text.summary_v2 import text_pb
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.text = event_pb2.Event, text_pb
        for previous in run_dir.glob(f"{EVENT_FILES}*"):  # TensorBoard would wait for a deleted one
            os.truncate(previous, 0) if previous.stat().st_size else previous.unlink()
        self.records = RecordWriter(Appender(run_dir / f"{EVENT_FILES}{time.time():.6f}.{socket.gethostname()}"))
        self._write(file_version="brain.Event:2")
        self._write(session_log={"status": "START"})  # a running TensorBoard drops the previous file's steps
        settings = values_by_key(plain_config(config)).items()
        plain = {key: value if isinstance(value, int | float | str) else json.dumps(value) for key, value in settings}
        self._write(summary=hparams_pb(plain, trial_id=f"{run_dir.parent.name}/{run_dir.name}"))
        for row, tokens in history:
            self.log(row, tokens)
        self.advice = "the next start of the run writes all of its events again"

    def log(self, row: Row, tokens: int) -> None:
        kind, step = row["kind"], row["step"]
        values = {key: value for key, value in row.items() if key not in ("step", "kind", "tokens")}
        if kind == "event":  # each with a tag of its own: of two with one tag and step, only the later is shown
            kind = f"event/{values.pop('event')}"
            values = {"text": ", ".join([row["event"], *(f"{key} {value}" for key, value in values.items())])}
        elif "answers" in values:
            values["text"] = "\n\n".join(answer["prompt"] + answer["answer"] for answer in values["answers"])
        if "text" in values:  # as a code block of Markdown, which shows it unchanged
            self._write(step=step, summary=self.text(kind, "    " + values["text"].replace("\n", "\n    ")))
        numbers = {key: value for key, value in values.items() if isinstance(value, int | float)}
        for axis, prefix in ((step, ""), (tokens, "vs_tokens/")):
            scalars = [{"tag": f"{prefix}{kind}/{key}", "simple_value": value} for key, value in numbers.items()]
            self._write(step=axis, summary={"value": scalars})

    def finish(self) -> None:
        self.records.close()

    def _write(self, **event: Any) -> None:
        self.records.write(self.event(wall_time=time.time(), **event).SerializeToString())


class Wandb(Tracker):
    """A run of Weights & Biases; resumed, it keeps its id. UserError if it cannot start, unless log.wandb is auto."""

    advice = "set log.wandb disabled"

    def start(self, run_dir: Path, config: AnyConfig, _history: list[tuple[Row, int]]) -> None:
        import wandb

        id_file = run_dir / "wandb_id"
        if not id_file.exists():
            atomic_write_text(id_file, secrets.token_hex(4))
        settings: dict[str, Any] = {"name": run_dir.name, "dir": run_dir, "config": asdict(config), "resume": "allow"}
        settings |= {"project": config.log.wandb_project, "id": id_file.read_text(), "mode": wandb_mode(config.log)}
        try:
            wandb.setup(wandb.Settings(x_disable_viewer=True))  # does not ask for the account's name, twice 5 s
            limits = wandb.Settings(init_timeout=WAIT_SECONDS, finish_timeout=WAIT_SECONDS, finish_timeout_raises=True)
            self.run = wandb.init(**settings, settings=limits)
        except Exception as failure:  # wandb raises many kinds when the service cannot be reached
            reason = first_line(failure)
            if config.log.wandb != "auto":
                raise UserError(f"wandb could not start ({reason}): set log.wandb offline or disabled") from None
            print(f"wandb logs offline ({reason}): `wandb sync {run_dir}/wandb/offline-*` uploads it later", flush=True)
            wandb.teardown()  # its service still holds the run's id
            settings["mode"] = "offline"
            self.run = wandb.init(**settings)
        self.advice = f"`wandb sync {Path(self.run.dir).parent}` uploads it later"

    def log(self, row: Row, _tokens: int) -> None:
        kind, step = row["kind"], row["step"]
        if kind != "event":
            self.run.log({f"{kind}/{key}": row[key] for key in row if key not in ("step", "kind")}, step=step)

    def finish(self) -> None:
        self.run.finish()


def wandb_mode(log: LogConfig) -> str:
    """log.wandb, where auto is online if an API key is known (the environment, or `wandb login`), and disabled
    otherwise, unless WANDB_MODE in the environment says something else."""
    if log.wandb != "auto":
        return log.wandb
    if mode := os.environ.get("WANDB_MODE"):
        return mode
    host = urlsplit(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).netloc
    with suppress(OSError, netrc.NetrcParseError):
        file = os.environ.get("NETRC", Path("~/.netrc").expanduser())  # as wandb, also if others may read it
        if os.environ.get("WANDB_API_KEY") or netrc.netrc(file).authenticators(host):
            return "online"
    return "disabled"
