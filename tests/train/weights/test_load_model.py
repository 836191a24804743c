"""--model: each kind of model opens, and anything else has its one-line error."""

import os
import string
from pathlib import Path

import pytest
import torch

from prepare.common.cli import UserError
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.checkpoints import CHARACTERS, FACTS, corrupt_file, save, trained
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig
from train.run.checkpoint import latest_checkpoint
from train.weights import load_model as open_model
from train.weights.load_model import load_initial_weights, load_model, model_tokenizer


def test_a_model_is_loaded_from_the_newest_valid_weights(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    save(tmp_path, 5)
    save(tmp_path, 10)
    corrupt_file(tmp_path / "checkpoints" / "step_00000010" / "train_state.pt", "missing")  # which no score needs
    assert load_model(str(tmp_path)).step == 10
    corrupt_file(tmp_path / "checkpoints" / "step_00000010" / "model.safetensors", "flipped")
    assert load_model(str(tmp_path)).step == 5
    assert "model.safetensors is corrupt" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"model.safetensors is corrupt"):
        load_model(str(tmp_path / "checkpoints" / "step_00000010"))


def test_load_model_opens_a_run_and_a_checkpoint(tmp_path: Path) -> None:
    run = tmp_path / "myrun"
    save(run, 5, seed=1)
    model, _ = save(run, 10, seed=2)
    for spec in (run, run / "checkpoints" / "step_00000010"):
        loaded = load_model(str(spec))
        assert (loaded.name, loaded.step, loaded.tokenizer.name) == ("myrun at step 10", 10, "char")
        assert not loaded.model.training
        assert torch.equal(loaded.model.wte.weight, model.wte.weight)
    older = load_model(str(run / "checkpoints" / "step_00000005"))
    assert older.step == 5
    assert not torch.equal(older.model.wte.weight, model.wte.weight)


def test_without_a_name_the_newest_run_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(open_model, "RUNS", tmp_path)
    with pytest.raises(UserError, match="no run with a checkpoint"):
        load_model(None)
    save(tmp_path / "a", 5)
    save(tmp_path / "b", 3)
    os.utime(latest_checkpoint(tmp_path / "a"), (2e9, 2e9))
    assert load_model(None).name == "a at step 5"
    (tmp_path / "empty").mkdir()
    assert load_model(None).name == "a at step 5"


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("nowhere/at/all", "there is no such folder"),
        ("/nowhere", "there is no such folder"),
        ("plain", "neither a run .* nor a checkpoint .* nor a Hugging Face"),
        ("started", "no checkpoint yet"),
    ],
)
def test_what_is_not_a_model_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, spec: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "plain").mkdir()
    (tmp_path / "started" / "checkpoints").mkdir(parents=True)
    with pytest.raises(UserError, match=message):
        load_model(spec)


def test_a_vocabulary_smaller_than_the_tokenizer_is_refused(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path, 1, model, optimizer, tokenizer=CharTokenizer(string.ascii_letters).describe())
    with pytest.raises(UserError, match="vocabulary of 27 is smaller than its tokenizer's, char with 52"):
        load_model(str(tmp_path))


def test_a_model_of_data_without_a_manifest_has_no_tokenizer(tmp_path: Path) -> None:
    model, optimizer = trained()
    save_checkpoint(tmp_path, 1, model, optimizer)
    loaded = load_model(str(tmp_path))
    assert loaded.known_tokenizer is None
    assert model_tokenizer(None, 50257).name == "gpt2"
    with pytest.raises(UserError, match=r"has no tokenizer, since its data had no manifest\.json"):
        _ = loaded.tokenizer


def test_a_run_starts_from_another_models_weights(tmp_path: Path) -> None:
    source, _ = save(tmp_path / "source", 7)
    model, _ = trained(seed=5)
    assert load_initial_weights(str(tmp_path / "source"), model, FACTS["tokenizer"]) == "source at step 7"
    for a, b in zip(model.parameters(), source.parameters(), strict=True):
        assert torch.equal(a, b)
    assert model.training
    larger, _ = trained(config=ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=27))
    with pytest.raises(UserError, match=r"another shape: model\.n_layer 2 \(now 3\)"):
        load_initial_weights(str(tmp_path / "source"), larger, FACTS["tokenizer"])
    with pytest.raises(UserError, match="has the char vocabulary of 27 ids, the data was made with another, char"):
        load_initial_weights(str(tmp_path / "source"), model, CharTokenizer(CHARACTERS[1:]).describe())
    with pytest.raises(UserError, match="no such folder"):
        load_initial_weights("./absent", model, None)
