"""Checkpoints: what is saved comes back, half of one is never found, and each bad one has its line."""

import errno
import json
import os
import pickle
import shutil
from dataclasses import asdict
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prepare.common.cli import UserError
from tests.helpers.checkpoints import CONFIG, FACTS, corrupt_file, save, trained
from train.config.pretrain import CheckpointConfig
from train.run import checkpoint
from train.run.resume import resume
from train.weights.load_model import load_model


def names(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def test_files_are_as_promised(tmp_path: Path) -> None:
    folder = tmp_path / "checkpoints" / "step_00000500"
    model, _ = save(tmp_path, 500)
    assert sorted(path.name for path in folder.iterdir()) == ["meta.json", "model.safetensors", "train_state.pt"]
    weights = load_file(folder / "model.safetensors")
    assert weights.keys() == model.state_dict().keys()
    assert not [name for name in weights if "_orig_mod" in name or "module." in name]
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["step"] == 500
    assert meta["model"]["n_embd"] == 16
    torch.load(folder / "train_state.pt", weights_only=True)


def test_a_checkpoint_appears_when_all_of_it_is_on_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files and their folder, before the rename; then the folders around it, which have its name."""
    synced, fsync, rename = [], os.fsync, Path.rename

    def record(handle: int) -> None:
        synced.append(Path(f"/proc/self/fd/{handle}").readlink().relative_to(tmp_path).as_posix())
        fsync(handle)

    def appear(path: Path, final: Path) -> Path:
        synced.append(f"to {final.name}")
        return rename(path, final)

    monkeypatch.setattr(os, "fsync", record)
    monkeypatch.setattr(Path, "rename", appear)
    save(tmp_path, 5)
    unfinished = "checkpoints/.step_00000005.tmp"
    files = {f"{unfinished}/{name}" for name in ("model.safetensors", "train_state.pt", "meta.json")}
    assert set(synced[:3]) == files
    assert synced[3:] == [unfinished, "to step_00000005", "checkpoints", "."]


def test_the_latest_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 15, 20, 25):
        save(tmp_path, step)
    losses = {0: 0.5, 10: 2.0, 15: 2.0, 20: 2.5}  # step 0 was not saved
    checkpoint.prune(tmp_path, CheckpointConfig(keep=2), val_losses=losses)
    assert names(tmp_path) == ["step_00000010", "step_00000020", "step_00000025"]
    save(tmp_path, 30)
    checkpoint.prune(tmp_path, CheckpointConfig(keep=1), val_losses=losses | {20: 1.0})
    assert names(tmp_path) == ["step_00000020", "step_00000030"]
    for step in (40, 50, 60):
        save(tmp_path, step)
    checkpoint.prune(tmp_path, CheckpointConfig(keep=1, keep_every=20), val_losses={})
    assert names(tmp_path) == ["step_00000020", "step_00000040", "step_00000060"]
    save(tmp_path, 70)
    checkpoint.prune(tmp_path, CheckpointConfig(keep=1, keep_steps=[20, 30, 60]), val_losses={})
    assert names(tmp_path) == ["step_00000020", "step_00000060", "step_00000070"]
    save(tmp_path, 123_456_789)
    checkpoint.prune(tmp_path, CheckpointConfig(keep=1), val_losses={})
    assert names(tmp_path) == ["step_123456789"]


def test_a_partial_checkpoint_is_not_found_and_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def die(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", die)
        with pytest.raises(RuntimeError, match="unexpected pos"):
            save(tmp_path, 10)
    assert names(tmp_path) == ["step_00000005"]
    (tmp_path / "checkpoints" / ".step_00000015.tmp" / "x").mkdir(parents=True)  # as a kill would leave it
    assert checkpoint.latest_checkpoint(tmp_path).name == "step_00000005"
    checkpoint.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step_00000005"]


def busy(folder: Path) -> None:
    """The error of NFS for a folder with an open file."""
    raise OSError(errno.ENOTEMPTY, os.strerror(errno.ENOTEMPTY), str(folder))


def test_a_checkpoint_that_cannot_be_removed_is_a_warning_and_not_in_the_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    old = tmp_path / "checkpoints" / "step_00000005"
    with monkeypatch.context() as reading:
        reading.setattr(shutil, "rmtree", lambda path, ignore_errors=False: ignore_errors or busy(path))
        checkpoint.prune(tmp_path, CheckpointConfig(keep=1), val_losses={})
        assert capsys.readouterr().err == f"warning: {old} could not be removed (Directory not empty)\n"
        assert names(tmp_path) == [".step_00000005.tmp", "step_00000010"]
        save(tmp_path, 5)  # at a step whose unfinished folder stands there
        checkpoint.prune(tmp_path, CheckpointConfig(keep=1), val_losses={})
        capsys.readouterr()
        checkpoint.remove_unfinished(tmp_path)
        assert capsys.readouterr().err.count("could not be removed (Directory not empty)") == 2
    checkpoint.remove_unfinished(tmp_path)
    assert names(tmp_path) == ["step_00000010"]


def test_a_link_to_a_checkpoint_is_removed_and_what_it_names_is_not(tmp_path: Path) -> None:
    save(tmp_path, 5)
    old, elsewhere = tmp_path / "checkpoints" / "step_00000005", tmp_path / "elsewhere"
    old.rename(elsewhere)
    old.symlink_to(elsewhere)
    save(tmp_path, 10)
    checkpoint.prune(tmp_path, CheckpointConfig(keep=1), val_losses={})
    assert names(tmp_path) == ["step_00000010"]
    assert checkpoint.read_meta(elsewhere)["step"] == 5


def test_rolling_back_warns_of_a_later_checkpoint_that_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for step in (5, 10):
        save(tmp_path, step)
    with monkeypatch.context() as foreign:
        foreign.setattr(Path, "rename", lambda path, _to: busy(path))
        assert checkpoint.roll_back_to_best(tmp_path, {5: 1.0, 10: 2.0}).name == "step_00000005"
    assert "could not be removed" in capsys.readouterr().err
    assert (
        checkpoint.roll_back_to_best(tmp_path, {5: 1.0, 10: 1.0}).name == "step_00000005"
    )  # as good: the one that prune keeps
    assert names(tmp_path) == ["step_00000005"]


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", "meta.json"])
@pytest.mark.parametrize("how", ["cut", "missing", "empty", "flipped"])
def test_a_corrupt_checkpoint_is_named_and_the_one_before_it_taken(
    tmp_path: Path, capsys: pytest.CaptureFixture, name: str, how: str
) -> None:
    model, _ = save(tmp_path, 5, seed=1)
    save(tmp_path, 10, seed=2)
    latest = tmp_path / "checkpoints" / "step_00000010"
    corrupt_file(latest / name, how)
    other, optimizer = trained(seed=3)
    resumed = resume(tmp_path, other, optimizer, FACTS)
    assert (resumed.step, resumed.corrupt) == (5, (latest,))
    assert torch.equal(other.wte.weight, model.wte.weight)
    warning = capsys.readouterr().err
    assert f"warning: {latest / name} is corrupt (" in warning
    assert warning.endswith("taking the checkpoint before it\n")
    assert warning.count("\n") == 1
    checkpoint.rename_corrupt(resumed.corrupt)
    assert names(tmp_path) == ["step_00000005", "step_00000010.corrupt"]
    save(tmp_path, 10)
    corrupt_file(latest / name, how)
    checkpoint.rename_corrupt(checkpoint.latest_valid_checkpoint(tmp_path)[2])  # a second time at the same step
    assert names(tmp_path) == ["step_00000005", "step_00000010.2.corrupt", "step_00000010.corrupt"]
    corrupt_file(tmp_path / "checkpoints" / "step_00000005" / name, how)
    with pytest.raises(UserError, match=r"none of the 1 checkpoints in .* is valid"):
        resume(tmp_path, *trained(), FACTS)


def malicious_pickle(proof: Path) -> object:
    class Malicious:
        def __reduce__(self):  # what pickle would call
            return Path.touch, (proof,)

    return Malicious()


def test_opening_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    """Somebody else's checkpoint has the right checksums, and an object in its state that touches a file."""
    model, _ = save(tmp_path, 5)
    proof = tmp_path / "executed"
    described = {"model": asdict(CONFIG), **FACTS}
    state = {"optimizer": {0: malicious_pickle(proof)}}
    checkpoint.write(tmp_path, 10, model.state_dict(), state, described)
    with pytest.raises(UserError, match=r"train_state.pt is corrupt"):
        resume(tmp_path, *trained(), FACTS)
    load_model(str(tmp_path))
    assert not proof.exists()
    pickle.loads(pickle.dumps(malicious_pickle(proof)))  # the trap itself works
    assert proof.exists()


def test_links_to_files_are_followed_and_one_that_leads_nowhere_renames_nothing(tmp_path: Path) -> None:
    """As in a cache of the hub, or where a run was moved to another disk."""
    save(tmp_path, 5)
    folder, blobs = tmp_path / "checkpoints" / "step_00000005", tmp_path / "blobs"
    blobs.mkdir()
    for file in list(folder.iterdir()):
        file.rename(blobs / file.name)
        file.symlink_to(Path("..", "..", "blobs", file.name))
    assert resume(tmp_path, *trained(), FACTS).step == load_model(str(folder)).step == 5
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "checkpoints")
    assert checkpoint.read_meta(link / "step_00000005")["step"] == 5
    for target in (blobs / "train_state.pt", blobs):
        target.rename(tmp_path / "unmounted")
        with pytest.raises(UserError, match=r"is a link to .*blobs.*not a file here") as failure:
            resume(tmp_path, *trained(), FACTS)
        assert not isinstance(failure.value, checkpoint.CorruptCheckpoint)
        (tmp_path / "unmounted").rename(target)
