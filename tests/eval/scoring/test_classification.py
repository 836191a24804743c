"""The scores of a classifier, against their definitions counted one example at a time."""

import math

import numpy as np
import pytest
import torch

from eval.scoring.classification import BINS, Tally, class_probabilities, classify
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import GPT2Tokenizer
from train.config.pretrain import ModelConfig
from train.data.examples import label_targets
from train.model.build import build_classifier
from train.model.loss import IGNORE_INDEX


def answers(n: int = 200, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return rng.dirichlet([0.6, 0.4, 0.3], size=n), rng.integers(3, size=n)


def test_metrics_are_their_definitions_and_tallies_add_up() -> None:
    probabilities, truth = answers()
    tally, parts = Tally(3), [Tally(3), Tally(3)]
    tally.add(probabilities, truth)
    parts[0].add(probabilities[:70], truth[:70])
    parts[1].add(probabilities[70:], truth[70:])
    guesses = [max(range(3), key=lambda label, row=row: row[label]) for row in probabilities]
    f1, gaps = [], 0.0
    for label in range(3):
        both = sum(guess == label == true for guess, true in zip(guesses, truth, strict=True))
        precision, recall = both / guesses.count(label), both / list(truth).count(label)
        f1.append(2 * precision * recall / (precision + recall))
    for low in range(BINS):
        inside = [i for i, row in enumerate(probabilities) if low / BINS <= row.max() < (low + 1) / BINS]
        if inside:
            accuracy = np.mean([guesses[i] == truth[i] for i in inside])
            gaps += len(inside) * abs(accuracy - np.mean([probabilities[i].max() for i in inside]))
    metrics = tally.metrics()
    assert metrics["accuracy"] == np.mean(np.array(guesses) == truth)
    assert metrics["macro_f1"] == pytest.approx(np.mean(f1))
    assert metrics["ece"] == pytest.approx(gaps / 200)
    assert metrics["loss"] == pytest.approx(-np.mean(np.log(probabilities[range(200), truth])))
    parts[0].sums += parts[1].sums
    assert parts[0].metrics() == pytest.approx(metrics)


@pytest.mark.filterwarnings("error")
def test_a_probability_that_is_not_finite_leaves_no_score() -> None:
    probabilities, truth = answers()
    probabilities[3] = math.nan
    tally, others = Tally(3), Tally(3)
    for part in (slice(0, 2), slice(2, 6), slice(6, 200)):
        tally.add(probabilities[part], truth[part])
    others.add(*answers())
    others.sums += tally.sums  # any rank's is every rank's
    for scores in (tally.metrics(), others.metrics()):
        assert all(math.isnan(value) for value in scores.values())


def test_a_diverged_model_predicts_no_label() -> None:
    model = build_classifier(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=12, vocab_size=50257), 2)
    torch.nn.init.constant_(model.score.weight, math.nan)
    with pytest.raises(UserError, match="it has diverged"):
        classify(model, GPT2Tokenizer(), ["one", "two words"], "cpu")


def test_texts_together_are_classified_as_each_alone() -> None:
    torch.manual_seed(0)
    model = build_classifier(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=12, vocab_size=50257), 3).eval()
    torch.nn.init.normal_(model.score.weight, std=2.0)
    tokenizer = GPT2Tokenizer()
    texts = ["one", "a much longer text of more than twelve tokens, which is truncated here", "two words", "3"]
    found, lengths = classify(model, tokenizer, texts, "cpu", batch_size=2)
    assert lengths == [len(tokenizer.encode(text)) for text in texts]
    for text, row in zip(texts, found, strict=True):
        tokens = torch.tensor([tokenizer.encode(text)[:12]])
        alone = torch.softmax(model(tokens)[0, -1].double(), -1)
        np.testing.assert_allclose(row, alone.detach().numpy(), atol=1e-6)
    tokens, targets = label_targets(tokenizer.encode(texts[1]), 2, 12)
    assert (len(tokens), targets) == (12, [IGNORE_INDEX] * 11 + [2])
    (_, truth), *_ = class_probabilities(model, [(torch.tensor([tokens]), torch.tensor([targets]))])
    assert truth.tolist() == [2]
