"""Scores of a classifier: accuracy, F1, calibration, and the confusion matrix."""

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor

from eval.common.open_model import DIVERGED, evaluating
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import Tokenizer
from train.data.examples import Examples, label_targets, length_buckets
from train.model.classifier import Classifier
from train.model.loss import IGNORE_INDEX

BINS = 15  # of the expected calibration error, as in Guo et al. 2017


class Tally:
    """Sums over classified examples, which can be added over batches and ranks."""

    def __init__(self, labels: int) -> None:
        self.labels = labels
        self.sums = np.zeros(1 + labels**2 + 3 * BINS)  # one array, for an all-reduce; the others are views of it
        nll, confusion, bins = np.split(self.sums, [1, 1 + labels**2])
        self.nll = nll  # (1,) nats
        self.confusion = confusion.reshape(labels, labels)  # counts: true label, predicted label
        self.bins = bins.reshape(BINS, 3)  # examples, sum of their confidence, number of correct ones

    def add(self, probabilities: np.ndarray, truth: np.ndarray) -> None:
        """Add examples: probabilities float64 (n, labels), true labels (n,).

        If a probability is not finite, the model has diverged: all sums are NaN from then on.
        """
        if not np.isfinite(probabilities).all():
            self.sums[:] = math.nan
            return
        guess, confidence = probabilities.argmax(1), probabilities.max(1)
        tiny = np.finfo(float).tiny
        self.nll -= np.log(np.maximum(probabilities[np.arange(len(truth)), truth], tiny)).sum()
        np.add.at(self.confusion, (truth, guess), 1)
        which = np.minimum((confidence * BINS).astype(int), BINS - 1)
        np.add.at(self.bins, which, np.stack([np.ones(len(truth)), confidence, guess == truth], axis=1))

    def metrics(self) -> dict[str, float]:
        """loss: nats per example; accuracy; macro_f1: mean F1 of the labels (0 for one that neither occurs nor is
        predicted); ece: expected calibration error, the mean gap of confidence and accuracy in BINS equal bins."""
        total, correct = self.confusion.sum(), np.diag(self.confusion)
        f1 = 2 * correct / np.maximum(self.confusion.sum(0) + self.confusion.sum(1), 1)
        return {
            "loss": float(self.nll[0] / total),
            "accuracy": float(correct.sum() / total),
            "macro_f1": float(f1.mean()),
            "ece": float(np.abs(self.bins[:, 1] - self.bins[:, 2]).sum() / total),
        }


@torch.no_grad()
def class_probabilities(
    model: Classifier,
    batches: Iterable[tuple[Tensor, Tensor]],
    device: torch.device | str = "cpu",
    autocast: AbstractContextManager | None = None,
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield each batch's label probabilities, float64 (b, L), and targets, int64 (b,).

    Args:
        batches: inputs and targets, int64 (b, T) each; the one target of a row that is not IGNORE_INDEX is its label.
    """
    with evaluating(model):
        for x, y in batches:
            with autocast or nullcontext():
                logits = model(x.to(device))[(y != IGNORE_INDEX).to(device)]  # (b, L)
            yield torch.softmax(logits.cpu().double(), -1).numpy(), y[y != IGNORE_INDEX].numpy()


def classify(
    model: Classifier, tokenizer: Tokenizer, texts: Sequence[str], device: torch.device | str, batch_size: int = 32
) -> tuple[np.ndarray, list[int]]:
    """Classify texts, truncated to the block size: label probabilities, float64 (len(texts), L), and each text's length
    in tokens before that. UserError if a probability is not finite."""
    rows = [tokenizer.encode(text) for text in texts]
    examples = Examples.from_rows([label_targets(row, 0, model.config.block_size) for row in rows])
    probabilities = np.empty((len(rows), model.score.out_features))
    for numbers in length_buckets(examples, batch_size):
        [(probabilities[numbers], _)] = class_probabilities(model, [examples.batch(numbers)], device)
    if not np.isfinite(probabilities).all():
        raise UserError(DIVERGED)
    return probabilities, [len(row) for row in rows]
