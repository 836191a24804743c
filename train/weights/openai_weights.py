"""GPT-2 as OpenAI published it: a folder of a TensorFlow checkpoint, hparams.json and the tokenizer's files.

There the linear maps have weights (1, inputs, outputs): Hugging Face's layout with a leading dimension.
"""

import json
import re
from pathlib import Path

from prepare.common.cli import UserError
from train.model.gpt import GPT
from train.weights.huggingface import check_vocabulary, checked_shape, from_hf
from train.weights.tf_checkpoint import read_bundle

SCOPE = "model/"
LAYER = re.compile(r"^h(\d+)/")
ENDINGS = {"/w": ".weight", "/g": ".weight", "/b": ".bias"}


def is_openai_folder(folder: Path) -> bool:
    """Whether a folder looks like one of OpenAI's."""
    return (folder / "hparams.json").is_file() and (folder / "checkpoint").is_file()


def load_openai(folder: Path) -> GPT:
    """A GPT from a folder with checkpoint, hparams.json, model.ckpt.index and model.ckpt.data-*.

    Raises:
        UserError: files that are missing or damaged, no GPT-2, or another vocabulary than GPT-2's.
    """
    path = folder / "hparams.json"
    try:
        hparams = json.loads(path.read_text("utf-8"))
        config = checked_shape([hparams[key] for key in ("n_layer", "n_head", "n_embd", "n_ctx", "n_vocab")])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as failure:
        raise UserError(f"{path}: not OpenAI's description of a GPT-2 ({failure!r}); download it again") from None
    check_vocabulary(folder)
    names = (folder / "checkpoint").read_text("utf-8", errors="replace")
    newest = re.search(r'^model_checkpoint_path: "(?:.*/)?(.+)"', names, re.MULTILINE)
    if not newest:
        raise UserError(f"{folder / 'checkpoint'} names no checkpoint: download it again")
    tensors = {}
    for name, tensor in read_bundle(folder / newest[1], SCOPE).items():
        tensors[hf_name(name)] = tensor.squeeze(0) if tensor.dim() == 3 else tensor  # (1, I, O) to (I, O)
    model = GPT(config)
    from_hf(model, tensors, folder)
    return model


def hf_name(name: str) -> str:
    """model/h0/attn/c_attn/w to h.0.attn.c_attn.weight, model/wte to wte.weight."""
    name = LAYER.sub(r"h.\1.", name.removeprefix(SCOPE))
    return name[:-2].replace("/", ".") + ENDINGS[name[-2:]] if name[-2:] in ENDINGS else f"{name}.weight"
