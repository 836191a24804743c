"""Weights in Hugging Face's layout, read and written without transformers: of GPT-2, and of NanoChat (nanochat.py).

GPT-2's linear layers are `Conv1D`, whose weight is (inputs, outputs): the transpose of nn.Linear's.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prepare.common.cli import UserError, first_line
from prepare.common.files import allow_soft_locks
from prepare.tokens.tokenizer import EOT, BPETokenizer, GPT2Tokenizer, open_tokenizer
from prepare.tokens.vocabulary import END_OF_TEXT, TOKENIZER, gpt2_merges, token_ids
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.model.modern import Modern
from train.model.transformer import Transformer
from train.weights.nanochat import from_nanochat, nanochat_config, read_nanochat_config, to_nanochat

TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
HAS_BIAS = re.compile(r"\b(ln_1|ln_2|ln_f|c_attn|c_proj|c_fc)\.weight$")
NOT_WEIGHTS = re.compile(r"(\.attn\.(bias|masked_bias)|^lm_head\.weight)$")  # causal masks, and the tied head
FIXED = {  # config.json settings with the values that this model supports; the first one is the default
    "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
    "layer_norm_epsilon": (1e-5,),
    "scale_attn_weights": (True,),
    "scale_attn_by_inverse_layer_idx": (False,),
    "tie_word_embeddings": (True,),
}
HUB_FILES = ["config.json", "vocab.json", TOKENIZER, "model*.safetensors*"]
HUB_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def load_hf(folder: Path) -> Transformer:
    """A model from a Hugging Face directory: config.json, and model.safetensors or pytorch_model.bin, sharded or not.
    UserError if it is neither a GPT-2 nor a NanoChat, or files are missing or corrupt."""
    model = build_model(read_hf_config(folder / "config.json"))
    from_hf(model, read_tensors(folder), folder)
    return model


def download_hf(name: str, option: str = "--model") -> Path:
    """Download a model of the hub (gpt2, gpt2-xl, distilgpt2, someone/something) into its cache; return the folder.
    UserError: no such model, or no network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    allow_soft_locks()
    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(name, allow_patterns=HUB_PICKLES)
        return folder
    except RepositoryNotFoundError:
        raise UserError(f"{option} {name}: neither a folder here nor a model on the hub; check the spelling") from None
    except Exception as failure:  # the hub's client raises many kinds when it cannot be reached
        raise UserError(
            f"{option} {name}: no such folder, and the hub could not be reached ({type(failure).__name__}: "
            f"{first_line(failure)}); offline, give a run, a checkpoint or a downloaded Hugging Face directory"
        ) from None


def read_hf_config(path: Path) -> ModelConfig:
    """The ModelConfig that a Hugging Face config.json describes. UserError if it is corrupt, or of another
    architecture."""
    try:
        hf = json.loads(path.read_text("utf-8"))
        kind = hf.get("model_type")
        if kind == "nanochat":
            hf |= hf.get("rope_scaling") or hf.get("rope_parameters") or {}  # or at the top level
            config, fixed = read_nanochat_config(hf)
        elif kind == "gpt2":
            config = ModelConfig(hf["n_layer"], hf["n_head"], hf["n_embd"], hf["n_positions"], hf["vocab_size"])
            fixed = {**FIXED, "n_inner": (4 * config.n_embd, None)}
        else:
            raise UserError(f"{path}: model_type is {kind!r}; only gpt2 and nanochat models can be read")
    except (ValueError, KeyError) as failure:
        raise UserError(f"{path}: not a readable configuration of a model ({failure!r}); download it again") from None
    for key, known in fixed.items():
        if hf.get(key, known[0]) not in known:
            raise UserError(f"{path}: {key} is {hf[key]!r}, but this model has {known[0]!r}: not {kind} as trained")
    return config


def hf_tokenizer(folder: Path) -> BPETokenizer:
    """The tokenizer of a Hugging Face directory, of its tokenizer.json; without one GPT-2's.

    UserError if it is of another kind. Additional ids may follow.
    """
    if (folder / TOKENIZER).is_file():
        return open_tokenizer(folder)
    path = folder / "vocab.json"
    ids = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    gpt2 = token_ids(gpt2_merges()) | {END_OF_TEXT: EOT}
    if ids and gpt2 != {token: number for token, number in ids.items() if number <= EOT}:
        raise UserError(f"{path} is not GPT-2's vocabulary, and there is no {TOKENIZER} of another one")
    return GPT2Tokenizer()


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, under the names in its files. No code in the files is executed.
    UserError if a file is missing or corrupt."""
    try:
        for name, read in (("model.safetensors", load_file), ("pytorch_model.bin", _load_pickle)):  # in this order
            if files := _weight_files(folder, name):
                return {name: tensor for file in files for name, tensor in read(file).items()}
    except (SafetensorError, UnpicklingError, RuntimeError, EOFError, ValueError) as failure:
        raise UserError(
            f"{folder}: corrupt weights ({first_line(failure)}); download them again, or git lfs pull if they are Git "
            "LFS pointers"
        ) from None
    raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _weight_files(folder: Path, name: str) -> list[Path]:
    """The file of this name, or the parts that its index lists; [] if neither exists."""
    if (folder / name).is_file():
        return [folder / name]
    index = folder / f"{name}.index.json"
    if not index.exists():
        return []
    files = [folder / part for part in sorted(set(json.loads(index.read_text())["weight_map"].values()))]
    if missing := [file.name for file in files if not file.is_file()]:
        raise UserError(f"{folder}: {missing[0]} is missing, and {index.name} lists it: download it again")
    return files


def _load_pickle(path: Path) -> dict[str, Tensor]:
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's message suggests weights_only=False, which runs code
        raise ValueError(f"{path.name} does not hold only tensors") from None


def from_hf(model: Transformer, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy Hugging Face's tensors into the model, in place; names may begin with `transformer.`. UserError if a tensor
    is missing, unknown, or of another shape."""
    try:
        model.load_state_dict(from_nanochat(tensors) if isinstance(model, Modern) else _from_gpt2(tensors))
    except RuntimeError as failure:
        reason = str(failure).splitlines()[1].strip()[:200]  # the first problem, after a heading
        raise UserError(f"{source}: not the tensors of the model that its config.json describes: {reason}") from None


def _from_gpt2(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    if "lm_head.weight" in theirs:  # the tied tensor may be saved under this name only
        theirs.setdefault("wte.weight", theirs["lm_head.weight"])
    return {
        name: tensor.t() if TRANSPOSED.search(name) else tensor
        for name, tensor in theirs.items()
        if not NOT_WEIGHTS.search(name)
    }


def hf_config(config: ModelConfig, labels: Sequence[str] = (), eot: int | None = None) -> dict[str, Any]:
    """The config.json of a language model of this shape and end-of-text token; with labels, of a classifier.

    transformers' classifier reads the state of the last token that is not padding (end-of-text). UserError if
    transformers has no such model.
    """
    if config.architecture == "modern":
        if labels:
            raise UserError("a modern classifier cannot be exported: transformers has no NanoChat classifier")
        return nanochat_config(config, eot)
    classifier = {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "pad_token_id": config.vocab_size - 1 if eot is None else eot,
        "problem_type": "single_label_classification",
    }
    return {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "n_layer": config.n_layer,
        "n_head": config.n_head,
        "n_embd": config.n_embd,
        "n_positions": config.block_size,
        "n_ctx": config.block_size,  # the name that llama.cpp's converter asks for
        "vocab_size": config.vocab_size,
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "embd_pdrop": config.dropout,
        "attn_pdrop": config.dropout,
        "resid_pdrop": config.dropout,
        "tie_word_embeddings": True,
        "bos_token_id": eot,
        "eos_token_id": eot,
        **(classifier if labels else {}),
    }


def to_hf(model: Transformer) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names and in its layout, contiguous copies on the CPU.

    Hugging Face's GPT-2 always has biases: for a model without them they are 0.
    """
    if isinstance(model, Modern):
        return {name: tensor.contiguous().cpu() for name, tensor in to_nanochat(model.state_dict()).items()}
    tensors = {}
    for name, parameter in model.state_dict().items():
        tensor = parameter.t() if TRANSPOSED.search(name) else parameter
        prefix = "" if name == "score.weight" else "transformer."  # a classifier's head is outside the transformer
        tensors[prefix + name] = tensor.contiguous().cpu()
        if not model.config.bias and HAS_BIAS.search(name):
            tensors[prefix + name.removesuffix("weight") + "bias"] = torch.zeros(len(parameter))
    return tensors
