"""The classifier's head reads the last token's state, and padding changes nothing."""

import pytest
import torch
from torch.nn import functional as F

from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.data.examples import Examples
from train.model.build import build_classifier, build_model
from train.model.classifier import Classifier
from train.model.loss import IGNORE_INDEX

SHAPES = {
    name: ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=24, vocab_size=VOCAB, architecture=name)
    for name in ("gpt2", "modern")
}
WEIGHTS = [0.5, 2.0, 1.5]


@pytest.fixture(params=SHAPES)
def model(request: pytest.FixtureRequest) -> Classifier:
    torch.manual_seed(0)
    model = build_classifier(SHAPES[request.param], 3, WEIGHTS).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def texts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(VOCAB, (n,), generator=generator).tolist() for n in (3, 24, 1, 11, 7)]


def test_the_state_of_the_last_token_does_not_depend_on_the_padding(model: Classifier) -> None:
    padded = torch.randint(VOCAB, (5, 24))
    for row, text in enumerate(texts()):
        padded[row, : len(text)] = torch.tensor(text)
    states = model.hidden(padded)
    for row, text in enumerate(texts()):
        alone = model.hidden(torch.tensor([text]))[0, -1]
        torch.testing.assert_close(states[row, len(text) - 1], alone, atol=2e-6, rtol=0)


def test_the_loss_is_the_weighted_mean_over_single_texts(model: Classifier) -> None:
    labels = [0, 2, 1, 1, 2]
    rows = [(text, [IGNORE_INDEX] * (len(text) - 1) + [label]) for text, label in zip(texts(), labels, strict=True)]
    loss = model(*Examples.from_rows(rows).batch(range(5)))
    total = 0.0
    for text, label in zip(texts(), labels, strict=True):
        logits = model.hidden(torch.tensor([text]))[0, -1] @ model.score.weight.T
        total += WEIGHTS[label] * F.cross_entropy(logits, torch.tensor(label)).item()
    assert abs(loss.item() - total / sum(WEIGHTS[label] for label in labels)) < 1e-6


def test_its_parameters_are_a_language_models_and_the_head(model: Classifier) -> None:
    language_model = build_model(model.config).state_dict().keys()
    assert model.state_dict().keys() == language_model - {"lm_head.weight"} | {"score.weight"}
