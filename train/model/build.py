"""Build the model that a configuration describes."""

from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.model.modern import Modern
from train.model.transformer import Transformer

ARCHITECTURES = {"gpt2": GPT, "modern": Modern}


def build_model(config: ModelConfig, recompute: bool = False) -> Transformer:
    """A newly initialized model of `config.architecture`. `recompute`: see Transformer."""
    return ARCHITECTURES[config.architecture](config, recompute)
