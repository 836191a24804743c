"""Resuming: everything that was saved is restored, and what does not match the run is refused."""

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch

from prepare.common.cli import UserError
from tests.helpers.checkpoints import FACTS, save, trained
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig, OptimConfig
from train.run import checkpoint
from train.run.resume import ResumeState, resume
from train.trainer.optim import build_optimizer


def test_everything_is_restored(tmp_path: Path) -> None:
    model, optimizer = save(tmp_path, 7)
    other, other_optimizer = trained(seed=1)
    resumed = resume(tmp_path, other, other_optimizer, FACTS)
    assert resumed == ResumeState(7)
    for a, b in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
    for a, b in zip(optimizer.state.values(), other_optimizer.state.values(), strict=True):
        assert a.keys() == b.keys()
        assert all(torch.equal(a[key], b[key]) for key in a)


def test_a_checkpoint_from_before_the_modern_architecture_is_of_gpt2(tmp_path: Path) -> None:
    model, optimizer = trained()
    shape = {key: value for key, value in asdict(model.config).items() if key not in ("architecture", "without")}
    state = {"optimizer": optimizer.state_dict()["state"]}
    checkpoint.write(tmp_path, 5, model.state_dict(), state, {**FACTS, "model": shape})
    assert resume(tmp_path, *trained(), FACTS).step == 5
    modern = trained(config=replace(model.config, architecture="modern"))
    with pytest.raises(UserError, match=r"model.architecture gpt2 \(now modern\)"):
        resume(tmp_path, *modern, FACTS)


def test_another_model_other_data_and_another_tokenizer_are_refused_with_what_differs(tmp_path: Path) -> None:
    assert resume(tmp_path, *trained(), FACTS) == ResumeState()  # a new run starts at step 0
    save(tmp_path, 5)
    wider = trained(config=ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=8, vocab_size=27))
    with pytest.raises(UserError, match=r"another run: model.n_embd 16 \(now 32\); set them back"):
        resume(tmp_path, *wider, FACTS)
    for key, change, message in (
        ("data", {"sha256": "f" * 64}, r"run: data.sha256 01234567 \(now ffffffff\); set them"),
        ("data", {"shards": 4}, r"data.shards 3 \(now 4\)"),
        ("batches", {"tokens": 1024}, r"batches.tokens 512 \(now 1024\)"),
        ("tokenizer", {"name": "gpt2"}, r"tokenizer char \(now gpt2\)"),
    ):
        with pytest.raises(UserError, match=message):
            resume(tmp_path, *trained(), {**FACTS, key: {**FACTS[key], **change}})
    with pytest.raises(UserError, match=r"optim.optimizer adamw \(now muon\)"):
        resume(tmp_path, *trained(), {**FACTS, "optim.optimizer": "muon"})


def test_fine_tuning_resumes_with_the_model_that_it_started_from(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path / "current", 5, model, optimizer, **FACTS, init="a" * 64)
    save_checkpoint(tmp_path / "older", 5, model, optimizer, **FACTS)
    for run in ("current", "older"):
        assert resume(tmp_path / run, *trained(), {**FACTS, "init": "a" * 64}).step == 5
    with pytest.raises(UserError, match=r"another run: init aaaaaaaa \(now bbbbbbbb\)"):
        resume(tmp_path / "current", *trained(), {**FACTS, "init": "b" * 64})


def test_changed_settings_are_accepted_and_listed(tmp_path: Path) -> None:
    save(tmp_path, 5)
    changed = {**FACTS, "settings": {**FACTS["settings"], "optim.max_lr": 5e-4, "train.max_steps": 40}}
    changed["settings"]["optim.later"] = 0.0  # a key that the checkpoint is too old for
    resumed = resume(tmp_path, *trained(), changed)
    assert resumed.changes == ("optim.max_lr 0.001 (now 0.0005)", "train.max_steps 20 (now 40)")


def test_the_optimizers_settings_are_the_configurations_and_its_moments_the_checkpoints(tmp_path: Path) -> None:
    _, before = save(tmp_path, 5)
    model, _ = trained(seed=1)
    optimizer = build_optimizer(model, OptimConfig(weight_decay=50.0, betas=(0.1, 0.2), eps=1e-3))
    resume(tmp_path, model, optimizer, FACTS)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [50.0, 50.0, 0.0]
    assert all((group["betas"], group["eps"]) == ((0.1, 0.2), 1e-3) for group in optimizer.param_groups)
    for a, b in zip(before.state.values(), optimizer.state.values(), strict=True):
        assert torch.equal(a["exp_avg_sq"], b["exp_avg_sq"])
