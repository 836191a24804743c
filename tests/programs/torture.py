"""Kill -9 at random moments, again and again, and compare the result with an uninterrupted run.

python -m tests.programs.torture [KILLS] [--seed S]    # 200 kills; on Linux, for its /proc

In every set-up one run is left alone: the reference. Others are killed, restarted with the same command, and killed
again, until DONE exists. Then metrics.jsonl must have the same rows (each step once, losses to the last bit), the final
weights must be the same bits, every checkpoint must load, and no temporary file may be left.
"""

import argparse
import json
import os
import random
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from prepare.common.files import file_sha256
from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import open_shard
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.commands import ROOT
from tests.helpers.event_files import expected_points, logged_points
from tests.helpers.fork_server import ForkedPopen
from tests.helpers.tiny import VOCAB, settings, two_sources, write_shards
from train.run.metrics_log import read_rows

STEPS, SAVE_EVERY, EVAL_EVERY, SAMPLE_EVERY = 100, 3, 5, 10
REACH = 20  # a targeted kill comes within 20 steps of the checkpoint that its start resumes from
LONGEST = 400  # seconds that one start may take; a cold compile is 20, and 90 on a busy machine
TIMINGS = ("tokens_per_s", "mfu")
KINDS = ("train", "val", "sample")
MOMENTS = ("first step", "write", "step", "evaluation", "end", "any time", "start-up")


class Difference(Exception):
    """The killed run is not the same as the reference."""


@dataclass(frozen=True)
class SetUp:
    """What is trained, and how it is started."""

    name: str
    processes: int
    compiled: bool
    dropout: float
    micro_batch_size: int
    two_sources: bool = False  # named, in data.train and data.val
    optimizer: str = "adamw"
    architecture: str = "gpt2"

    @property
    def targets(self) -> tuple[str, ...]:
        """What can be killed."""
        alone = ("everything", "the process")  # the second leaves the compiler's helpers alive
        return ("everything", "rank 1", "torchrun", "rank 0") if self.processes > 1 else alone

    def command(self, data: Path, run: Path, *torchrun: str, **changes: object) -> list[str]:
        """The command line of every start of a run. A step is 16 sequences of 32 tokens."""
        launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.processes}", *torchrun]
        keys = {
            "model__architecture": self.architecture,
            "model__n_layer": 1,  # half the time to compile
            "model__dropout": self.dropout,
            "data__micro_batch_size": self.micro_batch_size,
            "optim__optimizer": self.optimizer,
            "optim__schedule": "wsd" if self.optimizer == "muon" else "cosine",  # as in configs/
            "train__compile": str(self.compiled).lower(),
            "train__max_steps": STEPS,
            "eval__every": EVAL_EVERY,
            "eval__sample_every": SAMPLE_EVERY,
            "eval__sample_prompt": CHARACTERS[:4],
            "eval__sample_tokens": 24,
            "checkpoint__every": SAVE_EVERY,
            "log__tensorboard": "true",
            **(two_sources(data) if self.two_sources else {}),
            **changes,
        }
        script = [str(ROOT / "train" / "train_gpt2.py"), *settings(data, run, **keys)]
        return [sys.executable, *(launcher if self.processes > 1 else []), *script]


CHARACTERS = "".join(chr(ord("0") + i) for i in range(VOCAB))
# GPT-2 with AdamW, GPT-2 with Muon, and modern with Muon (docs/recipes.md), each on one and on two processes
SETUPS = (
    SetUp(
        "2 processes, modern, Muon, compiled, accumulation", 2, True, 0.0, 4, optimizer="muon", architecture="modern"
    ),
    SetUp("2 processes, dropout, accumulation", 2, False, 0.1, 4),
    SetUp("1 process, modern, Muon", 1, False, 0.0, 16, optimizer="muon", architecture="modern"),
    SetUp("2 processes, Muon, dropout, two sources", 2, False, 0.1, 8, two_sources=True, optimizer="muon"),
    SetUp("1 process, accumulation", 1, False, 0.0, 4),
    SetUp("1 process, Muon, compiled, dropout", 1, True, 0.1, 16, optimizer="muon"),
)


def write_data(folder: Path) -> Path:
    """Shards whose manifest has a tokenizer of VOCAB characters, so that samples can be drawn."""
    shards = [
        {"file": path.name, "tokens": len(open_shard(path)), "documents": 1, "sha256": file_sha256(path)}
        for path in sorted(write_shards(folder).glob("*.bin"))
    ]
    write_manifest(folder, build_manifest("tiny", None, [], CharTokenizer(CHARACTERS).describe(), {}, shards))
    return folder


class Start:
    """One start of a command, in a session of its own, with all of its processes.

    They are found by a word in their environment, which a child inherits and an orphan keeps.
    """

    def __init__(self, command: list[str], console: Path, cache: Path) -> None:
        self.word, self.console = f"TORTURE_START={secrets.token_hex(8)}", console
        name, value = self.word.split("=")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_CACHE_DIR": str(cache), name: value}
        with console.open("w") as output:
            self.process = ForkedPopen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
            )
        self.started = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since it was started."""
        return time.monotonic() - self.started

    def output(self) -> str:
        """What its processes have printed."""
        return self.console.read_text(errors="replace")

    def step(self) -> int:
        """The last step that it has printed; 0 before its first."""
        steps = re.findall(r"^step +(\d+)/", self.output(), re.MULTILINE)
        return int(steps[-1]) if steps else 0

    def ended(self) -> bool:
        """Whether the process that was started has ended; others may be alive."""
        return self.process.poll() is not None

    def wait(self, reached: Callable[[], bool]) -> bool:
        """Wait for a condition; False if the process ends before. Raise Difference if it hangs."""
        while not reached():
            if self.ended():
                return False
            if self.seconds > LONGEST:
                raise Difference(f"it hangs: nothing for {LONGEST} s; its output ends with\n{self.output()[-3000:]}")
            time.sleep(0.002)
        return True

    def exit_status(self) -> int:
        """Wait for its end."""
        self.wait(self.ended)
        return self.process.returncode

    def processes(self) -> list[int]:
        """All that are alive, whoever their parent now is."""
        pids = [int(path.name) for path in Path("/proc").glob("[0-9]*")]
        return [pid for pid in pids if self.word.encode() in _environment(pid)]

    def children(self) -> list[int]:
        """The children of the process that was started."""
        agent = self.process.pid
        try:
            return [int(pid) for pid in Path(f"/proc/{agent}/task/{agent}/children").read_text().split()]
        except OSError:  # it has ended
            return []

    def worker(self, rank: int) -> int | None:
        """The process of a rank, a child of torchrun."""
        return next((pid for pid in self.children() if f"RANK={rank}".encode() in _environment(pid)), None)

    def kill(self, target: str) -> bool:
        """Kill -9; False if it has ended before."""
        if self.ended():
            return False
        if target.startswith("rank "):
            rank = int(target.removeprefix("rank "))
            if not self.wait(lambda: self.worker(rank) is not None):
                return False
            pid = self.worker(rank)
            return pid is not None and _kill(pid)
        if target == "everything":  # the workers at once: to search for others takes longer than to write a checkpoint
            for pid in self.children():
                _kill(pid)
        self.process.kill()
        self.process.wait()
        if target == "everything":
            self.kill_all()
        return True

    def kill_all(self) -> None:
        """Kill every process that is left of it."""
        while left := self.processes():
            for pid in left:
                _kill(pid)
        self.process.wait()


def _environment(pid: int) -> list[bytes]:
    try:
        return Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:  # it has ended
        return []


def _kill(pid: int) -> bool:
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:  # it has just ended
        return False
    return True


# What a run has left.


def rows_by_kind(run: Path) -> dict[str, list[dict]]:
    """The rows of each kind, in their order, without timings."""
    found = read_rows(run / "metrics.jsonl") if (run / "metrics.jsonl").exists() else []
    kept = [{key: value for key, value in row.items() if key not in TIMINGS} for row in found]
    return {kind: [row for row in kept if row["kind"] == kind] for kind in KINDS}


def last_step(run: Path) -> int:
    """The last step in metrics.jsonl."""
    return max((row["step"] for row in rows_by_kind(run)["train"]), default=0)


def checkpoints(run: Path) -> list[Path]:
    """The complete ones, oldest first."""
    return sorted((run / "checkpoints").glob("step_*"))


def last_saved(run: Path) -> int:
    """The step of the last checkpoint; 0 without one."""
    return max((int(path.name.removeprefix("step_")) for path in checkpoints(run)), default=0)


def partial_checkpoints(run: Path) -> list[Path]:
    """Checkpoints that are being written, or removed."""
    return list((run / "checkpoints").glob(".step_*.tmp"))


def check_reference(run: Path) -> None:
    """The uninterrupted run has each row that is due, once."""
    due = {
        "train": list(range(1, STEPS + 1)),
        "val": list(range(0, STEPS + 1, EVAL_EVERY)),
        "sample": list(range(SAMPLE_EVERY, STEPS + 1, SAMPLE_EVERY)),
    }
    for kind, found in rows_by_kind(run).items():
        if [row["step"] for row in found] != due[kind]:
            raise Difference(f"{kind} rows of the reference: {[row['step'] for row in found]}")


def compare(run: Path, reference: Path) -> None:
    """Raise Difference, unless both runs have ended with the same."""
    expected_rows = rows_by_kind(reference)
    for kind, ours in rows_by_kind(run).items():
        if [row["step"] for row in ours] != [row["step"] for row in expected_rows[kind]]:
            raise Difference(f"{kind} rows at steps {[row['step'] for row in ours]}")
        for row, expected in zip(ours, expected_rows[kind], strict=True):
            if row != expected:
                raise Difference(f"{row} where the reference has {expected}")
    for checkpoint in checkpoints(run):
        load_file(checkpoint / "model.safetensors")
        torch.load(checkpoint / "train_state.pt", weights_only=True)
        json.loads((checkpoint / "meta.json").read_text())
    if last_saved(run) != last_saved(reference):
        raise Difference(f"the last checkpoint is of step {last_saved(run)}")
    weights, expected_weights = (load_file(checkpoints(path)[-1] / "model.safetensors") for path in (run, reference))
    if weights.keys() != expected_weights.keys():
        raise Difference(f"the final weights are {list(weights)}")
    for name, tensor in weights.items():
        if not torch.equal(tensor, expected_weights[name]):
            distance = (tensor - expected_weights[name]).abs().max()
            raise Difference(f"{name} differs by {distance:.3g} in the final weights")
    if sorted(logged_points(run)) != sorted(expected_points(run, lambda step: 512 * step)):
        raise Difference("the event file holds other rows than metrics.jsonl")
    names = ({path.name for path in folder.iterdir()} for folder in (run, reference))
    files, expected_files = ({name for name in found if "tfevents" not in name} for found in names)
    if files != expected_files or partial_checkpoints(run):
        partial = [path.name for path in partial_checkpoints(run)]
        raise Difference(f"in the run's directory: {sorted(files)} and {partial}")


# The kills.


@dataclass(frozen=True)
class Kill:
    moment: str
    target: str


def deal(kills: int) -> dict[SetUp, deque[Kill]]:
    """Kills over the set-ups in turn: each meets every moment, and every moment with every target."""
    dealt: dict[SetUp, deque[Kill]] = {setup: deque() for setup in SETUPS}
    for number in range(kills):
        turn, place = divmod(number, len(SETUPS))
        setup = SETUPS[place]
        moment = MOMENTS[(turn + place) % len(MOMENTS)]
        dealt[setup].append(Kill(moment, setup.targets[(turn + place // 2) % len(setup.targets)]))
    return dealt


class Lane:
    """The runs of one set-up: the reference, and those that are killed."""

    failed = threading.Event()  # in any lane: all end early

    def __init__(self, setup: SetUp, kills: deque[Kill], folder: Path, data: Path, seed: int) -> None:
        self.setup, self.kills, self.folder, self.data = setup, kills, folder, data
        self.random = random.Random(f"{seed} {setup.name}")
        self.cache = folder / "compiled"
        self.reference = folder / "reference"
        self.starts: list[Start] = []  # of which processes may be left
        self.counts: Counter[str] = Counter()
        self.patience = 1.0  # halved each time that a run ends before it is killed
        folder.mkdir()

    def start(self, run: Path) -> Start:
        self.counts["starts"] += 1
        console = self.folder / f"{run.name}.console_{len(self.starts)}"
        start = Start(self.setup.command(self.data, run), console, self.cache)
        self.starts.append(start)
        return start

    def kill_all(self) -> None:
        for start in self.starts:
            start.kill_all()

    def run_all(self) -> None:
        """Train the reference, then runs until all kills are used up; the last one reaches its end.

        Raises:
            Difference: where a run has lost something, hangs, or does not restart.
        """
        if self.failed.is_set():
            return
        try:
            self.train_reference()
            while self.kills and not self.failed.is_set():
                self.train_and_kill(self.folder / f"run_{self.counts['runs'] + 1}")
        except Exception:
            self.failed.set()
            raise
        finally:
            self.kill_all()

    def train_reference(self) -> None:
        """The uninterrupted run; it also measures how long a run, its first step and its end take."""
        start = self.start(self.reference)
        start.wait(lambda: "model: " in start.output())
        built = start.seconds
        start.wait(lambda: start.step() > 0)
        self.first_step = start.seconds - built
        start.wait(lambda: start.step() >= STEPS)
        trained = start.seconds
        if start.exit_status():
            raise Difference(f"{self.setup.name}: the reference failed\n{start.output()[-3000:]}")
        self.ending = start.seconds - trained
        self.lifetime = start.seconds - (self.first_step if self.setup.compiled else 0)  # later starts find it compiled
        check_reference(self.reference)
        print(f"{self.setup.name}: reference {start.seconds:.1f} s, first step {self.first_step:.1f} s", flush=True)

    def train_and_kill(self, run: Path) -> None:
        """Kill and restart until DONE exists, then compare."""
        kills = 0
        while not (run / "DONE").exists():
            kill = self.kills[0] if self.kills else None
            if kill and kill.moment == "first step" and self.setup.compiled:
                self.kill_all()  # helpers of killed starts may still be writing there
                shutil.rmtree(self.cache)  # this start compiles from scratch, and the next finds what it left
            start = self.start(run)
            if kill and self.wait_for(kill.moment, start, run) and start.kill(kill.target):
                self.kills.popleft()
                kills, self.patience = kills + 1, 1.0
                self.after(kill, start, run)
            elif status := start.exit_status():
                raise Difference(f"{run}: exit status {status} after {kills} kills\n{start.output()[-3000:]}")
            elif not (run / "DONE").exists():
                raise Difference(f"{run}: exit status 0 without DONE")
            else:
                self.patience /= 2
            if self.failed.is_set():
                return
        self.kill_all()
        try:
            compare(run, self.reference)
        except Difference as difference:
            raise Difference(f"{run} after {kills} kills: {difference}") from None
        self.counts["runs"] += 1
        print(f"{self.setup.name}: {run.name} ended after {kills} kills, identical to the reference", flush=True)

    def wait_for(self, moment: str, start: Start, run: Path) -> bool:
        """Wait for a moment, and a random part of it; whether the start is still alive."""
        reached, longest = self.moment(moment, start, run)
        delay = self.random.uniform(0, longest * self.patience)
        if not start.wait(reached):
            return False
        time.sleep(delay)
        return not start.ended()

    def moment(self, name: str, start: Start, run: Path) -> tuple[Callable[[], bool], float]:
        """The condition that a moment begins with, and how many seconds it lasts."""
        target = min(last_saved(run) + self.random.randint(1, REACH), STEPS)
        due = min(-(-target // EVAL_EVERY) * EVAL_EVERY, STEPS)
        log = run / "metrics.jsonl"
        before = _inode(log)
        return {
            "any time": (lambda: True, self.lifetime),
            # the rows after the checkpoint are dropped: the log is written again, and renamed over the old one
            "start-up": (lambda: _inode(log) != before, 0.05),
            "first step": (lambda: "model: " in start.output(), self.first_step),
            "step": (lambda: start.step() >= target, 0.02),
            "evaluation": (lambda: start.step() >= due, 0.2),
            "write": (lambda: bool(partial_checkpoints(run)) and start.step() >= target, 0.02),
            "end": (lambda: start.step() >= STEPS, self.ending),
        }[name]

    def after(self, kill: Kill, start: Start, run: Path) -> None:
        """Report where the kill hit the run, and end the processes that survive it."""
        where = f"after {start.seconds:4.1f} s, at step {last_step(run):>3}, saved {last_saved(run):>3}"
        if partial_checkpoints(run):
            where += ", a partial checkpoint"
            self.counts["partial"] += 1
        if kill.target.startswith("rank "):
            killed = start.seconds
            start.exit_status()
            where += f"; torchrun ended the other in {start.seconds - killed:.1f} s"
        elif kill.target == "torchrun":
            where += f"; {self.end_orphans(start, run)}"
        self.counts.update(["kills", kill.moment, kill.target])
        print(f"kill | {self.setup.name:42} | {kill.target:11} | {kill.moment:10} | {where}", flush=True)

    def end_orphans(self, orphans: Start, run: Path) -> str:
        """torchrun is dead, and its workers train on. A second start is refused, or finds that they have ended."""
        words = ""
        if self.random.random() < 0.5:
            second = self.start(run)
            if second.exit_status() == 0:
                words = "a second start found the run free, "
            elif "is in use by process" in second.output():
                words = "a second start was refused, "
                self.counts["refused"] += 1
            else:
                raise Difference(f"{run}: a second start while workers live\n{second.output()[-3000:]}")
        else:
            time.sleep(self.random.uniform(0, 2))
        left = len(orphans.processes())
        orphans.kill_all()
        return words + (f"{left} workers killed at step {last_step(run)}" if left else "its workers had ended")


def _inode(path: Path) -> int | None:
    return path.stat().st_ino if path.exists() else None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kills", type=int, nargs="?", default=200)
    parser.add_argument("--seed", type=int, default=0, help="of the moments and delays (default: 0)")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    started, folder = time.monotonic(), Path(tempfile.mkdtemp(prefix="torture_"))
    data = write_data(folder / "data")
    lanes = [
        Lane(setup, kills, folder / f"setup_{number}", data, arguments.seed)
        for number, (setup, kills) in enumerate(deal(arguments.kills).items(), 1)
        if kills
    ]
    with ThreadPoolExecutor(2) as pool:  # more at once would only wait for each other
        futures = [pool.submit(lane.run_all) for lane in lanes]
        try:
            failures = [failure for future in futures if (failure := future.exception())]
        except KeyboardInterrupt:  # Ctrl-C, or SIGTERM: no process is left
            Lane.failed.set()
            for lane in lanes:
                lane.kill_all()
            sys.exit(f"interrupted; the runs are kept in {folder}")
    counts = sum((lane.counts for lane in lanes), Counter())
    if failures:
        for failure in failures:
            print(f"error: {failure if isinstance(failure, Difference) else repr(failure)}")
        print(f"after {counts['kills']} kills (seed {arguments.seed}); the runs are kept in {folder}")
        return 1
    shutil.rmtree(folder)
    targets = dict.fromkeys(target for setup in SETUPS for target in setup.targets)
    for what, names in (("when", MOMENTS), ("what", targets)):
        print(f"{what}: " + ", ".join(f"{name} {counts[name]}" for name in names))
    print(
        f"{counts['kills']} kills, {counts['partial']} of which left a partial checkpoint; {len(lanes)} set-ups, "
        f"{counts['runs']} runs, {counts['starts']} starts, {counts['refused']} of them refused while workers without "
        f"torchrun were alive; {(time.monotonic() - started) / 60:.1f} minutes, seed {arguments.seed}: all runs "
        "identical to their references"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
