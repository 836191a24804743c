"""Hugging Face's directories as transformers writes them, read without transformers."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import huggingface_hub.constants
import pytest
import torch
from safetensors.torch import load_file, save_file, save_model
from transformers import GPT2Config, GPT2LMHeadModel

from prepare.common.cli import UserError
from prepare.tokens.vocabulary import gpt2_merges, write_tokenizer
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.vocabulary import gpt2_vocabulary_files, small_merges
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.weights.huggingface import hf_config, hf_tokenizer, load_hf, to_hf
from train.weights.load_model import load_model


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_positions=16, vocab_size=50257)
    GPT2LMHeadModel(config).save_pretrained(tmp_path / "hf")
    return tmp_path / "hf"


def save_safe(tensors: dict[str, torch.Tensor], file: Path) -> None:
    save_file(tensors, file, {"format": "pt"})


def same_logits(folder: Path) -> None:
    theirs = GPT2LMHeadModel.from_pretrained(folder).eval()
    loaded = load_model(str(folder))
    idx = torch.randint(50257, (2, 16))
    torch.testing.assert_close(loaded.model(idx), theirs(idx).logits, atol=1e-5, rtol=1e-5)
    assert (loaded.name, loaded.step, loaded.tokenizer.name) == ("hf", None, "gpt2")


def test_a_directory_of_transformers_gives_its_logits(folder: Path) -> None:
    same_logits(folder)
    assert load_hf(folder).config == ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50257)


def test_a_model_without_biases_can_be_opened_again(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=16, vocab_size=99, bias=False))
    (tmp_path / "config.json").write_text(json.dumps(hf_config(model.config)))
    save_file(to_hf(model), tmp_path / "model.safetensors", {"format": "pt"})
    idx = torch.randint(99, (2, 16))
    torch.testing.assert_close(load_hf(tmp_path)(idx), model(idx))


@pytest.mark.parametrize(("file_name", "save"), [("model.safetensors", save_safe), ("pytorch_model.bin", torch.save)])
def test_weights_in_parts(folder: Path, file_name: str, save: Callable[[dict, Path], None]) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    (stem, suffix), names, weight_map = file_name.split("."), sorted(tensors), {}
    for number, part in enumerate((names[::2], names[1::2]), 1):
        weight_map |= dict.fromkeys(part, f"{stem}-{number:05}-of-00002.{suffix}")
        save({name: tensors[name] for name in part}, folder / weight_map[part[0]])
    (folder / f"{file_name}.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same_logits(folder)
    (folder / weight_map[names[1]]).unlink()
    with pytest.raises(UserError, match=rf"{stem}-00002-of-00002\.{suffix} is missing"):
        load_hf(folder)


def test_which_of_several_files_is_read(folder: Path) -> None:
    """As in transformers: model.safetensors goes before an index, and no other file is looked at."""
    zeros = {name: torch.zeros_like(tensor) for name, tensor in load_file(folder / "model.safetensors").items()}
    save_file(zeros, folder / "model_quantized.safetensors", {"format": "pt"})
    same_logits(folder)
    weight_map = dict.fromkeys(zeros, "model_quantized.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    same_logits(folder)


def test_a_file_with_only_the_head_sets_the_embedding_too(folder: Path) -> None:
    """safetensors' save_model writes one name of tensors that are the same, and it is the head's."""
    save_model(GPT2LMHeadModel.from_pretrained(folder), str(folder / "model.safetensors"), {"format": "pt"})
    assert "transformer.wte.weight" not in load_file(folder / "model.safetensors")
    same_logits(folder)


def test_openais_own_files_with_their_masks_and_without_the_prefix(folder: Path) -> None:
    """The hub's gpt2 has names without `transformer.`, causal masks as tensors, and no lm_head."""
    named = load_file(folder / "model.safetensors")
    tensors = {name.removeprefix("transformer."): tensor for name, tensor in named.items()}
    for layer in range(2):
        tensors[f"h.{layer}.attn.bias"] = torch.ones(16, 16).tril().view(1, 1, 16, 16)
    reference = load_hf(folder)
    save_file(tensors, folder / "model.safetensors")
    for a, b in zip(load_hf(folder).parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


def test_pytorch_model_bin(folder: Path) -> None:
    reference = load_hf(folder)
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    for a, b in zip(load_hf(folder).parameters(), reference.parameters(), strict=True):
        assert torch.equal(a, b)


class Harm:
    """What a pickle from an unknown source may hold."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple:
        return Path.touch, (self.trace,)


def test_a_pytorch_model_bin_runs_no_code(folder: Path, tmp_path: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"wte.weight": Harm(tmp_path / "trace")}, folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pytorch_model\.bin does not hold only tensors") as refusal:
        load_hf(folder)
    assert not (tmp_path / "trace").exists()
    assert "weights_only" not in str(refusal.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "llama"}, "model_type is 'llama'"),
        ({"activation_function": "relu"}, "activation_function is 'relu'"),
        ({"n_inner": 96}, "n_inner is 96, but this model has 128"),
        ({"scale_attn_weights": False}, "scale_attn_weights is False"),
        ({"n_embd": 64}, "size mismatch"),
        ({"n_layer": 3}, r"Missing key.*h\.2\."),
        ({"n_layer": 1}, r"Unexpected key.*h\.1\."),
    ],
)
def test_what_is_not_this_gpt2_is_named(folder: Path, change: dict, message: str) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        load_hf(folder)


def test_corrupt_and_missing_files(folder: Path) -> None:
    os.truncate(folder / "model.safetensors", 10_000)
    with pytest.raises(UserError, match="corrupt weights"):
        load_hf(folder)
    (folder / "model.safetensors").unlink()
    with pytest.raises(UserError, match=r"neither model.safetensors nor pytorch_model.bin"):
        load_hf(folder)
    pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 548118077\n"
    for file in ("pytorch_model.bin", "model.safetensors"):
        for content in (pointer, b""):
            (folder / file).write_bytes(content)
            with pytest.raises(UserError, match=r"corrupt weights .*, or git lfs pull") as refusal:
                load_hf(folder)
            assert "weights_only" not in str(refusal.value)
    (folder / "config.json").write_text("{")
    with pytest.raises(UserError, match="not a readable configuration"):
        load_hf(folder)


def test_a_truncated_pickle_is_corrupt(folder: Path) -> None:
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    os.truncate(folder / "pytorch_model.bin", 100_000)
    with pytest.raises(UserError, match="corrupt weights"):
        load_hf(folder)


def test_the_vocabulary_is_gpt2_s_or_of_a_tokenizer_json(folder: Path) -> None:
    ids = json.loads(gpt2_vocabulary_files()[0].read_text("utf-8"))
    swapped = {"the": ids["of"], "of": ids["the"]}
    assert hf_tokenizer(folder).name == "gpt2"
    (folder / "vocab.json").write_text(json.dumps(ids | {"<|pad|>": 50257}))  # further ids, which never come
    assert hf_tokenizer(folder).name == "gpt2"
    (folder / "vocab.json").write_text(json.dumps(ids | swapped))
    with pytest.raises(UserError, match=r"vocab.json is not GPT-2's vocabulary"):
        hf_tokenizer(folder)

    write_tokenizer(folder, gpt2_merges())
    hf = json.loads((folder / "tokenizer.json").read_text("utf-8"))
    hf["model"].pop("type")  # the hub's gpt2 is of 2020: no type, and merges as text
    hf["model"]["merges"] = [" ".join(pair) for pair in hf["model"]["merges"]]
    (folder / "tokenizer.json").write_text(json.dumps(hf))
    assert hf_tokenizer(folder).name == "gpt2"
    hf["model"]["vocab"] |= swapped
    (folder / "tokenizer.json").write_text(json.dumps(hf))
    with pytest.raises(UserError, match=r"tokenizer.json is not a byte-level BPE"):
        hf_tokenizer(folder)
    write_tokenizer(folder, small_merges())
    assert hf_tokenizer(folder).vocab_size == 300


def test_hub_names_with_weights_of_either_kind(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    reference = load_hf(folder)
    old = tmp_path / "served/models/someone/old"  # as gpt2's relatives of before safetensors are
    new = Path(shutil.copytree(folder, tmp_path / "served/models/new"))
    old.mkdir(parents=True)
    shutil.copy(folder / "config.json", old)
    torch.save(load_file(folder / "model.safetensors"), old / "pytorch_model.bin")
    parts = Path(shutil.copytree(old, tmp_path / "served/models/someone/parts"))
    (parts / "pytorch_model.bin").rename(parts / "pytorch_model-00001-of-00001.bin")
    weight_map = {"transformer.wte.weight": "pytorch_model-00001-of-00001.bin"}
    (parts / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    torch.save({}, new / "pytorch_model.bin")
    other = Path(shutil.copytree(new, tmp_path / "served/models/other"))  # as transformers 5 saves tokenizers
    ids = json.loads(gpt2_vocabulary_files()[0].read_text("utf-8"))
    ids |= {"the": ids["of"], "of": ids["the"]}
    write_tokenizer(other, gpt2_merges())
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    tokenizer["model"]["vocab"] = ids
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with LoopbackHub(tmp_path / "served") as hub:
        hub.adopt(monkeypatch, tmp_path)
        for name in ("new", "someone/old", "someone/parts"):
            loaded = load_model(name)
            assert loaded.name == name
            for a, b in zip(loaded.model.parameters(), reference.parameters(), strict=True):
                assert torch.equal(a, b)
        assert [seen.path for seen in hub.requests if "new" in seen.path and seen.path.endswith(".bin")] == []
        with pytest.raises(UserError, match="neither a folder here nor a model on the hub"):
            load_model("absent")
        with pytest.raises(UserError, match=r"tokenizer\.json is not a byte-level BPE"):
            load_model("other")


def test_a_hub_name_without_a_network_is_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError, match=r"--model gpt2: no such folder, and the hub could not be reached .* offline"):
        load_model("gpt2")
