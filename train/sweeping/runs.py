"""The runs of a sweep: every combination of a grid with every seed, trained one after the other."""

import re
import shlex
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain, product
from operator import attrgetter
from pathlib import Path
from subprocess import Popen
from typing import Any
from urllib.parse import quote

import yaml

from prepare.common.cli import ROOT, ArgumentError, UserError
from prepare.common.files import FileLock
from train.config.parsing import plain_config, values_by_key
from train.config.pretrain import Config, load_config
from train.run.metrics_log import METRICS, duration, read_rows
from train.run.run_dir import CONFIG, DONE
from train.run.stop_request import STOP, handle_signals
from train.trainer.trainer import MAX_SKIPPED

OUTPUT = "train.log"  # what a run has printed since its last start


@dataclass(frozen=True)
class SweepRun:
    """A run of a sweep: a setting of the grid with a seed."""

    setting: str  # such as max_lr=0.002,n_layer=4, of the keys in which the settings differ
    values: dict[str, Any]  # of the grid's keys
    config: Config  # of the setting
    path: Path  # the run directory
    arguments: list[str]  # of train/train_gpt2.py

    @property
    def has_diverged(self) -> bool:
        """Whether it gave up after too many non-finite steps in a row, as it would again."""
        rows = read_rows(self.path / METRICS) if (self.path / METRICS).exists() else []
        skipped = [row for row in rows[-3:] if row.get("event", "").startswith("skipped")]  # a save's row may follow
        return any(row["in_a_row"] >= MAX_SKIPPED for row in skipped)

    @property
    def is_finished(self) -> bool:
        """Whether there is nothing left to train."""
        return (self.path / DONE).exists() or self.has_diverged


def plan_runs(file: Path, grid: Sequence[str], seeds: int, out: Path) -> list[SweepRun]:
    """The runs of a sweep: all settings with the first seed, then with the next.

    Args:
        file: the configuration that the grid changes.
        grid: KEY=A,B,..., or KEY+KEY=A+B,C+D,... for keys that change together.
        out: the folder of the run directories.

    Raises:
        ArgumentError: an unknown key, a value that no run can use, or evaluations or rows turned off.
    """
    settings = {}  # by name: 2e-3 and 0.002 are one setting
    for parts in product(*map(parse_axis, grid)):
        pairs = list(chain(*parts))
        words = [f"--{key}={text}" for key, text in pairs]
        config = load_config(["--config", str(file), *words], "")
        if not (config.eval.every and config.log.every):
            raise ArgumentError("eval.every or log.every is 0: a sweep compares validation losses and times")
        values = {key: attrgetter(key)(config) for key, _ in pairs}
        settings[name_setting(values)] = (values, config, words)
    first = next(iter(settings.values()))[0]
    varied = [key for key in first if any(values[key] != first[key] for values, _, _ in settings.values())]
    runs = []
    for seed, (name, (values, config, words)) in product(range(1, seeds + 1), settings.items()):
        path = out / f"{name},seed={seed}"
        arguments = ["--config", str(file), "--run.dir", str(path), *words, f"--train.seed={seed}"]
        setting = name_setting({key: values[key] for key in varied}) or name
        runs.append(SweepRun(setting, values, config, path, arguments))
    return runs


def parse_axis(text: str) -> list[list[tuple[str, str]]]:
    """The values of one part of --grid: for each, pairs of a key and its text. ArgumentError names what is wrong."""
    left, _, right = text.partition("=")
    keys = left.split("+")
    if not right or any(key.count(".") != 1 for key in keys):
        raise ArgumentError(f"--grid {text} is not KEY=A,B: give keys and values, such as optim.max_lr=1e-3,2e-3")
    if "train.seed" in keys:
        raise ArgumentError("--grid train.seed: --seeds N gives every setting the seeds 1 to N")
    axis = []
    for value in re.split(r",(?![^[]*\])", right):  # not at the commas of a list
        texts = value.split("+") if len(keys) > 1 else [value]
        if len(texts) != len(keys):
            raise ArgumentError(f"--grid {left}: {value} has {len(texts)} values, joined by +, for {len(keys)} keys")
        axis.append(list(zip(keys, texts, strict=True)))
    return axis


def name_setting(values: Mapping[str, Any]) -> str:
    """A name such as max_lr=0.002,n_layer=4."""
    return ",".join(f"{key.split('.')[1]}={format_value(value)}" for key, value in values.items())


def format_value(value: Any) -> str:
    """A value as a folder's name can hold it, the same for 2e-3 and 0.002."""
    if isinstance(value, list | tuple):
        return f"[{','.join(map(format_value, value))}]"
    return quote(str(value), safe="+,=@:[]")


def check_existing(runs: Sequence[SweepRun]) -> None:
    """UserError if a run directory holds a run with other settings, as after an edit of the configuration file."""
    for run in runs:
        file = run.path / CONFIG
        stored = yaml.safe_load(file.read_text()) if file.exists() else {}
        for key, value in loss_settings(plain_config(run.config)).items():
            theirs = loss_settings(stored).get(key, value)  # an older run may lack the key
            if theirs != value:
                raise UserError(
                    f"{run.path} holds a run with {key} {theirs}, not {value}: choose another --out, or remove that run"
                )


def loss_settings(config: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """The values of a config.yaml, by key, that decide a run's losses. The data may decide vocab_size."""
    names = ("model.", "data.", "optim.", "train.max_steps", "train.init_from", "eval.every", "eval.val_tokens")
    free = ("model.vocab_size", "data.micro_batch_size")
    return {key: value for key, value in values_by_key(config).items() if key.startswith(names) and key not in free}


def train_runs(runs: Sequence[SweepRun], processes: int) -> list[str] | None:
    """Train the runs that are not finished, and that no other process trains, one after the other.

    Args:
        processes: per run; above 1 uses torchrun.

    Returns:
        The names of failed runs; None if a run was stopped early (a signal, a STOP file, Slurm's time limit).
    """
    left = [run for run in runs if not run.is_finished]
    start, failed = time.monotonic(), []
    signals: list[int] = []  # received so far; between two runs too
    handle_signals(lambda number, _frame: signals.append(number))
    for number, run in enumerate(left, 1):
        run.path.mkdir(parents=True, exist_ok=True)
        try:
            FileLock(run.path / ".lock", run.path).release()  # that of train_gpt2.py
        except UserError as in_use:
            print(f"skipped: {in_use}", flush=True)
            continue
        status = 0 if signals else train_run(run, processes, signals)
        stop_file = run.path / STOP
        if signals or stop_file.exists() or not (status or run.is_finished):
            stop_file.unlink(missing_ok=True)  # the run has not seen it if it was created during its last step
            print(f"{run.path.name}: stopped; the same command resumes the sweep", flush=True)
            return None
        if status and not run.has_diverged:
            failed.append(run.path.name)
        seconds = (time.monotonic() - start) / number * (len(left) - number)
        end = f"failed, see {run.path / OUTPUT}" if status else "finished"
        print(f"{run.path.name}: {end}; {number} of {len(left)} runs, {duration(seconds)} left", flush=True)
    return failed


def train_run(run: SweepRun, processes: int, signals: Sequence[int]) -> int:
    """Train a run to its end, and return its exit status. Once `signals` is not empty, stop it by a STOP file, which
    works under torchrun too."""
    torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
    command = [*(torchrun if processes > 1 else []), str(ROOT / "train" / "train_gpt2.py"), *run.arguments]
    print(f"{run.path.name}: python {shlex.join(command)}", flush=True)
    with (run.path / OUTPUT).open("wb") as output:
        # in a session of its own, so that Ctrl-C reaches the sweep alone
        process = Popen([sys.executable, *command], stdout=output, stderr=output, start_new_session=True)
        while process.poll() is None:
            if signals:
                (run.path / STOP).touch()
            time.sleep(0.1)
        return process.returncode
