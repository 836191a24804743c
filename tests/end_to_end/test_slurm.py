"""The sbatch scripts on a real Slurm of two nodes: training that requeues itself, a job array, scores."""

import json
import os
import re
import shutil
import signal
import string
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.helpers import fork_server
from tests.helpers.commands import ROOT, run_command
from tests.helpers.slurm_cluster import SlurmCluster
from tests.helpers.tiny import rows, write_shards

pytestmark = [pytest.mark.slurm, pytest.mark.slow, pytest.mark.timeout(1200)]
TRAIN, PREPARE, EVAL, SWEEP = (ROOT / "slurm" / f"{name}.sbatch" for name in ("train", "prepare", "eval", "sweep"))
TOY = ("--level", "char", "--input", "toy.txt", "--out", "data")
NODES_USE = {"PYTHON": "./python", "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
# torchrun forks its ranks, and a sweep its runs, which halves the CPU time of a start. The space is for what
# /proc/PID/environ shows of them.
PYTHON = f"""#!/bin/bash
[[ $* != *torch.distributed.run* && $1 != *sweep.py ]] || set -- {fork_server.__file__} "$@"
SPACE=$(printf %8000s) exec {sys.executable} "$@"
"""

CONFIG = """
model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 32, vocab_size: 64}}
data:
  train: "{folder}/data/*_train_*.bin"
  val: "{folder}/data/*_val_*.bin"
  batch_tokens: 256
  micro_batch_size: 2
optim: {{max_lr: 0.01, warmup_steps: 2}}
train: {{max_steps: 8, device: cpu, precision: fp32, compile: false}}
eval: {{every: 4, val_tokens: 256, hellaswag_every: 0, sample_every: 0}}
checkpoint: {{every: 4, margin_seconds: 0}}
"""

# For runs that are interrupted: their length is set once they were. A constant rate, so that it changes nothing before.
EVERY = 21
ENDLESS = """
model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 32, vocab_size: 64, dropout: 0.1}}
data:
  train: "{folder}/data/*_train_*.bin"
  val: "{folder}/data/*_val_*.bin"
  batch_tokens: 256
  micro_batch_size: 2
optim: {{max_lr: 0.01, warmup_steps: 2, schedule: constant}}
train: {{max_steps: {max_steps}, device: cpu, precision: fp32, compile: false}}
eval: {{every: 0, hellaswag_every: 0, sample_every: 0}}
checkpoint: {{every: 21, margin_seconds: {margin_seconds}}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that is not the repository, with a toy's shards and configuration, and a Python in it."""
    folder = tmp_path_factory.mktemp("submitted from here")
    letters = np.array([*(string.ascii_letters + string.digits + " \n")])
    (folder / "toy.txt").write_text("".join(np.random.default_rng(0).choice(letters, 20_000)))
    made = run_command("python", ROOT / "prepare/shakespeare.py", *TOY, cwd=folder)
    assert made.returncode == 0, made.stderr
    (folder / "toy.yaml").write_text(CONFIG.format(folder=folder))
    (folder / "python").write_text(PYTHON)
    (folder / "python").chmod(0o755)
    return folder


def log_of(name: str, job: str, folder: Path) -> str:
    return (folder / f"{name}-{job}.log").read_text()


def losses(run: Path) -> dict[int, float]:
    return {row["step"]: row["loss"] for row in rows(run, "train")}


@pytest.fixture(scope="module")
def finished(slurm: SlurmCluster, work: Path) -> Path:
    """A run that a job of two nodes has trained; its log is beside it."""
    # common mistakes that do no harm: a task for each process, and no environment but these variables
    variables = NODES_USE | {"PYTHON": sys.executable}
    habits = ("--ntasks-per-node=2", "--export=" + ",".join(f"{name}={value}" for name, value in variables.items()))
    job = slurm.sbatch("--nodes=2", *habits, TRAIN, "--config", "toy.yaml", "--run.dir", "two", cwd=work)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("train", job, work)
    (work / "two.log").write_text(log_of("train", job, work))
    return work / "two"


def test_two_nodes_train_one_run_and_finish_it(finished: Path, work: Path):
    log = (work / "two.log").read_text()
    assert (finished / "DONE").exists(), log
    assert "2 node(s) n[1-2], 1 process(es) on each" in log
    assert "step:  2 processes" in log
    alone = run_command("python", ROOT / "train/train_gpt2.py", "--config", "toy.yaml", "--run.dir", "alone", cwd=work)
    assert alone.returncode == 0, alone.stderr
    assert list(losses(finished)) == list(range(1, 9))
    assert losses(finished) == pytest.approx(losses(work / "alone"), abs=1e-5)


class Interrupted:
    """A job that trains `work / name`, how it is interrupted, and how it ends."""

    def __init__(self, slurm: SlurmCluster, work: Path, name: str, *options: str, **config: int) -> None:
        self.slurm, self.run, self.config = slurm, work / name, work / f"{name}.yaml"
        self.configure(**config)
        command = (*(options or ["--nodes=2"]), TRAIN, "--config", self.config.name, "--run.dir", name)
        self.job = slurm.sbatch(*command, cwd=work, **NODES_USE)
        self.log = work / f"train-{self.job}.log"

    def configure(self, max_steps: int = 1_000_000, margin_seconds: int = 0) -> None:
        """Write its configuration, which each start reads."""
        self.steps = max_steps
        text = ENDLESS.format(folder=self.run.parent, max_steps=max_steps, margin_seconds=margin_seconds)
        self.config.write_text(text)

    def wait_for(self, happened: Callable[[], object]) -> None:
        deadline = time.monotonic() + 240
        while not happened():
            assert time.monotonic() < deadline, self.log.read_text() if self.log.exists() else "it has not started"
            time.sleep(0.1)

    def last_step(self) -> int:
        return max(losses(self.run), default=0) if (self.run / "metrics.jsonl").exists() else 0

    def trained(self, steps: int) -> "Interrupted":
        """Wait until it has finished `steps` steps."""
        self.wait_for(lambda: self.last_step() >= steps)
        return self

    def requeued(self, restarts: int = 1) -> "Interrupted":
        """Wait until it is requeued, and give the run a last step."""
        self.wait_for(lambda: self.slurm.restarts(self.job) == restarts)
        self.configure((self.last_step() // EVERY + 1) * EVERY)
        return self

    def ended(self) -> "Interrupted":
        """Wait for the job's end."""
        self.states = self.slurm.wait(self.job)
        self.text, self.restarts = self.log.read_text(), self.slurm.restarts(self.job)
        return self

    def kill_rank_0(self) -> None:
        """kill -9 of the training process that writes the checkpoints."""
        wanted = {f"SLURM_JOB_ID={self.job}".encode(), b"RANK=0"}
        found = [
            int(process.name)
            for process in Path("/proc").glob("[0-9]*")
            if wanted <= set(contents(process / "environ").split(b"\0"))
        ]
        assert len(found) == 1
        assert b"slurmstepd" in ancestry(found[0])
        os.kill(found[0], signal.SIGKILL)


def contents(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:  # the process has ended
        return b""


def ancestry(pid: int) -> bytes:
    """The names of a process and of its ancestors."""
    name, _, rest = Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")
    parent = int(rest.split()[1])
    return name + (ancestry(parent) if parent else b"")


@pytest.fixture(scope="module")
def jobs(slurm: SlurmCluster, work: Path) -> dict[str, Interrupted]:
    """Jobs that are interrupted, all at a time."""

    def interrupted() -> Interrupted:
        """In four ways, and then in a fifth: each start has finished some steps, and saved most of the time."""
        job = Interrupted(slurm, work, "interrupted")
        for restarts, interrupt in enumerate(
            (
                # what --signal=B:USR1@120 does, without the wait
                lambda: slurm.run("scancel", "--batch", "--signal=USR1", job.job),
                lambda: slurm.run("scancel", "--signal=TERM", job.job),
                job.kill_rank_0,
                lambda: slurm.run("scontrol", "requeue", job.job),
            )
        ):
            job.trained(job.last_step() + EVERY + 1)
            interrupt()
            job.wait_for(lambda restarts=restarts: slurm.restarts(job.job) == restarts + 1)
        return job.trained(job.last_step() + EVERY + 1)

    def limits() -> Interrupted:
        """A limit of one minute, and a stop a minute before it: each start has time for one step."""
        return Interrupted(slurm, work, "limits", "--nodes=2", "--time=1", max_steps=3, margin_seconds=60).ended()

    def stuck() -> Interrupted:
        (work / "stuck").mkdir()
        (work / "stuck" / "checkpoints").touch()  # not a folder: nothing can be saved
        return Interrupted(slurm, work, "stuck", "--nodes=1", max_steps=1).ended()

    def stop() -> Interrupted:
        job = Interrupted(slurm, work, "stop").trained(1)
        (job.run / "STOP").touch()
        return job.ended()

    with ThreadPoolExecutor(4) as pool:
        futures = {each.__name__: pool.submit(each) for each in (interrupted, limits, stuck, stop)}
    jobs = {name: future.result() for name, future in futures.items()}
    slurm.run("scontrol", "update", "nodename=n2", "state=down", "reason=test")  # the others have ended: it takes all
    try:
        jobs["interrupted"].requeued(restarts=5)
    finally:
        # refused where the node has answered meanwhile, and is up again
        slurm.run("scontrol", "update", "nodename=n2", "state=resume", check=False)
    jobs["interrupted"].ended()
    return jobs


@pytest.fixture(scope="module")
def uninterrupted(slurm: SlurmCluster, jobs: dict[str, Interrupted], work: Path) -> Path:
    """The checkpoints of an uninterrupted run on two nodes, as long as the longest of the others."""
    steps = max(job.steps for name, job in jobs.items() if name != "stop")
    options = ("--config", "interrupted.yaml", "--run.dir", "uninterrupted", "--train.max_steps", steps)
    keep = ("--checkpoint.every", 3, "--checkpoint.keep", 10_000)
    job = slurm.sbatch("--nodes=2", TRAIN, *options, *keep, cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("train", job, work)
    assert slurm.restarts(job) == 0
    return work / "uninterrupted" / "checkpoints"


def check_complete(job: Interrupted, checkpoints: Path) -> None:
    """Check that it finished, has every step once, and the uninterrupted run's losses and weights, bit for bit."""
    assert job.states == {"COMPLETED"}, job.text
    assert (job.run / "DONE").exists(), job.text
    assert "the run is complete" in job.text
    assert [row["step"] for row in rows(job.run, "train")] == list(range(1, job.steps + 1))
    expected = losses(checkpoints.parent)
    assert losses(job.run) == {step: expected[step] for step in range(1, job.steps + 1)}
    weights = f"step_{job.steps:08d}/model.safetensors"
    assert (job.run / "checkpoints" / weights).read_bytes() == (checkpoints / weights).read_bytes()


def test_a_run_that_needs_three_times_its_time_limit_requeues_itself_until_it_is_finished(
    jobs: dict[str, Interrupted], uninterrupted: Path
):
    job = jobs["limits"]
    check_complete(job, uninterrupted)
    assert job.restarts >= 2
    again = re.findall(r"stopped by (?:Slurm's time limit|SIGUSR1); requeueing", job.text)
    assert len(again) == job.restarts, job.text


def test_a_job_that_is_interrupted_in_five_ways_is_requeued_and_ends_as_the_uninterrupted_one(
    jobs: dict[str, Interrupted], uninterrupted: Path
):
    job = jobs["interrupted"]
    check_complete(job, uninterrupted)
    assert job.restarts == 5
    reasons = (
        "the time limit is near; asking the run to save and stop",
        "stopped by SIGTERM; requeueing, to resume from step_",
        "the run failed with status 1: the first error above says why; requeueing",
        "ended by Slurm; its checkpoints remain",
        "DUE TO NODE FAILURE",
    )
    places = [job.text.find(reason) for reason in reasons]
    assert -1 not in places, job.text
    assert places == sorted(places), job.text


def test_the_last_task_of_an_array_which_has_the_arrays_id_is_requeued_alone(slurm: SlurmCluster, work: Path):
    job = Interrupted(slurm, work, "array", "--array=1-2%1").trained(1)
    first, job.job = f"{job.job}_1", f"{job.job}_2"
    (job.run / "STOP").touch()
    job.wait_for(job.log.exists)  # named after the array, and so the second's
    job.trained(max(losses(job.run)) + EVERY)
    slurm.run("scancel", "--batch", "--signal=USR1", job.job)
    job.requeued().ended()
    assert (job.states, job.restarts, slurm.restarts(first)) == ({"COMPLETED"}, 1, 0), job.text
    assert "the time limit is near; asking the run to save and stop" in job.text
    assert "stopped by SIGUSR1; requeueing" in job.text
    assert "the run is complete" in job.text


def test_a_job_that_cannot_be_requeued_and_is_not_finished_has_failed(slurm: SlurmCluster, work: Path):
    job = Interrupted(slurm, work, "once", "--nodes=1", "--no-requeue").trained(1)
    slurm.run("scancel", "--batch", "--signal=USR1", job.job)
    job.ended()
    assert (job.states, job.restarts) == ({"FAILED"}, 0), job.text
    assert "stopped by SIGUSR1; requeueing" in job.text
    assert "not requeued: submit it again" in job.text


def test_help_is_printed_and_nothing_trained(slurm: SlurmCluster, work: Path):
    before = {path for path in work.iterdir() if path.is_dir()}
    job = slurm.sbatch(TRAIN, "--help", cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("train", job, work)
    alone = run_command("python", ROOT / "train/train_gpt2.py", "--help", cwd=work)
    assert log_of("train", job, work) == alone.stdout
    assert {path for path in work.iterdir() if path.is_dir()} == before


def test_a_stop_file_ends_the_job_and_any_number_of_nodes_resumes_it(
    slurm: SlurmCluster, work: Path, jobs: dict[str, Interrupted]
):
    job = jobs["stop"]
    assert (job.states, job.restarts) == ({"COMPLETED"}, 0), job.text
    assert "the run saved and stopped because of its STOP file" in job.text
    assert not (job.run / "DONE").exists()
    saved = max(losses(job.run))
    assert (job.run / "checkpoints" / f"step_{saved:08d}" / "meta.json").exists()
    job = Interrupted(slurm, work, "stop", "--nodes=1", max_steps=saved + 2).ended()
    assert job.states == {"COMPLETED"}, job.text
    assert (job.run / "DONE").exists()
    assert list(losses(job.run)) == list(range(1, saved + 3))


def test_a_job_without_progress_fails(jobs: dict[str, Interrupted]):
    job = jobs["stuck"]
    assert (job.states, job.restarts) == ({"FAILED"}, 3), job.text
    assert job.text.count("giving up: 3 restarts from the beginning made no progress") == 1


def test_a_mistake_fails_the_job_and_its_log_says_which(slurm: SlurmCluster, work: Path):
    arguments = ("--config", "toy.yaml", "--run.dir", "mistaken", "--data.train", "none*.bin")
    job = slurm.sbatch("--nodes=2", TRAIN, *arguments, cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"FAILED"}
    assert f"error: no token shards match {work}/none*.bin or " in log_of("train", job, work)
    assert "the run failed with status 1 before its first step" in log_of("train", job, work)
    assert slurm.restarts(job) == 0


def test_a_mistaken_argument_fails_the_job_before_it_starts_anything(slurm: SlurmCluster, work: Path):
    job = slurm.sbatch("--nodes=2", TRAIN, "--run.dir", "never", "--train.max_step", 3, cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"FAILED"}
    log = log_of("train", job, work).splitlines()
    assert [line.partition(":")[0] for line in log] == ["error"], log
    assert not (work / "never").exists()


@pytest.fixture(scope="module")
def mistaken(slurm: SlurmCluster, work: Path) -> dict[str, tuple[set[str], str]]:
    """Jobs that end before they do anything, by the name of what is mistaken: their states and logs."""
    clone = work / "a clone"
    shutil.copytree(ROOT / "slurm", clone / "slurm")
    shutil.copy(EVAL, clone / "slurm" / "my_eval.sbatch")
    shutil.copy(EVAL, work / "lone.sbatch")
    (clone / "eval").symlink_to(ROOT / "eval")
    other = work / "other"
    other.mkdir()
    cases = {
        "dot": (clone, "--chdir", work, "./slurm/eval.sbatch", "none"),
        "inside": (clone / "slurm", "--chdir", work, "eval.sbatch", "none"),
        "up": (other, "--chdir", work, f"../{clone.name}/slurm/my_eval.sbatch", "none", "/a/slurm/b.sbatch"),
        "lone": (work, "lone.sbatch", "none"),
        "python": (work, "--export=PYTHON=/no/such/python", EVAL),
        "list": (work, "--array=1,2,5", PREPARE),
    }
    log = "--output=mistaken-%A.log"
    jobs = {name: slurm.sbatch(log, *words, cwd=cwd, **NODES_USE) for name, (cwd, *words) in cases.items()}
    return {name: (slurm.wait(job), (work / f"mistaken-{job}.log").read_text()) for name, job in jobs.items()}


@pytest.mark.parametrize(
    ("name", "line"),
    [
        *((path, "error: no script eval/none.py: name one of classify explain") for path in ("dot", "inside", "up")),
        ("lone", "error: no slurm/site.sh in {work}: submit the job from the repository's folder"),
        ("python", "error: no PyTorch or no tqdm for /no/such/python: make an environment"),
        ("list", "error: this --array is a list with gaps, which would leave out input: sbatch --array=1-3"),
    ],
)
def test_a_mistake_is_one_line_and_the_repository_is_found_however_the_script_is_named(
    name: str, line: str, mistaken: dict[str, tuple[set[str], str]], work: Path
):
    states, log = mistaken[name]
    assert states == {"FAILED"}
    assert set(log.splitlines()) == {log.splitlines()[0]}, log
    assert log.startswith(line.format(work=work)), log


def write_documents(folder: Path, files: int, documents: int, words: int) -> None:
    generator = np.random.default_rng(1)
    folder.mkdir()
    for number in range(files):
        texts = (" ".join(map(str, generator.integers(0, 10**6, words).tolist())) for _ in range(documents))
        (folder / f"{number}.jsonl").write_text("\n".join(json.dumps({"text": text}) for text in texts))


def check_same_folders(ours: Path, alone: Path, at_least: int) -> None:
    """Check that they hold the same shards and the same manifest, byte for byte."""
    names = sorted(path.name for path in alone.glob("*.bin"))
    assert len(names) >= at_least
    assert sorted(path.name for path in ours.glob("*.bin")) == names
    for name in [*names, "manifest.json"]:
        assert (ours / name).read_bytes() == (alone / name).read_bytes(), name


def test_two_tasks_of_an_array_write_what_one_process_writes(slurm: SlurmCluster, work: Path):
    write_documents(work / "docs", files=5, documents=30, words=40)
    inputs = ("--input", *(f"docs/{number}.jsonl" for number in range(5)), "--shard-tokens", "3000")
    job = slurm.sbatch("--array=3-5:2", PREPARE, *inputs, "--out", "array", cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, [log.read_text() for log in work.glob("prepare-*.log")]
    logs = [log_of("prepare", f"{job}_{task}", work) for task in (3, 5)]
    assert "task 1/2 with 4 workers" in logs[0]
    assert "task 2/2 with 4 workers" in logs[1]
    alone = run_command("python", ROOT / "prepare/fineweb.py", *inputs, "--out", "alone_shards", cwd=work)
    assert alone.returncode == 0, alone.stderr
    check_same_folders(work / "array", work / "alone_shards", at_least=5)


def test_a_task_of_an_array_that_is_requeued_in_the_middle_of_a_file_resumes(slurm: SlurmCluster, work: Path):
    write_documents(work / "long", files=2, documents=800, words=4000)
    inputs = ("--input", "long", "--shard-tokens", "20000")
    job = slurm.sbatch("--array=1-2", PREPARE, *inputs, "--out", "requeued", cwd=work, **NODES_USE)
    log = work / f"prepare-{job}_2.log"
    partial, finished = (work / "requeued" / ".progress" / name for name in ("001.part.json", "001.json"))
    deadline = time.monotonic() + 120
    while not (partial.exists() and len(json.loads(partial.read_text())["shards"]) >= 10):
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.005)
    slurm.run("scontrol", "requeue", f"{job}_2")
    while not slurm.restarts(f"{job}_2"):
        time.sleep(0.1)
    assert partial.exists(), "the file was finished before the task was killed"
    assert not finished.exists()
    kept = [work / "requeued" / shard["file"] for shard in json.loads(partial.read_text())["shards"]]
    files = [path.stat().st_ino for path in kept]
    assert slurm.wait(job) == {"COMPLETED"}, log.read_text()
    assert [path.stat().st_ino for path in kept] == files  # not written again
    assert log.read_text().count("task 2/2 with 4 workers") == 2
    alone = run_command("python", ROOT / "prepare/fineweb.py", *inputs, "--out", "long_shards", cwd=work)
    assert alone.returncode == 0, alone.stderr
    check_same_folders(work / "requeued", work / "long_shards", at_least=100)


def test_a_finished_run_is_scored(slurm: SlurmCluster, finished: Path, work: Path):
    job = slurm.sbatch(EVAL, "val_loss", "--model", finished, "--data", "data/*_val_*.bin", cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("eval", job, work)
    assert "loss:    4." in log_of("eval", job, work)  # random letters: ln 64 = 4.16


def test_a_sweep_whose_tasks_are_killed_and_stopped_is_that_of_one_machine(slurm: SlurmCluster, work: Path):
    """Two tasks train two runs each: one is killed in the middle of its first, with its sweep, and requeued; the other
    comes near its time limit, and requeues itself."""
    write_shards(work / "sweep_data")
    text = CONFIG.format(folder=work).replace("/data/", "/sweep_data/").replace("max_steps: 8", "max_steps: 150")
    (work / "sweep.yaml").write_text(text.replace("every: 4", "every: 20") + "log: {wandb: disabled}\n")
    words = ("--config", "sweep.yaml", "--grid", "optim.max_lr=1e-2,2e-2", "--seeds", "2")
    job = slurm.sbatch("--array=1-2", SWEEP, *words, "--out", "swept", cwd=work, **NODES_USE)
    logs = [work / f"sweep-{job}_{task}.log" for task in (1, 2)]
    deadline = time.monotonic() + 240

    def wait_for(happened: Callable[[], object]) -> None:
        while not happened():
            assert time.monotonic() < deadline, [log.read_text() for log in logs if log.exists()]
            time.sleep(0.01)

    first, second = (work / "swept" / f"max_lr={lr},seed=1" for lr in ("0.01", "0.02"))
    wait_for(lambda: (second / "checkpoints" / "step_00000020").exists())
    trainer = int((second / ".lock").read_text().split()[0])
    tasks_sweep = int(Path(f"/proc/{trainer}/stat").read_text().rpartition(")")[2].split()[1])  # its parent
    for process in (tasks_sweep, trainer):
        os.kill(process, signal.SIGKILL)
    wait_for(lambda: (first / "metrics.jsonl").exists() and losses(first))
    slurm.run("scancel", "--batch", "--signal=USR1", f"{job}_1")
    wait_for(lambda: "JobState=FAILED" in slurm.run("scontrol", "show", "job", f"{job}_2").stdout)
    assert not (second / "DONE").exists()
    slurm.run("scontrol", "requeue", f"{job}_2")
    wait_for(lambda: slurm.restarts(f"{job}_1"))
    assert slurm.wait(job) == {"COMPLETED"}, [log.read_text() for log in logs]
    assert "the time limit is near; requeueing" in logs[0].read_text()
    assert logs[1].read_text().count("task 2/2 with 1 process(es)") == 2

    alone = run_command("python", ROOT / "train/sweep.py", *words, "--out", "swept_alone", cwd=work)
    assert alone.returncode == 0, alone.stderr
    ours, theirs = (json.loads((work / name / "sweep.json").read_text()) for name in ("swept", "swept_alone"))
    assert [row["seeds"] for row in ours["settings"]] == [2, 2]
    for row in (*ours["settings"], *theirs["settings"]):
        del row["seconds"], row["tokens_per_s"]
    assert ours == theirs
    for run in (path.name for path in (work / "swept").iterdir() if path.is_dir()):
        assert losses(work / "swept" / run) == losses(work / "swept_alone" / run)
