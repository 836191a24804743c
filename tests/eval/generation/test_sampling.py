"""The window rule, the cache, the distribution against transformers' processors, and streams of text."""

import itertools

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eval.generation.sampling import TextStream, choose, generate, penalize, restrict, stream_texts, window_start
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.random_gpt2 import save_random_gpt2
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.weights.huggingface import load_hf


def _model(block_size: int = 32, vocab_size: int = 90, seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=block_size, vocab_size=vocab_size)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # clear preferences, so that rounding decides nothing
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _text(model: GPT, prompt: torch.Tensor, n: int, **options) -> torch.Tensor:
    return torch.stack(list(generate(model, prompt, n, **options)), dim=1)  # (B, n)


# --- which tokens the model sees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 3, 32, 1024])
def test_window_holds_the_latest_tokens_and_never_too_many(block_size):
    starts = [window_start(n, block_size) for n in range(1, 5 * block_size + 3)]
    assert starts[:block_size] == [0] * block_size
    for n, (start, after) in enumerate(itertools.pairwise(starts), 1):
        assert 1 <= n - start <= block_size
        assert after == start or n + 1 - after == block_size // 2 + 1  # it moves only when full, and leaves half


@pytest.mark.parametrize("prompt_tokens", [1, 20, 32, 33, 100])
def test_greedy_text_is_the_same_with_and_without_the_cache_beyond_the_block_size(prompt_tokens):
    model = _model()
    prompt = torch.randint(90, (2, prompt_tokens), generator=torch.Generator().manual_seed(3))
    cached = _text(model, prompt, 200, temperature=0)
    assert cached.shape == (2, 200)
    assert torch.equal(cached, _text(model, prompt, 200, temperature=0, use_cache=False))
    # and both are what the rule says
    tokens = torch.cat([prompt, cached], 1)
    for n in range(prompt_tokens, prompt_tokens + 200, 7):
        seen = tokens[:, window_start(n, 32) : n]
        assert torch.equal(model(seen)[:, -1].argmax(-1), tokens[:, n])


def test_greedy_text_is_transformers(tmp_path):
    theirs = save_random_gpt2(tmp_path, vocab_size=300, n_positions=64)
    prompt = torch.tensor([[5, 250, 17]])
    expected = theirs.generate(prompt, max_new_tokens=60, do_sample=False, pad_token_id=0, eos_token_id=None)
    assert torch.equal(_text(load_hf(tmp_path), prompt, 60, temperature=0), expected[:, 3:])


@pytest.mark.parametrize("use_cache", [True, False])
def test_prompts_of_different_lengths_go_on_as_each_does_alone(use_cache):
    """From 1 to 70 tokens with a block of 32: the windows of the rows move at different times."""
    model, draw = _model(), torch.Generator().manual_seed(4)
    prompts = [torch.randint(90, (n,), generator=draw).tolist() for n in (5, 1, 31, 70, 32)]
    together = _text(model, prompts, 80, temperature=0, use_cache=use_cache, repetition_penalty=1.1)
    for prompt, row in zip(prompts, together, strict=True):
        assert torch.equal(row, _text(model, [prompt], 80, temperature=0, repetition_penalty=1.1)[0])


def test_a_block_of_one_token_works():
    assert _text(_model(block_size=1), torch.tensor([[3]]), 9, temperature=0).shape == (1, 9)


# --- what is chosen ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("top_k", [None, 1, 7, 1000])
@pytest.mark.parametrize("top_p", [None, 0.05, 0.6, 0.999])
@pytest.mark.parametrize("min_p", [None, 0.02, 0.5])
@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_distribution_is_transformers(top_k, top_p, min_p, temperature):
    logits = 3 * torch.randn(6, 120, generator=torch.Generator().manual_seed(1))
    expected = TemperatureLogitsWarper(temperature)(None, logits)
    if top_k:
        expected = TopKLogitsWarper(top_k)(None, expected)
    if top_p:
        expected = TopPLogitsWarper(top_p)(None, expected)
    if min_p:
        expected = MinPLogitsWarper(min_p)(None, expected)
    torch.testing.assert_close(restrict(logits / temperature, top_k, top_p, min_p), expected)


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.03, "repetition_penalty": 1.3},
        {"temperature": 1.7, "top_p": 0.5, "repetition_penalty": 0.8},
        {"temperature": 0.6, "top_k": 3, "min_p": 0.3},
        {"temperature": 1.0, "min_p": 0.1, "repetition_penalty": 2.5},
        {"temperature": 2.5},
    ],
)
def test_each_step_draws_from_the_distribution_of_transformers_generate(tmp_path, monkeypatch, settings):
    """Its own generate chooses the tokens, from its own processors in its own order; ours is led along them, and must
    have the same probabilities at every step."""
    theirs = save_random_gpt2(tmp_path, vocab_size=300, n_positions=64)
    prompts, defaults = torch.tensor([[5, 250, 17, 250], [9, 8, 7, 9]]), {"top_k": 0, "pad_token_id": 0}
    torch.manual_seed(8)
    said = theirs.generate(
        prompts,
        max_new_tokens=25,
        do_sample=True,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **defaults | settings,
    )
    wanted, drawn = iter(said.sequences[:, 4:].T), []  # each (B,)
    monkeypatch.setattr(torch, "multinomial", lambda p, *_, **__: drawn.append(p) or next(wanted)[:, None])
    assert torch.equal(_text(load_hf(tmp_path), prompts, 25, **settings), said.sequences[:, 4:])
    assert len(drawn) == len(said.scores) == 25
    for found, scores in zip(drawn, said.scores, strict=True):
        torch.testing.assert_close(found, scores.softmax(-1), atol=1e-5, rtol=1e-3)
        assert torch.equal(found > 0, scores > float("-inf"))


def test_the_penalty_is_transformers():
    logits = 3 * torch.randn(4, 50, generator=torch.Generator().manual_seed(3))
    ids = torch.randint(50, (4, 9), generator=torch.Generator().manual_seed(5))
    used = torch.zeros(4, 50, dtype=torch.bool).scatter(1, ids, True)
    torch.testing.assert_close(penalize(logits, used, 1.7), RepetitionPenaltyLogitsProcessor(1.7)(ids, logits.clone()))


def test_choices_follow_the_distribution():
    logits = torch.tensor([[0.1, 2.0, 1.0, -1.0, 0.5]])
    generator = torch.Generator().manual_seed(0)
    drawn = choose(logits.expand(40_000, -1), 0.7, top_k=3, generator=generator)
    frequencies = torch.bincount(drawn, minlength=5) / len(drawn)
    expected = torch.softmax(restrict(logits / 0.7, 3), -1)[0]
    torch.testing.assert_close(frequencies, expected, atol=0.01, rtol=0)
    assert frequencies[[0, 3]].sum() == 0


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0},
        {"temperature": 1e-30},
        {"top_k": 1},
        {"top_p": 1e-6},
        {"top_p": 1e-50},  # 0 in float32
        {"min_p": 1.0},
    ],
)
def test_the_coldest_settings_take_the_likeliest(options):
    logits = torch.randn(50, 80, generator=torch.Generator().manual_seed(2))
    assert torch.equal(choose(logits, **options), logits.argmax(-1))


def test_a_seed_fixes_the_samples_and_rows_differ():
    model, prompt = _model(), torch.tensor([[1, 2]] * 3)
    first, again, other = (
        _text(model, prompt, 40, generator=torch.Generator().manual_seed(seed)) for seed in (5, 5, 6)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert len({tuple(row.tolist()) for row in first}) == 3


def test_padding_ids_never_come():
    model = _model(vocab_size=96)
    with torch.no_grad():
        model.wte.weight[90:] *= 30  # what a padded vocabulary must not do
    prompt = torch.tensor([[1, 2, 3]] * 8)
    assert (_text(model, prompt, 50) >= 90).any()
    assert (_text(model, prompt, 50, vocab_size=90) < 90).all()
    assert (_text(model, prompt, 50, vocab_size=90, temperature=0) < 90).all()


def test_rows_that_have_stopped_stay_so_and_all_stopped_ends_it():
    model, prompt = _model(), torch.tensor([[1, 2]] * 4)
    options = {"generator": torch.Generator().manual_seed(1), "temperature": 3.0}
    rows = _text(model, prompt, 3000, stop=7, **options)
    assert rows.size(1) < 3000
    lengths = []
    for row in rows.tolist():
        end = row.index(7)
        assert set(row[end:]) == {7}
        lengths.append(end + 1)
    assert max(lengths) == rows.size(1)
    assert len(set(lengths)) > 1


def test_training_mode_and_gradients_are_left_alone():
    model = _model().train()
    for token in generate(model, torch.tensor([[1]]), 3):
        assert torch.is_grad_enabled()
        assert not token.requires_grad
    assert model.training


# --- text -------------------------------------------------------------------------------------------------------------


def _pieces(tokenizer, ids, stops=()):
    return [text for _, text in stream_texts((torch.tensor([token]) for token in ids), [TextStream(tokenizer, stops)])]


def test_stream_never_splits_a_character():
    tokenizer, text = GPT2Tokenizer(), "naïve 🙂👩‍🚀 日本語 ends"
    ids = tokenizer.encode(text)
    assert any("\ufffd" in tokenizer.decode([token]) for token in ids)  # some tokens are parts of characters
    pieces = _pieces(tokenizer, ids)
    assert "".join(pieces) == text
    assert len(pieces) > 5
    assert not any("\ufffd" in piece for piece in pieces)


def test_stream_shows_what_never_became_a_character_and_goes_on():
    tokenizer = GPT2Tokenizer()
    half, letters = tokenizer.encode("🙂")[:1], tokenizer.encode(" ok")
    assert "".join(_pieces(tokenizer, half + letters)).endswith(" ok")
    assert "".join(_pieces(tokenizer, letters + half)) == " ok\ufffd"


def test_streams_are_lazy_apart_and_know_characters():
    tokenizer = CharTokenizer("abé\n")
    ids = iter(tokenizer.encode("éa\nb"))
    columns = (torch.tensor([token, token]) for token in ids)
    stream = stream_texts(columns, [TextStream(tokenizer), TextStream(tokenizer, ["a"])])
    assert [next(stream), next(stream)] == [(0, "é"), (1, "é")]
    assert len(list(ids)) == 3


@pytest.mark.parametrize(
    ("stops", "expected"),
    [
        ([], "one\ntwo END three"),
        (["END"], "one\ntwo "),
        (["\n", "END"], "one"),
        (["three!", "wo EN?"], "one\ntwo END three"),
        (["three", "END th"], "one\ntwo "),
    ],
)
def test_nothing_of_a_stop_string_is_shown(stops, expected):
    tokenizer = CharTokenizer("one\ntwo END three")  # a character a token: stop strings come in pieces
    ids = tokenizer.encode("one\ntwo END three")
    assert "".join(_pieces(tokenizer, ids, stops)) == expected


def test_of_two_stop_strings_in_one_token_the_earlier_ends_the_text():
    tokenizer = GPT2Tokenizer()
    (token,) = tokenizer.encode("hello")
    assert _pieces(tokenizer, [token], ["lo", "e"]) == ["h"]


def test_generation_ends_when_every_row_has():
    tokenizer = CharTokenizer("abX")
    columns = (torch.tensor([0 if n != 2 else 2, 0 if n != 4 else 2]) for n in itertools.count())
    pieces = list(stream_texts(columns, [TextStream(tokenizer, ["b"]), TextStream(tokenizer, ["b"])]))
    assert pieces == [(0, "X"), (1, "X")] * 2 + [(1, "X")] * 2


def test_the_most_tokens_that_can_be_asked_for_take_no_memory_before_they_come():
    model, prompt = _model(), torch.tensor([[1, 2]])
    endless = generate(model, prompt, 2**63 - 1, temperature=0)
    assert torch.equal(torch.stack([next(endless) for _ in range(70)], 1), _text(model, prompt, 70, temperature=0))
