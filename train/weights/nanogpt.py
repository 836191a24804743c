"""Models that nanoGPT (ckpt.pt) and build-nanogpt (model_19072.pt) saved. Opening them never runs code.

nanoGPT's own program computes GELU exactly since 2023, this one by OpenAI's tanh approximation, as build-nanogpt does:
of a character model with logits up to 7.8, logits differ by 2e-3 and the loss by 1e-5 (with tanh in theirs, by 3e-6 and
4e-7).
"""

import re
from pathlib import Path
from pickle import UnpicklingError

import torch

from prepare.common.cli import UserError, first_line
from prepare.common.files import check_content
from prepare.tokens.manifest import read_meta_pkl
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE, GPT2Tokenizer, Tokenizer, load_tokenizer
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.weights.huggingface import NOT_WEIGHTS

PREFIXES = re.compile(r"^(_orig_mod\.|module\.)*(transformer\.)?")  # torch.compile's, DDP's, and nanoGPT's own
LARGEST_PADDING = 1024  # GPT-2's vocabulary is padded to a multiple of 64, 128 ... this


class _Config:
    """In place of build-nanogpt's GPTConfig, whose attributes it takes."""


def load_nanogpt(path: Path) -> tuple[GPT, Tokenizer | None, int | None]:
    """The model of a .pt file without its padding tokens, its tokenizer, and its finished steps; each None if unknown.

    The tokenizer is of the characters in meta.pkl, next to the file or in the folder of the data as nanoGPT has it, or
    GPT-2's if the vocabulary has its size.

    Raises:
        UserError: it is something else, or corrupt.
    """
    names = [(_Config, f"{module}.GPTConfig") for module in ("__main__", "train_gpt2", "model")]
    try:
        check_content(path)
        with torch.serialization.safe_globals(names):  # ty: ignore[invalid-argument-type]
            saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        shape = saved["model_args"] if "model_args" in saved else vars(saved["config"])
        found = {PREFIXES.sub("", name): tensor for name, tensor in saved["model"].items()}
        state = {name: tensor for name, tensor in found.items() if not NOT_WEIGHTS.search(name)}
        embedding = found.get("wte.weight", found.get("lm_head.weight"))  # tied
        vocab_size, n_embd = embedding.shape
        block_size, steps = len(state["wpe.weight"]), saved.get("iter_num", saved.get("step"))

        is_gpt2 = GPT2_VOCAB_SIZE <= vocab_size < GPT2_VOCAB_SIZE + LARGEST_PADDING
        dataset = saved["config"].get("dataset", "") if "model_args" in saved else ""
        folders = (path.parent, path.parent.parent / "data" / dataset)
        characters = None if is_gpt2 else next(filter(None, map(read_meta_pkl, folders)), None)
        tokenizer = GPT2Tokenizer() if is_gpt2 else load_tokenizer(characters) if characters else None

        size = tokenizer.vocab_size if tokenizer else vocab_size
        state["wte.weight"] = embedding[:size]
        dropout, bias = shape.get("dropout", 0.0), "ln_f.bias" in state
        model = GPT(ModelConfig(shape["n_layer"], shape["n_head"], n_embd, block_size, size, dropout, bias))
        model.load_state_dict(state)
    except (UnpicklingError, RuntimeError, OSError, EOFError, LookupError, TypeError, AttributeError) as failure:
        reason = first_line(failure)[:200]  # torch's message then advises to let the file run code
        raise UserError(
            f"{path} is not a checkpoint of nanoGPT or build-nanogpt, or is corrupt ({reason}): save it again, or give "
            "a run, a checkpoint or a Hugging Face directory"
        ) from None
    return model, tokenizer, steps
