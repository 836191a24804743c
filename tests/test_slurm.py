"""The sbatch scripts on a real Slurm of two nodes: training, a stop before the time limit, a job array, scores."""

import json
import string
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from tests.conftest import ROOT, run_command
from tests.slurm_cluster import SlurmCluster

pytestmark = [pytest.mark.slurm, pytest.mark.slow]
TRAIN, PREPARE, EVAL = (ROOT / "slurm" / f"{name}.sbatch" for name in ("train", "prepare", "eval"))
TOY = ("--level", "char", "--input", "toy.txt", "--out", "data")
NODES_USE = {"PYTHON": sys.executable, "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}

CONFIG = """
model: {{n_layer: 1, n_head: 2, n_embd: 16, block_size: 32, vocab_size: 64}}
data:
  train: "{folder}/data/*_train_*.bin"
  val: "{folder}/data/*_val_*.bin"
  batch_tokens: 256
  micro_batch_size: 2
optim: {{max_lr: 0.01, warmup_steps: 2}}
train: {{max_steps: 8, device: cpu, compile: false}}
eval: {{every: 4, val_tokens: 256, hellaswag_every: 0, sample_every: 0}}
checkpoint: {{every: 4, margin_seconds: 0}}
"""


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory that is not the repository, with a toy's shards and configuration in it."""
    folder = tmp_path_factory.mktemp("submitted from here")
    letters = np.array([*(string.ascii_letters + string.digits + " \n")])
    (folder / "toy.txt").write_text("".join(np.random.default_rng(0).choice(letters, 20_000)))
    made = run_command("python", ROOT / "prepare/shakespeare.py", *TOY, cwd=folder)
    assert made.returncode == 0, made.stderr
    (folder / "toy.yaml").write_text(CONFIG.format(folder=folder))
    return folder


def log_of(name: str, job: str, folder: Path) -> str:
    return (folder / f"{name}-{job}.log").read_text()


def losses(run: Path) -> dict[int, float]:
    rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {row["step"]: row["loss"] for row in rows if row["kind"] == "train"}


@pytest.fixture(scope="module")
def finished(slurm: SlurmCluster, work: Path) -> Path:
    """A run that a job of two nodes has trained; its log is beside it."""
    job = slurm.sbatch("--nodes=2", TRAIN, "--config", "toy.yaml", "--run.dir", "two", cwd=work, **NODES_USE)
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


def test_near_the_time_limit_a_run_saves_and_the_same_command_finishes_it(slurm: SlurmCluster, work: Path):
    command = (TRAIN, "--config", "toy.yaml", "--run.dir", "stopped", "--train.max_steps")
    metrics = work / "stopped" / "metrics.jsonl"
    job = slurm.sbatch("--nodes=2", *command, 1_000_000, cwd=work, **NODES_USE)
    deadline = time.monotonic() + 120
    while not (metrics.exists() and '"train"' in metrics.read_text()):
        assert set(slurm.state(job).values()) <= {"PENDING", "RUNNING"}, log_of("train", job, work)
        assert time.monotonic() < deadline, log_of("train", job, work)
        time.sleep(0.2)
    slurm.run("scancel", "--batch", "--signal=USR1", job)  # what --signal=B:USR1@120 does, without the wait
    assert slurm.wait(job) == {"COMPLETED"}, log_of("train", job, work)
    assert "the time limit is near; asking the run to save and stop" in log_of("train", job, work)
    assert not (work / "stopped" / "DONE").exists()
    saved = max(losses(work / "stopped"))
    assert (work / "stopped" / "checkpoints" / f"step_{saved:08d}" / "meta.json").exists()

    job = slurm.sbatch("--nodes=1", *command, saved + 2, cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("train", job, work)
    assert (work / "stopped" / "DONE").exists()
    assert list(losses(work / "stopped")) == list(range(1, saved + 3))


def test_a_mistake_fails_the_job_and_its_log_says_which(slurm: SlurmCluster, work: Path):
    arguments = ("--config", "toy.yaml", "--run.dir", "mistaken", "--data.train", "none*.bin")
    job = slurm.sbatch("--nodes=2", TRAIN, *arguments, cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"FAILED"}
    assert "error: no token shards match 'none*.bin'" in log_of("train", job, work)
    assert "the run failed with status" in log_of("train", job, work)


def test_two_tasks_of_an_array_write_what_one_process_writes(slurm: SlurmCluster, work: Path):
    generator = np.random.default_rng(1)
    (work / "docs").mkdir()
    for number in range(5):
        documents = [{"text": " ".join(map(str, generator.integers(0, 10**6, 40)))} for _ in range(30)]
        (work / "docs" / f"{number}.jsonl").write_text("\n".join(map(json.dumps, documents)))
    inputs = ("--input", *(f"docs/{number}.jsonl" for number in range(5)), "--shard-tokens", "3000")
    job = slurm.sbatch("--array=3-5:2", PREPARE, *inputs, "--out", "array", cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, [log.read_text() for log in work.glob("prepare-*.log")]
    logs = [log_of("prepare", f"{job}_{task}", work) for task in (3, 5)]
    assert "task 1/2 with 4 workers" in logs[0]
    assert "task 2/2 with 4 workers" in logs[1]
    alone = run_command("python", ROOT / "prepare/fineweb.py", *inputs, "--out", "alone_shards", cwd=work)
    assert alone.returncode == 0, alone.stderr
    names = sorted(path.name for path in (work / "alone_shards").glob("*.bin"))
    assert len(names) >= 5
    for name in [*names, "manifest.json"]:
        assert (work / "array" / name).read_bytes() == (work / "alone_shards" / name).read_bytes(), name
    assert sorted(path.name for path in (work / "array").glob("*.bin")) == names


def test_a_finished_run_is_scored(slurm: SlurmCluster, finished: Path, work: Path):
    job = slurm.sbatch(EVAL, "val_loss", "--model", finished, "--data", "data/*_val_*.bin", cwd=work, **NODES_USE)
    assert slurm.wait(job) == {"COMPLETED"}, log_of("eval", job, work)
    assert "loss:    4." in log_of("eval", job, work)  # random letters: ln 64 = 4.16
