"""Build the model that a configuration describes: the only place where its architecture becomes a class."""

from collections.abc import Sequence

from train.config.pretrain import ModelConfig
from train.model.classifier import Classifier
from train.model.gpt import GPT
from train.model.modern import Modern
from train.model.transformer import Transformer


def build_model(config: ModelConfig, recompute: bool = False) -> Transformer:
    """A newly initialized model of `config.architecture`. `recompute`: see Transformer."""
    classes = {"gpt2": GPT, "modern": Modern}
    return classes[config.architecture](config, recompute)


class GPTClassifier(Classifier, GPT):
    """A classifier with GPT-2's layers."""


class ModernClassifier(Classifier, Modern):
    """A classifier with the modern architecture's layers."""


def build_classifier(
    config: ModelConfig, labels: int, label_weights: Sequence[float] | None = None, recompute: bool = False
) -> Classifier:
    """A newly initialized classifier of `config.architecture`; the arguments are Classifier's."""
    classes = {"gpt2": GPTClassifier, "modern": ModernClassifier}
    return classes[config.architecture](config, labels, label_weights, recompute)
