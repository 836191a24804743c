"""GPT-2 weights in Hugging Face's layout, read and written without transformers.

There the linear maps are `Conv1D`, whose weight is (inputs, outputs): the transpose of torch's Linear.
"""

import json
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from prepare.common.cli import UserError, first_line
from prepare.tokens.tokenizer import EOT, GPT2_VOCAB_SIZE, gpt2_vocabulary_files
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT

TRANSPOSED = re.compile(r"\.(c_attn|c_proj|c_fc)\.weight$")
HAS_BIAS = re.compile(r"\b(ln_1|ln_2|ln_f|c_attn|c_proj|c_fc)\.weight$")
NOT_WEIGHTS = re.compile(r"(\.attn\.(bias|masked_bias)|^lm_head\.weight)$")  # causal masks, and the tied head
# What json, safetensors and the unpickler raise at files that are not theirs, and our code at what those hold instead
DAMAGED = (SafetensorError, UnpicklingError, struct.error, RuntimeError, EOFError, ValueError, LookupError, TypeError)
DAMAGED += (AttributeError,)
MOST_PARAMETERS = 100_000_000_000  # sixty times the largest GPT-2's: more is a mistake, not to be tried on the memory
SIZES = (  # of checked_shape: GPT2Config's names, the first of which to be there counts, and its defaults
    (("num_hidden_layers", "n_layer"), 12),
    (("num_attention_heads", "n_head"), 12),
    (("hidden_size", "n_embd"), 768),
    (("max_position_embeddings", "n_positions", "n_ctx"), 1024),
    (("vocab_size",), GPT2_VOCAB_SIZE),
)
VOCABULARIES = ("vocab.json", "tokenizer.json")
HUB_FILES = ["config.json", *VOCABULARIES, "model*.safetensors*"]
HUB_PICKLES = ["pytorch_model.bin", "pytorch_model.bin.index.json", "pytorch_model-*.bin"]
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def is_hf_folder(folder: Path) -> bool:
    """Whether a folder looks like a Hugging Face model."""
    return (folder / "config.json").is_file()


def load_hf(folder: Path) -> GPT:
    """A GPT from a Hugging Face directory: config.json with model.safetensors or pytorch_model.bin, also sharded.

    Raises:
        UserError: not a GPT-2, files that are missing or damaged, or a vocabulary that is not GPT-2's.
    """
    config = read_hf_config(folder / "config.json")
    check_vocabulary(folder)
    model = GPT(config)
    from_hf(model, read_tensors(folder), folder)
    return model


def download_hf(name: str, option: str = "--model") -> Path:
    """Fetch a model of the hub (gpt2, gpt2-xl, distilgpt2, someone/something) into its cache; return the folder.

    Raises:
        UserError: no such model, or no network.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        folder = Path(snapshot_download(name, allow_patterns=HUB_FILES))
        if not any(folder.glob("model*.safetensors")):
            snapshot_download(name, allow_patterns=HUB_PICKLES)
        return folder
    except RepositoryNotFoundError:
        raise UserError(f"{option} {name}: neither a folder here nor a model on the hub; check the spelling") from None
    except Exception as failure:  # the hub's client raises many kinds for one thing: it could not be reached
        reason = f"{type(failure).__name__}: {failure}".splitlines()[0]
        raise UserError(
            f"{option} {name}: no such folder, and the hub could not be reached ({reason}); "
            "offline, give a run, a checkpoint or a downloaded Hugging Face directory"
        ) from None


def read_hf_config(path: Path) -> ModelConfig:
    """The ModelConfig that a Hugging Face config.json describes; sizes that it leaves out are the smallest GPT-2's."""
    try:
        hf = json.loads(path.read_text("utf-8"))
        if hf.get("model_type") != "gpt2":
            raise UserError(f"{path}: model_type is {hf.get('model_type')!r}; only gpt2 models can be read")
        config = checked_shape([next((hf[name] for name in names if name in hf), size) for names, size in SIZES])
        different = {
            "n_inner": (4 * config.n_embd, None),
            "activation_function": ("gelu_new", "gelu_pytorch_tanh"),
            "layer_norm_epsilon": (1e-5,),
            "scale_attn_weights": (True,),
            "scale_attn_by_inverse_layer_idx": (False,),
            "tie_word_embeddings": (True,),
        }
        for key, known in different.items():
            if hf.get(key, known[0]) not in known:
                raise UserError(f"{path}: {key} is {hf[key]!r}, but this model has {known[0]!r}: not GPT-2 as trained")
        return config
    except (OSError, ValueError, AttributeError, RecursionError) as failure:
        raise UserError(f"{path}: not a readable GPT-2 configuration ({failure!r}); download it again") from None


def checked_shape(sizes: Sequence[Any]) -> ModelConfig:
    """The ModelConfig with these n_layer, n_head, n_embd, block_size and vocab_size.

    Raises:
        ValueError: they are no model's.
    """
    if not all(type(size) is int and size > 0 for size in sizes):
        raise ValueError(f"layers, heads, width, positions and vocabulary are {sizes}, not whole numbers above 0")
    config = ModelConfig(*sizes)
    if config.n_embd % config.n_head:
        raise ValueError(f"a width of {config.n_embd} does not divide among {config.n_head} heads")
    rows = config.vocab_size + config.block_size + 12 * config.n_layer * config.n_embd  # of n_embd parameters
    if rows * config.n_embd > MOST_PARAMETERS:
        raise ValueError(f"that makes {rows * config.n_embd:.1e} parameters")
    return config


def check_vocabulary(folder: Path) -> None:
    """Refuse a model whose own vocabulary files say that its ids are other tokens than GPT-2's; further ids may follow.

    Raises:
        UserError: it is so, or a file is damaged.
    """
    for name in VOCABULARIES:
        path = folder / name
        if not path.is_file():
            continue
        try:
            ids = json.loads(path.read_text("utf-8"))
            ids = ids["model"]["vocab"] if name == "tokenizer.json" else ids
            known = {token: number for token, number in ids.items() if number < GPT2_VOCAB_SIZE}
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as failure:
            raise UserError(f"{path}: not a readable vocabulary ({failure!r}); download it again") from None
        if known != json.loads(gpt2_vocabulary_files()[0].read_text("utf-8")):
            raise UserError(f"{path} is not GPT-2's vocabulary, and models of others cannot be read")


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a Hugging Face directory, by their names there. Nothing in the files is executed."""
    try:
        for whole, read in (("model.safetensors", load_file), ("pytorch_model.bin", _load_bin)):  # transformers' order
            if files := _weight_files(folder, whole):
                return {name: tensor for file in files for name, tensor in read(file).items()}
    except DAMAGED as failure:
        reason = first_line(failure)
        raise UserError(
            f"{folder}: damaged weights ({reason}); download them again, or git lfs pull if they are Git LFS pointers"
        ) from None
    raise UserError(f"{folder}: neither model.safetensors nor pytorch_model.bin is there")


def _weight_files(folder: Path, whole: str) -> list[Path]:
    """The file of this name, or else the parts that its index names; none where neither is there."""
    if (folder / whole).is_file():
        return [folder / whole]
    index = folder / f"{whole}.index.json"
    if not index.exists():
        return []
    names = sorted(set(json.loads(index.read_text())["weight_map"].values()))
    if strangers := [name for name in names if Path(name).name != name]:
        raise ValueError(f"{index.name} names {strangers[0]}, which is not in this folder")
    if lacking := [name for name in names if not (folder / name).is_file()]:
        raise UserError(f"{folder}: {lacking[0]} is missing, and {index.name} names it: download it again")
    return [folder / name for name in names]


def _load_bin(path: Path) -> dict[str, Tensor]:
    """The tensors of a pickle of torch's.

    Raises:
        ValueError: it holds something else, and other exceptions of `DAMAGED`.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except UnpicklingError:  # torch's words advise to let the file run code
        raise ValueError(f"{path.name} is not a file of tensors alone") from None
    for name, tensor in tensors.items():
        if not (isinstance(name, str) and isinstance(tensor, Tensor)):
            raise ValueError("not only named tensors")
        if tensor.layout != torch.strided or tensor.is_meta:
            raise ValueError(f"{name} has no numbers of its own")
    return tensors


@torch.no_grad()
def from_hf(model: GPT, tensors: Mapping[str, Tensor], source: Path | str) -> None:
    """Copy Hugging Face's tensors into the model, in place; names may begin with `transformer.`.

    Raises:
        UserError: a tensor is missing, left over, or of another shape, or the head has weights of its own.
    """
    theirs = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    head, embedding = theirs.get("lm_head.weight"), theirs.get("wte.weight")
    if head is not None and embedding is not None and not (head.shape == embedding.shape and (head == embedding).all()):
        raise UserError(f"{source}: its lm_head.weight is not its wte.weight, and GPT-2 has one tensor for both")
    if head is not None:  # which may be the only name that was written
        theirs["wte.weight"] = head
    theirs = {name: tensor for name, tensor in theirs.items() if not NOT_WEIGHTS.search(name)}
    ours = dict(model.named_parameters())
    if wrong := sorted(ours.keys() ^ theirs.keys()):
        raise UserError(
            f"{source}: not the tensors of a GPT-2: {wrong[0]} and {len(wrong) - 1} more missing or unknown"
        )
    for name, parameter in ours.items():
        tensor = theirs[name].mT if TRANSPOSED.search(name) and theirs[name].dim() > 1 else theirs[name]
        if tensor.shape != parameter.shape:
            raise UserError(
                f"{source}: {name} is {tuple(tensor.shape)}, not {tuple(parameter.shape)} as its configuration says"
            )
        parameter.copy_(tensor)


def hf_config(config: ModelConfig, labels: Sequence[str] = ()) -> dict[str, Any]:
    """The config.json of a model of this shape; with labels, of a classifier, which reads the state of the last token
    that is no padding (end-of-text)."""
    classifier = {
        "architectures": ["GPT2ForSequenceClassification"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "pad_token_id": min(EOT, config.vocab_size - 1),
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
        **(classifier if labels else {}),
    }


def to_hf(model: GPT) -> dict[str, Tensor]:
    """The model's tensors under Hugging Face's names and in its layout, contiguous copies on the CPU.

    A model without biases is one whose biases are 0 there, where all have them.
    """
    tensors = {}
    for name, parameter in model.state_dict().items():
        tensor = parameter.t() if TRANSPOSED.search(name) else parameter
        body = "" if name == "score.weight" else "transformer."  # a classifier's head stands beside it
        tensors[body + name] = tensor.contiguous().cpu()
        if not model.config.bias and HAS_BIAS.search(name):
            tensors[body + name.removesuffix("weight") + "bias"] = torch.zeros(len(parameter))
    return tensors
