"""Scores against transformers computed alone; batches, ranks, precision and accuracies."""

import random

import pytest
import torch
from torch.nn import functional as F

from eval.scoring import log_likelihood
from eval.scoring.log_likelihood import (
    Score,
    count_correct,
    gather_scores,
    predictions,
    row_width,
    rows_of,
    score_requests,
    standard_error,
    sum_loss,
    token_batches,
)
from eval.scoring.tasks import Request
from tests.helpers.finetuning import random_examples
from tests.helpers.random_gpt2 import log_likelihood as their_log_likelihood
from tests.helpers.random_gpt2 import save_random_gpt2, save_random_nanochat
from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.data.examples import length_buckets
from train.model.gpt import GPT
from train.model.loss import IGNORE_INDEX
from train.parallel.device import autocast
from train.parallel.world import World
from train.weights.huggingface import load_hf

SHAPES = {
    "small": {"vocab_size": 211, "n_layer": 2, "n_head": 2, "n_embd": 32, "n_positions": 48},
    "wide": {"vocab_size": 97, "n_layer": 3, "n_head": 4, "n_embd": 80, "n_positions": 64},
    "modern": {"vocab_size": 97, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32},
}
CPU = torch.device("cpu")


@pytest.fixture(params=SHAPES)
def pair(request, tmp_path):
    """transformers' model, and ours with the same weights."""
    save = save_random_nanochat if request.param == "modern" else save_random_gpt2
    theirs = save(tmp_path, seed=len(request.param), **SHAPES[request.param])
    return theirs, load_hf(tmp_path)


@pytest.fixture
def ours(tmp_path):
    save_random_gpt2(tmp_path, **SHAPES["small"])
    return load_hf(tmp_path)


def _requests(n: int, vocab_size: int, longest: int, seed: int = 0) -> list[Request]:
    draw = random.Random(seed)

    def tokens(most: int) -> list[int]:
        return [draw.randrange(vocab_size) for _ in range(draw.randint(1, most))]

    found = []
    for _ in range(n):
        endings = [tokens(longest // 3) for _ in range(4)]
        found.append(Request(tokens(longest), endings, [draw.randint(1, 50) for _ in range(4)], draw.randrange(4)))
    return found


def _values(scores: dict[int, list[Score]], n: int) -> list[float]:
    return [score.loglik for index in range(n) for score in scores[index]]


# --- against transformers ---------------------------------------------------------------------------------------------


def test_each_log_likelihood_is_transformers_computed_alone(pair):
    theirs, ours = pair
    block_size = theirs.config.max_position_embeddings
    requests = _requests(25, theirs.config.vocab_size, block_size + 10)
    assert any(request.longest() - 1 > block_size for request in requests)  # some are truncated
    context = [1, 2, 3]
    greedy = theirs.generate(torch.tensor([context]), max_new_tokens=4, do_sample=False, pad_token_id=0)[0, 3:].tolist()
    wrong_end = [*greedy[:3], (greedy[3] + 1) % theirs.config.vocab_size]
    requests.append(Request(context, [greedy, wrong_end, greedy[:1]], [1, 1, 1], 0))
    scores = score_requests(ours, requests, CPU)
    for index, request in enumerate(requests):
        for ending, score in zip(request.continuations, scores[index], strict=True):
            expected, greedy = their_log_likelihood(theirs, request.context, ending)
            assert score.loglik == pytest.approx(expected, abs=1e-3)
            assert score.greedy == greedy
    assert [score.greedy for score in scores[25]] == [True, False, True]


def test_of_tokens_that_are_equally_likely_the_first_is_greedy():
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=11))
    torch.nn.init.zeros_(model.wte.weight)  # every logit is 0
    [scores] = score_requests(model, [Request([1], [[0], [0, 0], [0, 5], [10]], [1] * 4, 0)], CPU).values()
    assert [score.greedy for score in scores] == [True, True, False, False]


def test_the_loss_of_padded_examples_is_that_of_each_alone_in_float64():
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=16, block_size=32, vocab_size=VOCAB, dropout=0.5)).train()
    examples = random_examples(23)  # with targets of IGNORE_INDEX
    nll, tokens = sum_loss(model, [examples.batch(rows) for rows in length_buckets(examples, 4)], "cpu")
    assert model.training
    alone, exact = 0.0, model.eval().double()
    for number in range(len(examples)):
        row, targets = (torch.from_numpy(part.astype("int64")) for part in examples.row(number))
        alone += F.cross_entropy(exact(row[None])[0], targets, ignore_index=IGNORE_INDEX, reduction="sum").item()
    assert tokens == int((examples.targets != IGNORE_INDEX).sum())
    assert nll == pytest.approx(alone, rel=1e-6)


# --- batches and ranks ------------------------------------------------------------------------------------------------


def test_neither_batches_nor_slices_of_logits_change_the_scores(ours, monkeypatch):
    requests, x = _requests(20, 90, 60, seed=3), torch.randint(90, (3, 40))
    monkeypatch.setattr(log_likelihood, "CPU_BATCH_TOKENS", 1)
    one_by_one, loss = score_requests(ours, requests, CPU), sum_loss(ours, [(x, x)], CPU)[0]
    for batch_tokens, logits_slice in ((500, 1024), (100_000, 1024), (500, 7)):
        monkeypatch.setattr(log_likelihood, "CPU_BATCH_TOKENS", batch_tokens)
        monkeypatch.setattr(log_likelihood, "LOGITS_SLICE", logits_slice)
        assert _values(score_requests(ours, requests, CPU), 20) == pytest.approx(_values(one_by_one, 20), abs=1e-4)
    assert sum_loss(ours, [(x, x)], CPU)[0] == pytest.approx(loss, rel=1e-6)


@pytest.mark.parametrize("world_size", [2, 3, 50])
def test_ranks_share_all_requests_and_call_back_equally_often(ours, world_size):
    requests = _requests(20, 90, 60, seed=4)
    alone = score_requests(ours, requests, CPU)
    together, calls = {}, []
    for rank in range(world_size):
        done: list[int] = []
        share = score_requests(ours, requests, CPU, None, rank, world_size, done.append)
        assert not share.keys() & together.keys()
        assert sum(done) == len(share)
        together |= share
        calls.append(len(done))
    assert _values(together, 20) == _values(alone, 20)
    assert len(set(calls)) == 1
    assert gather_scores(together, requests, World(0, 1, CPU)) == [alone[index] for index in range(20)]


def test_equal_continuations_have_equal_scores_and_the_first_is_predicted(ours, monkeypatch):
    requests, draw = [], random.Random(0)
    for room in range(24):  # after the context: up to 6 too little for one row
        context, a, b = ([draw.randrange(90) for _ in range(n)] for n in (ours.config.block_size - room, 5, 7))
        requests.append(Request(context, [a, b, a, a, b], [1] * 5, 0))
    for batch_tokens in (1, 300, 100_000):
        monkeypatch.setattr(log_likelihood, "CPU_BATCH_TOKENS", batch_tokens)
        for index, scores in score_requests(ours, requests, CPU).items():
            assert scores[0] == scores[2] == scores[3]  # to the last bit
            assert scores[1] == scores[4]
            assert predictions(requests[index], scores)[0] in (0, 1)


def test_an_exception_after_a_batch_ends_the_work(ours):
    def stop(_done: int) -> None:
        raise InterruptedError

    ours.train()
    with pytest.raises(InterruptedError):
        score_requests(ours, _requests(5, 90, 40), CPU, after_batch=stop)
    assert ours.training


def test_batches_keep_to_the_budget_and_lose_nothing():
    requests = _requests(200, 90, 60, seed=5)
    batches = token_batches(requests, 48, 1000)
    assert sorted(index for batch in batches for index in batch) == list(range(200))
    rows = [[row for index in batch for row in rows_of(requests[index], 48)] for batch in batches]
    assert all(len(some) * max(map(row_width, some)) <= 1000 for some in rows)
    widths = [max(row_width(row) for row in rows_of(requests[index], 48)) for batch in batches for index in batch]
    assert widths == sorted(widths, reverse=True)
    assert len(batches) < 30


def test_continuations_share_a_row_unless_the_context_must_be_truncated():
    request = Request([1, 2, 3], [[4, 5, 6], [7]], [3, 1], 0)
    assert rows_of(request, 5) == [([1, 2, 3], [[4, 5, 6], [7]])]
    assert rows_of(request, 4) == [([2, 3], [[4, 5, 6]]), ([1, 2, 3], [[7]])]
    assert rows_of(request, 2) == [([4], [[5, 6]]), ([2, 3], [[7]])]  # a continuation longer than the block, too
    assert [row_width(row) for row in rows_of(request, 5)] == [5]


# --- precision and modes ----------------------------------------------------------------------------------------------


def test_logits_are_float32_under_autocast():
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=5000))
    kinds = []
    logits = model.logits
    model.logits = lambda states: kinds.append((states.dtype, (out := logits(states)).dtype)) or out
    context = autocast(CPU, "bf16")
    # Two endings whose bf16 log-likelihoods tie: with 5,000 almost equal logits, bf16 knows a few dozen values.
    requests = [Request([1, 2, 3], [[token] for token in range(1000)], [1] * 1000, 0)]
    values = [score.loglik for score in score_requests(model, requests, CPU, context)[0]]
    x = torch.randint(5000, (2, 32))
    nll, _ = sum_loss(model, [(x, x)], CPU, context)
    assert set(kinds) == {(torch.float32, torch.float32)}
    assert len(set(values)) > 950
    assert nll == pytest.approx(sum_loss(model, [(x, x)], CPU)[0], rel=1e-3)


def test_dropout_is_off_and_the_mode_is_restored():
    model = GPT(ModelConfig(n_layer=1, n_head=2, n_embd=32, block_size=32, vocab_size=90, dropout=0.5)).train()
    requests = _requests(3, 90, 20)
    assert score_requests(model, requests, CPU) == score_requests(model, requests, CPU)
    assert model.training


# --- accuracies -------------------------------------------------------------------------------------------------------


def test_predictions_are_by_sum_and_by_length():
    request = Request([1], [[2], [3, 4], [5], [6]], [1, 10, 1, 2], 1)
    scores = [Score(-5.0, False), Score(-9.0, False), Score(-4.0, False), Score(-7.0, False)]
    assert predictions(request, scores) == (2, 1)
    assert count_correct([request, request], {0: scores}) == [0, 1, 1]
    assert count_correct([request] * 3, {0: scores, 2: scores[::-1]}) == [1, 2, 2]
    assert standard_error(1.0, 1) == 0  # of more tasks: tests/eval/test_hellaswag.py
