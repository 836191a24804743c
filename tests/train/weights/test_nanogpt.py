"""Models and data of nanoGPT and build-nanogpt: opened as their programs save them, and nothing in them runs."""

import pickle
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from prepare.common.cli import UserError
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE, CharTokenizer
from tests.helpers.checkpoints import CHARACTERS, CONFIG
from train import export_hf
from train.config.pretrain import ModelConfig
from train.data.windows import common_tokenizer
from train.model.gpt import GPT
from train.weights.load_model import load_initial_weights, load_model

PADDED = ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=8, vocab_size=50304)


@dataclass
class GPTConfig:
    """build-nanogpt's."""

    block_size: int
    vocab_size: int
    n_layer: int
    n_head: int
    n_embd: int


class Hostile:
    """Unpickled, it would leave a file."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def state_of(model: GPT, prefix: str = "") -> dict[str, torch.Tensor]:
    """A model's tensors as nanoGPT names them, with the tied head and an old version's causal mask."""
    state = {f"{prefix}transformer.{name}": tensor for name, tensor in model.state_dict().items()}
    mask = torch.ones(1, 1, 8, 8).tril()
    return {**state, f"{prefix}lm_head.weight": model.wte.weight, f"{prefix}transformer.h.0.attn.bias": mask}


def write_meta(folder: Path, characters: str = CHARACTERS) -> None:
    """meta.pkl, as nanoGPT's data/shakespeare_char/prepare.py writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    characters = sorted(set(characters))
    ids = {character: number for number, character in enumerate(characters)}
    meta = {"vocab_size": len(ids), "itos": dict(enumerate(characters)), "stoi": ids}
    (folder / "meta.pkl").write_bytes(pickle.dumps(meta))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("prefix", ["", "_orig_mod.", "module._orig_mod."])
def test_a_checkpoint_of_nanogpt(tmp_path: Path, prefix: str, bias: bool) -> None:
    model, out = GPT(ModelConfig(**{**asdict(CONFIG), "bias": bias})), tmp_path / "out-char"
    out.mkdir()
    saved = {
        "model": state_of(model, prefix),
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-3}]},
        "model_args": asdict(model.config),
        "iter_num": 250,
        "best_val_loss": torch.tensor(1.5),
        "config": {"dataset": "plays_char", "compile": True},
    }
    torch.save(saved, out / "ckpt.pt")
    assert load_model(str(out)).known_tokenizer is None
    write_meta(tmp_path / "data" / "plays_char")
    idx = torch.arange(8)[None]
    for spec in (out, out / "ckpt.pt"):
        loaded = load_model(str(spec))
        assert (loaded.name, loaded.step, loaded.model.config) == ("out-char/ckpt.pt", 250, model.config)
        assert loaded.tokenizer.describe() == CharTokenizer(CHARACTERS).describe()
        assert torch.equal(loaded.model(idx), model(idx))


def test_a_padded_model_of_build_nanogpt_is_cut_exported_and_trained_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, path = GPT(PADDED), tmp_path / "model_19072.pt"
    GPTConfig.__module__ = "__main__"  # as in train_gpt2.py, which is run as a script
    monkeypatch.setattr(sys.modules["__main__"], "GPTConfig", GPTConfig, raising=False)
    config = GPTConfig(8, 50304, 2, 2, 16)
    torch.save({"model": state_of(model), "config": config, "step": 19072, "val_loss": 3.1}, path)
    monkeypatch.delattr(sys.modules["__main__"], "GPTConfig")
    loaded, idx = load_model(str(path)), torch.arange(8)[None]
    assert (loaded.step, loaded.model.config.vocab_size, loaded.tokenizer.name) == (19072, GPT2_VOCAB_SIZE, "gpt2")
    assert torch.equal(loaded.model(idx), model(idx)[..., :GPT2_VOCAB_SIZE])
    export_hf.main(["--model", str(path), "--output", str(tmp_path / "hf")])
    assert torch.equal(load_model(str(tmp_path / "hf")).model(idx), loaded.model(idx))
    new = GPT(loaded.model.config)
    load_initial_weights(str(path), new, None)
    assert torch.equal(new(idx), loaded.model(idx))


def test_other_files_are_refused_in_a_line_and_run_nothing(tmp_path: Path) -> None:
    path, trace = tmp_path / "ckpt.pt", tmp_path / "trace"
    torch.save({"model": state_of(GPT(CONFIG)), "model_args": Hostile(trace), "config": {}}, path)
    hostile = path.read_bytes()
    torch.save(state_of(GPT(CONFIG)), path)
    weights = path.read_bytes()
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0" * 64 + b"\nsize 146946961\n"
    for content, message in (
        (hostile, "not a checkpoint of nanoGPT"),
        (weights, r"not a checkpoint of nanoGPT.*'config'"),
        (weights[:-100], "is corrupt"),
        (b"", "is corrupt"),
        (pointer, "Git LFS pointer.*git lfs pull"),
    ):
        path.write_bytes(content)
        with pytest.raises(UserError, match=rf"ckpt\.pt.*{message}"):
            load_model(str(path))
    with pytest.raises(UserError, match=r"absent\.pt.*No such file"):
        load_model("absent.pt")
    assert not trace.exists()


def test_the_ids_of_a_train_bin_are_the_characters_of_its_meta_pkl(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    np.arange(20, dtype=np.uint16).tofile(tmp_path / "train.bin")
    assert common_tokenizer([tmp_path / "train.bin"], 27) is None
    write_meta(tmp_path)
    assert common_tokenizer([tmp_path / "train.bin"], 27) == CharTokenizer(CHARACTERS).describe()
    with pytest.raises(UserError, match=r"27 ids, but model\.vocab_size is 26"):
        common_tokenizer([tmp_path / "train.bin"], 26)
    assert not capsys.readouterr().err
    for other in ({"stoi": {"b": 0, "a": 1}}, {"stoi": {"word": 0}}, {"ids": Hostile(tmp_path / "trace")}, ["stoi"]):
        (tmp_path / "meta.pkl").write_bytes(pickle.dumps(other))
        assert common_tokenizer([tmp_path / "train.bin"], 27) is None
        assert "meta.pkl is not read" in capsys.readouterr().err
    monkeypatch.setenv("RANK", "1")
    assert common_tokenizer([tmp_path / "train.bin"], 27) is None
    assert not capsys.readouterr().err  # one rank of all has said so
    assert not (tmp_path / "trace").exists()
