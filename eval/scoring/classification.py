"""How well a classifier does: accuracy, F1, calibration, and the confusion of its labels."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from eval.scoring.log_likelihood import DIVERGED, evaluating
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.data.examples import Examples, label_targets, length_buckets
from train.model.classifier import Classifier
from train.model.gpt import IGNORE_INDEX

BINS = 15  # of the calibration, as in Guo et al. 2017


@dataclass
class Tally:
    """Sums over classified examples, which add up over batches and ranks."""

    labels: int
    nll: float = 0.0  # nats
    confusion: np.ndarray = field(init=False)  # (labels, labels) counts: true label, predicted label
    bins: np.ndarray = field(init=False)  # (BINS, 3): examples, sum of their confidence, how many were right

    def __post_init__(self) -> None:
        self.confusion, self.bins = np.zeros((self.labels, self.labels)), np.zeros((BINS, 3))

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Take examples: probabilities float64 (n, labels), true labels (n,). With one that is not finite the model has
        diverged: all sums are NaN from then on."""
        if not np.isfinite(probabilities).all():
            self.load([math.nan] * len(self.sums()))
            return
        guess, confidence = probabilities.argmax(1), probabilities.max(1)
        tiny = np.finfo(float).tiny
        self.nll -= float(np.log(np.maximum(probabilities[np.arange(len(truth)), truth], tiny)).sum())
        np.add.at(self.confusion, (truth, guess), 1)
        which = np.minimum((confidence * BINS).astype(int), BINS - 1)
        np.add.at(self.bins, which, np.stack([np.ones(len(truth)), confidence, guess == truth], axis=1))

    def sums(self) -> list[float]:
        """All of it as numbers that can be added."""
        return [self.nll, *self.confusion.ravel().tolist(), *self.bins.ravel().tolist()]

    def load(self, sums: Sequence[float]) -> "Tally":
        """Set this tally from another's `sums()`, or from the sum of several."""
        n = self.labels**2
        self.nll, self.confusion = sums[0], np.reshape(sums[1 : 1 + n], self.confusion.shape)
        self.bins = np.reshape(sums[1 + n :], self.bins.shape)
        return self

    def metrics(self) -> dict[str, float]:
        """loss: nats an example; accuracy; macro_f1: the mean of the labels' F1 (0 for one that is neither there nor
        predicted); ece: the mean distance of confidence and accuracy in BINS equal bins (Guo et al. 2017)."""
        total, right = self.confusion.sum(), np.diag(self.confusion)
        f1 = 2 * right / np.maximum(self.confusion.sum(0) + self.confusion.sum(1), 1)
        ece = np.abs(self.bins[:, 1] - self.bins[:, 2]).sum() / total
        return {
            "loss": self.nll / total,
            "accuracy": float(right.sum() / total),
            "macro_f1": float(f1.mean()),
            "ece": float(ece),
        }


@torch.no_grad()
def class_probabilities(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Of each batch the labels' probabilities, float64 (b, L), and the targets, int64 (b,).

    Args:
        batches: inputs and targets, int64 (b, T) each; the one target of a row that is not IGNORE_INDEX marks its end.
    """
    with evaluating(model):
        for x, y in batches:
            with autocast or nullcontext():
                logits = model(x.to(device))[(y != IGNORE_INDEX).to(device)]  # (b, L)
            yield torch.softmax(logits.cpu().double(), -1).numpy(), y[y != IGNORE_INDEX].numpy()


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device | str, batch_size: int = 32
) -> tuple[np.ndarray, int]:
    """The labels' probabilities for each text, float64 (len(texts), L), and how many texts lost their end.

    Raises:
        UserError: one of them is no number. Its argmax would look like a label.
    """
    rows = [tokenizer.encode(text) for text in texts]
    size = model.config.block_size
    examples = Examples.of([label_targets(row, 0, size) for row in rows])
    probabilities = np.empty((len(rows), model.score.out_features))
    for numbers in length_buckets(examples, batch_size):
        found = class_probabilities(model, [examples.batch(numbers)], device)
        probabilities[numbers] = next(found)[0]
    if not np.isfinite(probabilities).all():
        raise UserError(DIVERGED)
    return probabilities, sum(len(row) > size for row in rows)
