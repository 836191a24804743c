"""Losses and answers of examples together, padded and length_buckets, are those of each alone."""

from types import SimpleNamespace

import pytest
import torch
from torch.nn import functional as F

from eval.generation.answers import first_question, greedy_answers
from eval.scoring.log_likelihood import sum_loss
from tests.helpers.finetuning import random_examples
from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.data.examples import Examples, length_buckets
from train.model.gpt import GPT, IGNORE_INDEX


@pytest.fixture
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=VOCAB, dropout=0.5))
    with torch.no_grad():
        model.wte.weight.mul_(20)
    return model.train()


def test_the_loss_is_that_of_single_examples_in_float64(model: GPT) -> None:
    examples = random_examples(23)
    nll, tokens = sum_loss(model, [examples.batch(rows) for rows in length_buckets(examples, 4)], "cpu")
    assert model.training
    alone, exact = 0.0, model.eval().double()
    for number in range(len(examples)):
        row, targets = (torch.from_numpy(part.astype("int64")) for part in examples.row(number))
        alone += F.cross_entropy(exact(row[None])[0], targets, ignore_index=IGNORE_INDEX, reduction="sum").item()
    assert tokens == int((examples.targets != IGNORE_INDEX).sum())
    assert nll == pytest.approx(alone, rel=1e-6)


def test_the_first_question_ends_where_its_answer_begins() -> None:
    tokens, targets = [5, 6, 7, 8, 9, 3, 4, 2], [IGNORE_INDEX, IGNORE_INDEX, 8, 9, IGNORE_INDEX, IGNORE_INDEX, 2, 1]
    twice = Examples.of([([1], [1]), (tokens, targets), (tokens[:4], targets[:4])])
    assert first_question(twice, 1) == ([5, 6, 7], [8, 9])
    assert first_question(twice, 2) == ([5, 6, 7], [8, 9])


def test_answers_given_together_are_those_given_alone_up_to_the_end_of_text(model: GPT) -> None:
    prompts = [[1, 2, 3], [4], [5, 6, 7, 8, 9, 10, 11], [12, 13]]
    tokenizer = SimpleNamespace(eot=None, vocab_size=VOCAB, decode=lambda tokens: tokens)
    whole = [greedy_answers(model, tokenizer, [prompt], 12)[0] for prompt in prompts]
    assert len(set(map(tuple, whole))) == 4
    tokenizer.eot = whole[0][3]  # from now on this token ends an answer
    expected = [answer[: answer.index(tokenizer.eot)] if tokenizer.eot in answer else answer for answer in whole]
    assert len(expected[0]) < 12
    assert greedy_answers(model, tokenizer, prompts, 12) == expected
