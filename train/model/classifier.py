"""A classifier: a linear head on the last token's state, in place of the language model's head.

With the causal mask that state depends on the whole text and on nothing after it, so padding on the right does not
matter. The same head as Radford et al. 2018 (GPT-1, section 3.2) and Hugging Face's GPT2ForSequenceClassification.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from train.config.pretrain import ModelConfig
from train.model.loss import IGNORE_INDEX
from train.model.transformer import Transformer


class Classifier(Transformer):
    """A model with a head for L labels: its parameters without an untied output head, and `score.weight`."""

    label_weights: Tensor  # (L,), a buffer

    def __init__(
        self, config: ModelConfig, labels: int, label_weights: Sequence[float] | None = None, recompute: bool = False
    ) -> None:
        """`labels`: L. `label_weights`: the weight of each label's examples in the loss; None: 1 each."""
        super().__init__(config, recompute)  # of the architecture, which comes next in the order of base classes
        if hasattr(self, "lm_head"):
            del self.lm_head
        self.score = nn.Linear(config.n_embd, labels, bias=False)
        nn.init.normal_(self.score.weight, std=0.02)
        self.register_buffer("label_weights", torch.tensor(label_weights or [1.0] * labels), persistent=False)

    def forward(self, idx: Tensor, targets: Tensor | None = None) -> Tensor:
        """The labels' logits at every position, as if the text ended there; with targets, the mean loss instead.

        Args:
            idx: (B, T) int64 token ids, padded on the right with anything.
            targets: (B, T) int64, the label at the last token of each text and IGNORE_INDEX elsewhere.

        Returns:
            (B, T, L) float32 logits, or the weighted mean cross-entropy in nats, a float32 scalar.
        """
        hidden = self.hidden(idx)  # (B, T, C)
        with torch.autocast(hidden.device.type, enabled=False):  # in float32: the logits become probabilities
            logits = self.score(hidden.float())  # (B, T, L)
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), self.label_weights, ignore_index=IGNORE_INDEX)
