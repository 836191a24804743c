"""OpenAI's own folders: the same logits as transformers' model of the same weights, and a run that begins from one."""

import json
from pathlib import Path

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from eval import generate
from prepare.common.cli import UserError
from tests.train.weights.test_tf_checkpoint import SHAPE, expected_tensors, write_tensorflows
from train import export_hf
from train.config.pretrain import ModelConfig
from train.weights.load_model import load_model
from train.weights.openai_weights import hf_name, load_openai


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """One as gpt-2's download_model.py leaves it, with a checkpoint that TensorFlow wrote."""
    folder = tmp_path / "124M"
    folder.mkdir()
    write_tensorflows(folder)
    (folder / "hparams.json").write_text(json.dumps(SHAPE))
    name = "/somewhere/else/model.ckpt"  # AsyncSaver may write the place where it once stood
    (folder / "checkpoint").write_text(f'model_checkpoint_path: "{name}"\nall_model_checkpoint_paths: "{name}"\n')
    return folder


@torch.no_grad()
def transformers_model() -> GPT2LMHeadModel:
    """transformers' model with the same weights, put in its modules by OpenAI's names."""
    shape = {"n_positions": SHAPE["n_ctx"], "vocab_size": SHAPE["n_vocab"]}
    model = GPT2LMHeadModel(GPT2Config(**{key: SHAPE[key] for key in ("n_layer", "n_head", "n_embd")}, **shape))
    for name, values in expected_tensors().items():
        _, *path = name.split("/")
        module = model.transformer
        for part in path:
            if part[0] == "h" and part[1:].isdecimal():
                module = module.h[int(part[1:])]
            else:
                module = getattr(module, {"w": "weight", "g": "weight", "b": "bias"}.get(part, part))
        parameter = getattr(module, "weight", module)  # wte and wpe are modules
        parameter.copy_(torch.from_numpy(values).reshape(parameter.shape))
    return model.eval()


def test_logits_are_those_of_transformers(folder: Path) -> None:
    loaded = load_model(str(folder))
    assert (loaded.name, loaded.step, loaded.tokenizer.name) == ("124M", None, "gpt2")
    assert loaded.model.config == ModelConfig(n_layer=2, n_head=2, n_embd=4, block_size=8, vocab_size=50257)
    idx = torch.randint(50257, (2, 8))
    with torch.no_grad():
        torch.testing.assert_close(loaded.model(idx), transformers_model()(idx).logits, atol=1e-5, rtol=1e-5)


def test_names() -> None:
    assert hf_name("model/h11/attn/c_attn/w") == "h.11.attn.c_attn.weight"
    assert hf_name("model/h0/ln_1/b") == "h.0.ln_1.bias"
    assert hf_name("model/ln_f/g") == "ln_f.weight"
    assert hf_name("model/wpe") == "wpe.weight"


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("hparams.json", "{", "hparams.json: not OpenAI's description"),
        ("hparams.json", json.dumps({**SHAPE, "n_embd": None}), "hparams.json: not OpenAI's description"),
        ("hparams.json", json.dumps({**SHAPE, "n_head": 3}), "a width of 4 does not divide among 3 heads"),
        ("hparams.json", json.dumps({**SHAPE, "n_layer": 3}), "h.2.attn.c_attn.bias and 11 more missing"),
        ("hparams.json", json.dumps({**SHAPE, "n_ctx": 9}), r"wpe.weight is \(8, 4\), not \(9, 4\)"),
        ("checkpoint", "", "checkpoint names no checkpoint"),
        ("checkpoint", 'model_checkpoint_path: "other"', "other.index is missing"),
        ("encoder.json", '{"!": 1, "a": 0}', "encoder.json is not GPT-2's vocabulary"),
    ],
)
def test_what_is_wrong_is_named(folder: Path, file: str, text: str, message: str) -> None:
    (folder / file).write_text(text)
    with pytest.raises(UserError, match=message):
        load_openai(folder)


def test_scripts_open_it_or_say_what_is_damaged(folder: Path, tmp_path: Path) -> None:
    export_hf.main([f"--model={folder}", f"--output={tmp_path / 'hf'}"])
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "hf").state_dict()
    for name, tensor in transformers_model().state_dict().items():
        assert torch.equal(tensor, theirs[name]), name
    (folder / "model.ckpt.data-00000-of-00001").write_bytes(b"short")
    with pytest.raises(UserError, match="damaged TensorFlow checkpoint"):
        generate.main([f"--model={folder}", "--prompt=Hi"])
