"""GPT-2s and NanoChats of transformers with random weights, saved as directories, for the tests to compare with."""

from pathlib import Path

import torch
from transformers import GPT2Config, GPT2LMHeadModel, NanoChatConfig, NanoChatForCausalLM, PreTrainedModel


def save_random_gpt2(folder: Path, seed: int = 0, **shape: int) -> GPT2LMHeadModel:
    """Make one, in evaluation mode, and save it. Its weights are large enough for clear preferences."""
    torch.manual_seed(seed)
    shape = {"vocab_size": 50257, "n_layer": 2, "n_head": 4, "n_embd": 64} | shape
    config = GPT2Config(**shape, initializer_range=0.15)
    model = GPT2LMHeadModel(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # biases too: they begin at 0
            parameter.add_(0.05 * torch.randn_like(parameter))
    model.save_pretrained(folder)
    return model


def save_random_nanochat(folder: Path, seed: int = 0, **shape: int) -> NanoChatForCausalLM:
    """A NanoChat with a block size of 48, likewise."""
    torch.manual_seed(seed)
    sizes = {"intermediate_size": 4 * shape["hidden_size"], "max_position_embeddings": 48}
    model = NanoChatForCausalLM(NanoChatConfig(**shape, **sizes, initializer_range=0.15)).eval()
    model.save_pretrained(folder)
    return model


@torch.no_grad()
def log_likelihood(model: PreTrainedModel, context: list[int], continuation: list[int]) -> tuple[float, bool]:
    """The log-likelihood of one continuation, summed over its tokens, and whether each token is the first choice."""
    tokens = torch.tensor([(context + continuation)[-(model.config.max_position_embeddings + 1) :]])
    logits = model(tokens[:, :-1], logits_to_keep=len(continuation)).logits[0]  # (n, V)
    wanted = tokens[0, -len(continuation) :]
    logliks = torch.log_softmax(logits, -1).gather(1, wanted[:, None])
    return logliks.double().sum().item(), bool((logits.argmax(-1) == wanted).all())
