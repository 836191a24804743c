"""A run's directory: one process at a time, and `run.fresh` touches no used one."""

import os
from pathlib import Path

import pytest
import torch

from prepare.common.cli import UserError
from train.config.pretrain import Config, PretrainRunConfig, load_config
from train.parallel.world import World
from train.run.run_dir import RunDir

MAIN, OTHER = World(0, 1, torch.device("cpu")), World(1, 1, torch.device("cpu"))


def config(path: Path, fresh: bool = False) -> Config:
    return Config(run=PretrainRunConfig(dir=str(path), fresh=fresh))


def test_the_configuration_is_kept_and_done_marks_the_end(tmp_path: Path) -> None:
    run = RunDir(config(tmp_path / "a"), MAIN)
    run.begin(config(tmp_path / "a"))
    assert load_config(["--config", str(tmp_path / "a" / "config.yaml")], "") == config(tmp_path / "a")
    assert not run.is_done
    run.finish(20)
    assert (tmp_path / "a" / "DONE").read_text() == "20\n"
    assert not run.is_done  # train.max_steps is 18865: somebody has raised it
    for steps in (18865, 20_000):  # or lowered it
        run.finish(steps)
        assert run.is_done
    for text in ("", "by hand\n"):
        (tmp_path / "a" / "DONE").write_text(text)
        assert run.is_done
    run.begin(config(tmp_path / "a"))
    assert not (tmp_path / "a" / "DONE").exists()


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    first = RunDir(config(tmp_path), MAIN)
    with pytest.raises(UserError, match=f"in use by process {os.getpid()}"):
        RunDir(config(tmp_path), MAIN)
    RunDir(config(tmp_path), OTHER)  # the other ranks of a run share its directory
    first._lock.release()
    RunDir(config(tmp_path), MAIN)


@pytest.mark.parametrize("used", ["metrics.jsonl", "checkpoints/step_00000005/meta.json"])
def test_fresh_refuses_a_used_directory(tmp_path: Path, used: str) -> None:
    RunDir(config(tmp_path / "new", fresh=True), MAIN)
    (tmp_path / "new" / "metrics.jsonl").touch()  # a start that ended before its first step
    RunDir(config(tmp_path / "new", fresh=True), MAIN)
    (tmp_path / "old" / used).parent.mkdir(parents=True)
    (tmp_path / "old" / used).write_text("{}\n")
    with pytest.raises(UserError, match="holds a run already"):
        RunDir(config(tmp_path / "old", fresh=True), MAIN)


def test_corrupt_checkpoints_are_renamed(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step_00000005").mkdir(parents=True)
    RunDir(config(tmp_path), OTHER).begin(config(tmp_path), [tmp_path / "checkpoints" / "step_00000005"])
    assert (tmp_path / "checkpoints" / "step_00000005").exists()  # rank 0's business
    RunDir(config(tmp_path), MAIN).begin(config(tmp_path), [tmp_path / "checkpoints" / "step_00000005"])
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["step_00000005.corrupt"]
