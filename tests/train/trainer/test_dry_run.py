"""run.dry: what it predicts of a small run, and that nothing is left behind."""

import json
import re
from pathlib import Path

import pytest

from prepare.common.cli import UserError
from tests.helpers.commands import ROOT, run_command
from tests.helpers.tiny import settings, two_sources, write_shards
from train.config.pretrain import CheckpointConfig
from train.run.metrics_log import duration
from train.sweeping.power_law import fit_power_law
from train.train_gpt2 import main
from train.trainer.dry_run import DryRun, count_saves


@pytest.fixture
def start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    """Train in this process: the table's rows, all that was printed, and the parts of the time."""
    monkeypatch.setattr("train.run.stop_request.signal.signal", lambda *_: None)
    monkeypatch.setattr("train.trainer.dry_run.MEASURED_SECONDS", 0.01)
    monkeypatch.setattr("train.run.trackers.TensorBoard.start", lambda *_: pytest.fail("a dry run wrote an event file"))
    data, parts = write_shards(tmp_path / "data"), []

    def recorded(dry_run: DryRun) -> dict[str, str]:
        parts[:] = dry_run.parts()
        return table(dry_run)

    table = DryRun.table
    monkeypatch.setattr(DryRun, "table", recorded)

    def start(**changes: object) -> tuple[dict[str, str], str, list[tuple[str, int, float]]]:
        words = settings(data, tmp_path / "runs" / "mine", eval__every=10, checkpoint__every=4, **changes)
        monkeypatch.setattr("sys.argv", ["train_gpt2.py", *words])
        main()
        out = capsys.readouterr().out
        return dict(re.findall(r"^(\w+)  +(.*)$", out.rpartition("\n\n")[2], re.MULTILINE)), out, list(parts)

    return start


def tree(folder: Path) -> dict[Path, int]:
    """All paths, and when each file changed."""
    return {path: 0 if path.is_dir() else path.lstat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_predicts_the_run_and_leaves_nothing(start, tmp_path: Path) -> None:
    sweep, law = tmp_path / "sweep.json", fit_power_law([1000, 2000, 4000], [4.0, 3.5, 3.1], 10_240)
    sweep.write_text(json.dumps({"fit": law}))
    before = tree(tmp_path)
    changes = {"log__tensorboard": "true", "run__price_per_hour": 3600, "run__fit": sweep}
    rows, out, parts = start(run__dry="true", checkpoint__keep_steps="[1,2]", **changes)
    assert out.count(": checkpoint, pause_seconds") == 1  # at the end, not between measured steps
    assert tree(tmp_path) == before
    assert rows["parameters"] == "28,544, 25,408 in the layers"
    assert rows["disk"] == "0.4 MB a checkpoint"
    assert rows["data"] == f"{20 * 512:,} tokens, 0.73 epochs"
    assert rows["compute"].startswith(f"{10_240 * (6 * (28_544 - 32 * 32) + 12 * 2 * 32 * 32):.3g} FLOPs")
    counts = {"start": 1, "step": 20, "val": 3, "save": 7, "last write": 1}
    assert {name: count for name, count, _ in parts} == counts
    assert all(seconds > 0 for *_, seconds in parts)
    total = sum(count * seconds for _, count, seconds in parts)
    assert float(rows["cost"].split(",")[0][1:]) == pytest.approx(total, abs=0.005)
    assert f"20 x step {duration(20 * parts[1][2])}" in rows["time"]
    assert "from step" not in rows["time"]
    assert float(rows["loss"].split()[0]) == pytest.approx(law["A"] * 25_408 ** -law["alpha"], abs=5e-4)
    for text in ("", '{"fit": null}'):
        sweep.write_text(text)
        with pytest.raises(UserError, match=rf"run\.fit {sweep}"):
            start(run__dry="true", run__fit=sweep)


def test_with_an_existing_run_it_counts_what_remains_and_touches_nothing(start, tmp_path: Path) -> None:
    start(train__max_steps=10)
    before = tree(tmp_path)
    rows, out, parts = start(run__dry="true")
    assert "resumed at step 10" in out
    assert "from step 10: start" in rows["time"]
    counts = {name: count for name, count, _ in parts}
    assert (counts["step"], counts["val"], counts["save"]) == (10, 1, 3)
    assert "train.max_steps 10" in start(run__dry="true", train__max_steps=10)[1]
    with pytest.raises(UserError, match=f"{tmp_path}/runs/mine holds a run already"):
        start(run__dry="true", run__fresh="true")
    assert tree(tmp_path) == before


def test_on_two_processes_with_named_sources_and_samples(tmp_path: Path) -> None:
    data = write_shards(tmp_path / "data")
    changes = {"eval__every": 10, "train__max_steps": 8, "run__dry": "true", **two_sources(data)}
    torchrun = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2")
    before = tree(tmp_path)
    result = run_command(
        "python", *torchrun, ROOT / "train" / "train_gpt2.py", *settings(data, tmp_path / "run", **changes)
    )
    assert result.returncode == 0, result.stderr
    assert "4,096 tokens, 0.48 epochs one, 0.15 epochs others" in result.stdout
    assert "at the peak of a process" in result.stdout
    assert tree(tmp_path) == before


def test_saves_are_at_the_interval_and_at_the_end() -> None:
    assert [count_saves(0, 20, CheckpointConfig(every)) for every in (4, 6, 0, 50)] == [5, 4, 1, 1]
    assert [count_saves(first, 20, CheckpointConfig(6, keep_steps=[1, 12, 19])) for first in (0, 6, 18)] == [6, 4, 2]
