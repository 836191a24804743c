"""Train the runs of a sweep, each in a subprocess: what is left to do, locks, stop requests, failures."""

import shlex
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from subprocess import DEVNULL, Popen
from types import FrameType

from prepare.common.cli import ROOT, UserError
from prepare.common.files import FileLock, atomic_write_text
from train.run.metrics_log import METRICS, duration, read_rows
from train.run.run_dir import DONE
from train.run.stop_request import SIGNALS
from train.sweeping.grid import PlannedRun
from train.trainer.trainer import MAX_SKIPPED

SCRIPT = ROOT / "train" / "train_gpt2.py"
OUTPUT, FAILED = "train.log", "FAILED"  # of a run: what it printed; why its last start failed


def is_finished(run: PlannedRun) -> bool:
    """Whether the run needs no training: it is DONE, or gave up after too many non-finite steps, as it would again."""
    return (run.path / DONE).exists() or gave_up(run)


def gave_up(run: PlannedRun) -> bool:
    """Whether the run ended with too many steps in a row whose loss or gradient was not finite."""
    rows = read_rows(run.path / METRICS) if (run.path / METRICS).exists() else []
    return bool(rows) and rows[-1].get("in_a_row", 0) >= MAX_SKIPPED


class Launcher:
    """Train runs in turn. A signal ends the running one with a checkpoint, and then the sweep."""

    def __init__(self, processes: int) -> None:
        """`processes`: of each run; more than 1 run under torchrun."""
        self.processes = processes
        self.failed: list[str] = []  # names of runs
        self.stopped = False  # by a signal, or since a run was asked to stop
        self.signal: int | None = None  # the last that asked to stop
        self.run: PlannedRun | None = None  # the one in training,
        self.child: Popen | None = None  # and its process

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        """Ask the running child to stop by a STOP file, which works under torchrun too; pass on any further signal."""
        if self.signal and self.child:
            self.child.send_signal(number)
        self.signal = number
        if self.run:
            self.run.stop_file.touch()

    def train_all(self, runs: Sequence[PlannedRun]) -> None:
        """Train each run that is not finished, and that no other process trains, once. A failed one has the reason in
        its FAILED file. SystemExit, with the run's exit status, if it was asked to stop and could not save."""
        for number in SIGNALS:
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:  # nohup ignores it
                signal.signal(number, self._on_signal)
        started, tried = time.monotonic(), set()
        while not self.stopped:
            left = [run for run in runs if run.name not in tried and not is_finished(run)]
            run, lock = next(((run, lock) for run in left if (lock := lock_run(run))), (None, None))
            if run is None or lock is None:
                return
            with lock:
                print(f"{run.name}: {len(left)} of {len(runs)} runs to do\n{self.describe(run)}", flush=True)
                status = self._train(run)
            tried.add(run.name)
            self.stopped = self.signal is not None
            if (run.path / DONE).exists():
                left_seconds = (time.monotonic() - started) / len(tried) * (len(left) - 1)
                print(f"{run.name}: finished, {duration(left_seconds)} left", flush=True)
            elif (run.path / FAILED).exists():
                print(f"{run.name} failed: {(run.path / FAILED).read_text().strip()}", flush=True)
                self.failed += [] if gave_up(run) else [run.name]
            else:
                self.stopped = True
                print(f"{run.name}: stopped; the same command resumes the sweep", flush=True)
                if status:
                    raise SystemExit(status if status > 0 else 128 - status)

    def command(self, run: PlannedRun) -> list[str]:
        """The command line of a run, after the interpreter."""
        torchrun = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}"]
        return [*(torchrun if self.processes > 1 else []), str(SCRIPT), *run.words]

    def describe(self, run: PlannedRun) -> str:
        """The command line of a run as a person would type it, and the file that holds its output."""
        line = shlex.join(["python", *self.command(run)]).replace("python -m torch.distributed.run", "torchrun")
        return f"    {line.replace(f'{Path.cwd()}/', '')} >> {shlex.quote(str(run.path / OUTPUT))} 2>&1"

    def _train(self, run: PlannedRun) -> int:
        """Train a run to its end; its exit status, negative for a signal's number."""
        for leftover in (run.path / FAILED, run.stop_file):
            leftover.unlink(missing_ok=True)
        with (run.path / OUTPUT).open("ab") as output:
            start = output.tell()
            # in a session of its own, so that Ctrl-C on a terminal reaches the sweep alone
            self.child = Popen(
                [sys.executable, *self.command(run)],
                stdin=DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
            self.run = run
            if self.signal:  # before the child was there
                run.stop_file.touch()
            status = self.child.wait()
            self.run = self.child = None
        run.stop_file.unlink(missing_ok=True)
        if status and not self.signal:
            atomic_write_text(run.path / FAILED, f"{failure(run.path / OUTPUT, start, status)}\n")
        return status


def lock_run(run: PlannedRun) -> FileLock | None:
    """Lock a run for this sweep; None if another sweep has it, or a process trains it."""
    run.path.mkdir(parents=True, exist_ok=True)
    try:
        lock = FileLock(run.path / ".sweep_lock", run.path)
        FileLock(run.path / ".lock", run.path).release()  # train_gpt2's: started by hand, or by a sweep that was killed
    except UserError:
        return None
    return lock


def failure(output: Path, start: int, status: int) -> str:
    """Why a run failed: the last error in its output after byte `start`, or how it ended."""
    with output.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").splitlines()
    errors = [line.removeprefix("error: ") for line in lines if line.startswith("error: ")]
    ended = signal.Signals(-status).name if status < 0 else f"exit status {status}"
    return errors[-1] if errors else f"{ended}, see {output}"
