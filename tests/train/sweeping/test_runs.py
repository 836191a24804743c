"""The runs of a sweep: how a grid is split and named, and compared with runs that exist."""

import os
import signal
from pathlib import Path

import pytest
import yaml

from prepare.common.cli import ArgumentError, UserError
from train.config.parsing import plain_config
from train.run.stop_request import SIGNALS
from train.sweeping import runs as sweep_runs
from train.sweeping.runs import SweepRun, check_existing, parse_axis, plan_runs, train_runs

QUICKSTART = Path(__file__).resolve().parents[3] / "configs" / "quickstart.yaml"


def test_values_are_split_at_commas_outside_lists_and_joined_keys_at_plus() -> None:
    assert [text for [(_, text)] in parse_axis("a.b=[],[c,d],1e+3")] == ["[]", "[c,d]", "1e+3"]
    assert [dict(pairs) for pairs in parse_axis("model.n_layer+model.n_embd=3+128,4+192")] == [
        {"model.n_layer": "3", "model.n_embd": "128"},
        {"model.n_layer": "4", "model.n_embd": "192"},
    ]


def test_every_setting_with_every_seed_is_a_run_and_equal_values_are_one(tmp_path: Path) -> None:
    grid = ["optim.max_lr=2e-3,0.002", "optim.betas=[0.9,0.95]", "model.n_layer+data.val=3+a/*.bin,4+b.bin"]
    runs = plan_runs(QUICKSTART, grid, 2, tmp_path)
    settings = [
        f"max_lr=0.002,betas=[0.9,0.95],{last}" for last in ("n_layer=3,val=a%2F%2A.bin", "n_layer=4,val=b.bin")
    ]
    assert [run.path.name for run in runs] == [f"{setting},seed={seed}" for seed in (1, 2) for setting in settings]
    assert [run.setting for run in runs[:2]] == ["n_layer=3,val=a%2F%2A.bin", "n_layer=4,val=b.bin"]  # what differs
    assert {run.setting for run in plan_runs(QUICKSTART, grid[:2], 2, tmp_path)} == {"max_lr=0.002,betas=[0.9,0.95]"}
    last = runs[-1]
    assert last.values["model.n_layer"] == last.config.model.n_layer == 4
    assert last.arguments[2:4] == ["--run.dir", str(last.path)]
    assert last.arguments[-2:] == ["--data.val=b.bin", "--train.seed=2"]


@pytest.mark.parametrize(
    ("grid", "named"),
    [
        ("optim.max_lrr=1", "optim.max_lrr"),
        ("max_lr=1", "KEY=A,B"),
        ("model.n_layer+model.n_embd=3+128,4", "model.n_layer.*4 has 1 values"),
        ("train.seed=1,2", "train.seed.*--seeds"),
        ("eval.every=0", "eval.every"),
    ],
)
def test_a_mistake_in_the_grid_is_named(grid: str, named: str, tmp_path: Path) -> None:
    with pytest.raises(ArgumentError, match=named):
        plan_runs(QUICKSTART, [grid], 1, tmp_path)


def test_a_run_that_exists_must_have_the_same_settings(tmp_path: Path) -> None:
    [run] = plan_runs(QUICKSTART, ["optim.max_lr=1e-3"], 1, tmp_path)
    run.path.mkdir()
    check_existing([run])  # it has no configuration yet
    theirs = plain_config(run.config)
    del theirs["optim"]["eps"]  # as an older run
    theirs["model"]["vocab_size"] = 4096
    theirs["log"]["every"] = theirs["checkpoint"]["every"] = theirs["data"]["micro_batch_size"] = 7
    (run.path / "config.yaml").write_text(yaml.safe_dump(theirs))
    check_existing([run])
    theirs["train"]["max_steps"] = 9
    (run.path / "config.yaml").write_text(yaml.safe_dump(theirs))
    with pytest.raises(UserError, match=r"train\.max_steps 9"):
        check_existing([run])


def test_a_signal_between_two_runs_ends_the_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As Slurm's only one before its time limit: here while the end of the first run is printed."""
    runs, trained = plan_runs(QUICKSTART, ["optim.max_lr=1e-3"], 2, tmp_path), []

    def train_run(run: SweepRun, *_: object) -> int:
        trained.append(run)
        (run.path / "DONE").touch()
        return 0

    monkeypatch.setattr(sweep_runs, "train_run", train_run)
    monkeypatch.setattr(sweep_runs, "duration", lambda _seconds: os.kill(os.getpid(), signal.SIGUSR1))
    handlers = {number: signal.getsignal(number) for number in SIGNALS}
    try:
        assert train_runs(runs, 1) is None
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert trained == runs[:1]
    assert not list(tmp_path.rglob("STOP"))
