"""Checkpoints: what is saved comes back, half of one is never found, and each bad one has its line."""

import json
import os
import pickle
import subprocess
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from prepare.cli import UserError
from prepare.tokenizer import CharTokenizer
from train import checkpoint
from train.config import ModelConfig, OptimConfig
from train.model import GPT
from train.optim import build_optimizer

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=27)
CHARACTERS = "abcdefghijklmnopqrstuvwxyz\n"
BATCHES = {"tokens": 512, "seed": 1, "shuffle": True}
FACTS = {"tokenizer": CharTokenizer(CHARACTERS).describe(), "data": "0123456789abcdef", "batches": BATCHES}


def trained(seed: int = 0, config: ModelConfig = CONFIG) -> tuple[GPT, torch.optim.Optimizer]:
    """A model and optimizer that have moved, so that every state is there."""
    torch.manual_seed(seed)
    model = GPT(config)
    optimizer = build_optimizer(model, OptimConfig())
    idx = torch.randint(config.vocab_size, (2, 8))
    model(idx, idx).backward()
    optimizer.step()
    return model, optimizer


def save(run: Path, step: int, keep: int = 2, seed: int = 0) -> tuple[GPT, torch.optim.Optimizer]:
    model, optimizer = trained(seed)
    checkpoint.save(run, step, model, optimizer, FACTS, keep)
    return model, optimizer


def test_everything_comes_back(tmp_path: Path) -> None:
    model, optimizer = save(tmp_path, 7)
    other, other_optimizer = trained(seed=1)
    assert checkpoint.resume(tmp_path, other, other_optimizer, FACTS, allow_change=False) == 7
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_new_run_begins_at_step_0(tmp_path: Path) -> None:
    assert checkpoint.resume(tmp_path / "new", *trained(), FACTS, allow_change=False) == 0


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


def test_the_latest_ones_are_kept(tmp_path: Path) -> None:
    for step in (5, 50, 500, 10_000):
        save(tmp_path, step, keep=2)
    assert [path.name for path in checkpoint.all_checkpoints(tmp_path)] == ["step_00000500", "step_00010000"]
    assert checkpoint.latest(tmp_path).name == "step_00010000"


def test_half_of_a_checkpoint_is_not_found_and_is_cleared_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)

    def die(*_: object) -> None:
        raise RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 640 vs 534")

    with monkeypatch.context() as broken:
        broken.setattr(torch, "save", die)
        with pytest.raises(UserError, match=r"step_00000010 could not be written .* make room on the disk"):
            save(tmp_path, 10)
    names = [path.name for path in (tmp_path / "checkpoints").iterdir()]
    assert names == ["step_00000005"]
    (tmp_path / "checkpoints" / ".step_00000015.tmp" / "x").mkdir(parents=True)  # as a kill would leave it
    assert checkpoint.latest(tmp_path).name == "step_00000005"
    checkpoint.clear_leftovers(tmp_path)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == names


@pytest.mark.skipif(os.geteuid() != 0, reason="a full disk: mounting a small one takes root")
def test_a_full_disk_is_one_line_and_keeps_the_checkpoint_before(tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1000k", "tmpfs", small], capture_output=True).returncode:
        pytest.skip("a full disk: this root may not mount")
    try:
        config = ModelConfig(n_layer=2, n_head=2, n_embd=48, block_size=8, vocab_size=27)
        model, optimizer = trained(config=config)
        checkpoint.save(small, 5, model, optimizer, FACTS, keep=2)
        with pytest.raises(UserError, match=r"step_00000010 could not be written"):
            checkpoint.save(small, 10, model, optimizer, FACTS, keep=9)
        survivors = [path.name for path in (small / "checkpoints").iterdir()]
        assert survivors == ["step_00000005"]
        assert checkpoint.resume(small, model, optimizer, FACTS, allow_change=False) == 5
    finally:
        subprocess.run(["umount", "--lazy", small], check=True)


def test_a_checkpoint_of_another_shape_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5)
    wider = trained(config=ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=27))
    with pytest.raises(UserError, match=r"another shape: n_embd 16 \(now 32\); set these keys back"):
        checkpoint.resume(tmp_path, *wider, FACTS, allow_change=False)


def test_other_data_is_refused_unless_allowed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    for key, value, message in (
        ("data", "fedcba9876543210", r"data 01234567 \(now fedcba98\); set them back"),
        ("batches", {**BATCHES, "tokens": 1024}, r"batches .*'tokens': 512.* \(now .*'tokens': 1024"),
        ("tokenizer", {"name": "gpt2"}, r"tokenizer char \(now gpt2\)"),
    ):
        changed = {**FACTS, key: value}
        with pytest.raises(UserError, match=message):
            checkpoint.resume(tmp_path, *trained(), changed, allow_change=False)
        assert checkpoint.resume(tmp_path, *trained(), changed, allow_change=True) == 5


def test_the_optimizers_settings_are_the_configurations_and_its_moments_the_checkpoints(tmp_path: Path) -> None:
    _, before = save(tmp_path, 5)
    model, _ = trained(seed=1)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=50.0, betas=(0.1, 0.2), eps=1e-3))
    checkpoint.resume(tmp_path, model, optimizer, FACTS, allow_change=False)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [50.0, 0.0]
    assert all((group["betas"], group["eps"]) == ((0.1, 0.2), 1e-3) for group in optimizer.param_groups)
    for a, b in zip(before.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])


@pytest.mark.parametrize("name", ["model.safetensors", "train_state.pt", "meta.json"])
@pytest.mark.parametrize("damage", ["cut", "missing", "empty"])
def test_a_damaged_file_is_named(tmp_path: Path, name: str, damage: str) -> None:
    save(tmp_path, 5)
    file = tmp_path / "checkpoints" / "step_00000005" / name
    if damage == "missing":
        file.unlink()
    else:
        os.truncate(file, file.stat().st_size // 2 if damage == "cut" else 0)
    with pytest.raises(UserError, match=f"{name} is damaged"):
        checkpoint.resume(tmp_path, *trained(), FACTS, allow_change=False)


def test_opening_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    save(tmp_path, 5)
    proof = tmp_path / "executed"

    class Malicious:
        def __reduce__(self):  # what pickle would call
            return Path.touch, (proof,)

    torch.save({"optimizer": {0: Malicious()}}, tmp_path / "checkpoints" / "step_00000005" / "train_state.pt")
    with pytest.raises(UserError, match=r"train_state.pt is damaged"):
        checkpoint.resume(tmp_path, *trained(), FACTS, allow_change=False)
    assert not proof.exists()
    pickle.loads(pickle.dumps(Malicious()))  # the trap itself works
    assert proof.exists()


def test_load_model_opens_a_run_and_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "myrun"
    save(run, 5, seed=1)
    model, _ = save(run, 10, seed=2)
    for spec in (run, run / "checkpoints" / "step_00000010"):
        loaded = checkpoint.load_model(str(spec))
        assert (loaded.name, loaded.step, loaded.tokenizer.name) == ("myrun at step 10", 10, "char")
        assert not loaded.model.training
        assert torch.equal(loaded.model.wte.weight, model.wte.weight)
    older = checkpoint.load_model(str(run / "checkpoints" / "step_00000005"))
    assert older.step == 5
    assert not torch.equal(older.model.wte.weight, model.wte.weight)


def test_without_a_name_the_newest_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "RUNS", tmp_path)
    with pytest.raises(UserError, match="no run with a checkpoint"):
        checkpoint.load_model(None)
    save(tmp_path / "a", 5)
    save(tmp_path / "b", 3)
    os.utime(checkpoint.latest(tmp_path / "a"), (2e9, 2e9))
    assert checkpoint.load_model(None).name == "a at step 5"
    (tmp_path / "empty").mkdir()
    assert checkpoint.load_model(None).name == "a at step 5"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all", "there is no such folder"),
        ("/nowhere", "there is no such folder"),
        ("plain", "neither a run .* nor a checkpoint .* nor a Hugging Face"),
        ("begun", "no finished checkpoint yet"),
    ],
)
def test_what_is_no_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "begun" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        checkpoint.load_model(spec)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    checkpoint.save(tmp_path, 1, model, optimizer, {**FACTS, "tokenizer": None}, keep=1)
    with pytest.raises(UserError, match="vocabulary of 27 is smaller than its tokenizer's, gpt2 with 50257"):
        checkpoint.load_model(str(tmp_path))
