"""The window rule, the cache, the distribution against transformers' processors, and streams of text."""

import itertools
from types import SimpleNamespace

import pytest
import torch
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from eval.generation.sampling import (
    Generation,
    TextStream,
    choose_tokens,
    generate,
    greedy_answer,
    next_logits,
    penalize_repetition,
    restrict_logits,
    stream_texts,
    window_start,
)
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.random_gpt2 import save_random_gpt2
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.model.transformer import Transformer
from train.weights.huggingface import load_hf


def _model(block_size: int = 32, vocab_size: int = 90, architecture: str = "gpt2") -> Transformer:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": block_size, "vocab_size": vocab_size}
    model = build_model(ModelConfig(**shape, architecture=architecture)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # clear preferences, so that rounding decides nothing
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def _text(model: Transformer, prompt: torch.Tensor, n: int, **options) -> torch.Tensor:
    return torch.stack(list(generate(model, prompt, n, **options)), dim=1)  # (B, n)


# --- which tokens the model sees --------------------------------------------------------------------------------------


@pytest.mark.parametrize("block_size", [1, 2, 3, 32, 1024])
def test_window_holds_the_latest_tokens_and_never_too_many(block_size):
    starts = [window_start(n, block_size) for n in range(1, 5 * block_size + 3)]
    assert starts[:block_size] == [0] * block_size
    for n, (start, after) in enumerate(itertools.pairwise(starts), 1):
        assert 1 <= n - start <= block_size
        assert after == start or n + 1 - after == block_size // 2 + 1  # it jumps only when full, and leaves half


@pytest.mark.parametrize(
    ("prompt_tokens", "block_size", "architecture"),
    [(1, 32, "gpt2"), (20, 32, "modern"), (33, 32, "gpt2"), (100, 32, "modern"), (3, 1, "gpt2")],
)
def test_cached_text_is_that_of_the_whole_window_computed_for_each_token(prompt_tokens, block_size, architecture):
    model = _model(block_size, architecture=architecture)
    prompt = torch.randint(90, (2, prompt_tokens), generator=torch.Generator().manual_seed(3))
    tokens = torch.cat([prompt, _text(model, prompt, 150, temperature=0)], 1)
    assert tokens.shape == (2, prompt_tokens + 150)
    for n in range(prompt_tokens, prompt_tokens + 150):
        window = tokens[:, window_start(n, block_size) : n]
        assert torch.equal(model(window)[:, -1].argmax(-1), tokens[:, n])


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_generations_that_join_a_running_batch_write_what_each_writes_alone(architecture):
    """Other lengths, settings and seeds, several rows, beyond the block size: the same tokens, greedy and sampled."""
    model, draw = _model(32, architecture=architecture), torch.Generator().manual_seed(3)
    settings = [{"temperature": 0}, {"temperature": 0.7, "top_k": 20}, {"top_p": 0.9, "repetition_penalty": 1.2}, {}]
    asked = []
    for number, (rows, length) in enumerate([(1, 1), (3, 20), (1, 50), (2, 31), (1, 32), (1, 7)]):
        options = {**settings[number % 4], "vocab_size": 85, "stop": 5 if number == 1 else None}
        asked.append((torch.randint(85, (1, length), generator=draw).repeat(rows, 1), 60 - 5 * number, number, options))
    alone = [_text(model, p, n, generator=torch.Generator().manual_seed(seed), **o) for p, n, seed, o in asked]

    running, written = {}, [[] for _ in asked]
    for step in range(100):
        if step % 4 == 0 and step // 4 < len(asked):
            prompt, n, seed, options = asked[step // 4]
            seeded = torch.Generator().manual_seed(seed)
            running[step // 4] = Generation(model, prompt, n, generator=seeded, **options)
        for number, logits in zip(running, next_logits(model, list(running.values())), strict=True):
            written[number].append(running[number].append_choice(logits))
        running = {number: each for number, each in running.items() if not each.finished}
        if not running:
            break
    assert not running
    for expected, columns in zip(alone, written, strict=True):
        assert torch.equal(torch.stack(columns, 1), expected)


def test_an_answer_ends_before_the_end_of_text():
    model = _model()
    tokenizer = SimpleNamespace(eot=None, vocab_size=90, decode=list)
    unstopped = greedy_answer(model, tokenizer, [1, 2, 3], 12)
    assert len(unstopped) == 12
    tokenizer.eot = unstopped[5]
    assert greedy_answer(model, tokenizer, [1, 2, 3], 12) == unstopped[: unstopped.index(tokenizer.eot)]


# --- which token is chosen --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.3, 2.5])
def test_distribution_is_transformers(temperature):
    logits = 3 * torch.randn(6, 120, generator=torch.Generator().manual_seed(1))
    for top_k, top_p, min_p in itertools.product((None, 1, 7, 1000), (None, 0.05, 0.6, 0.999), (None, 1e-3, 0.2, 1.0)):
        expected = TemperatureLogitsWarper(temperature)(None, logits)
        if top_k:
            expected = TopKLogitsWarper(top_k)(None, expected)
        if top_p:
            expected = TopPLogitsWarper(top_p)(None, expected)
        if min_p:
            expected = MinPLogitsWarper(min_p)(None, expected)
        torch.testing.assert_close(restrict_logits(logits / temperature, top_k, top_p, min_p), expected)


@pytest.mark.parametrize("penalty", [0.7, 1.3])
def test_repetition_is_penalized_as_in_transformers(penalty):
    draw = torch.Generator().manual_seed(1)
    logits, tokens = 3 * torch.randn(6, 120, generator=draw), torch.randint(120, (6, 40), generator=draw)
    expected = RepetitionPenaltyLogitsProcessor(penalty)(tokens, logits)
    torch.testing.assert_close(penalize_repetition(logits, tokens, penalty), expected, atol=0, rtol=0)


EVERY = {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "min_p": 0.05, "repetition_penalty": 1.3}


@pytest.mark.parametrize("settings", [EVERY, {"temperature": 2.5}])
def test_each_step_draws_from_the_distribution_of_transformers_generate(tmp_path, monkeypatch, settings):
    """Its own generate chooses the tokens, from its own processors in its own order; ours is led along them, and must
    have the same probabilities at every step."""
    theirs = save_random_gpt2(tmp_path, vocab_size=300, n_positions=64)
    prompts, defaults = torch.tensor([[5, 250, 17, 250], [9, 8, 7, 9]]), {"top_k": 0, "pad_token_id": 0}
    torch.manual_seed(8)
    expected = theirs.generate(
        prompts,
        max_new_tokens=25,
        do_sample=True,
        eos_token_id=None,
        return_dict_in_generate=True,
        output_scores=True,
        **defaults | settings,
    )
    wanted, drawn = iter(expected.sequences[:, 4:].T), []  # each (B,)
    monkeypatch.setattr(torch, "multinomial", lambda p, *_, **__: drawn.append(p) or next(wanted)[:, None])
    assert torch.equal(_text(load_hf(tmp_path), prompts, 25, **settings), expected.sequences[:, 4:])
    assert len(drawn) == len(expected.scores) == 25
    for found, scores in zip(drawn, expected.scores, strict=True):
        torch.testing.assert_close(found, scores.softmax(-1), atol=1e-5, rtol=1e-3)
        assert torch.equal(found > 0, scores > float("-inf"))


@pytest.mark.parametrize(
    "options", [{"temperature": 0}, {"temperature": 1e-30}, {"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1}]
)
def test_the_coldest_settings_take_the_most_likely_token(options):
    logits = torch.randn(50, 80, generator=torch.Generator().manual_seed(2))
    assert torch.equal(choose_tokens(logits, **options), logits.argmax(-1))


def test_padding_ids_are_never_sampled():
    model = _model(vocab_size=96)
    with torch.no_grad():
        model.wte.weight[90:] *= 30  # what a padded vocabulary must not do
    prompt = torch.tensor([[1, 2, 3]] * 8)
    assert (_text(model, prompt, 50) >= 90).any()
    assert (_text(model, prompt, 50, vocab_size=90) < 90).all()
    assert (_text(model, prompt, 50, vocab_size=90, temperature=0) < 90).all()


def test_a_row_that_has_stopped_repeats_the_stop_token_and_all_stopped_ends_generation():
    model, prompt = _model(), torch.tensor([[1, 2]] * 4)
    rows = _text(model, prompt, 3000, stop=7, generator=torch.Generator().manual_seed(1), temperature=3.0).tolist()
    lengths = [row.index(7) + 1 for row in rows]
    assert all(set(row[length - 1 :]) == {7} for row, length in zip(rows, lengths, strict=True))
    assert max(lengths) == len(rows[0]) < 3000
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


def test_an_incomplete_character_is_replaced():
    tokenizer = GPT2Tokenizer()
    half, letters = tokenizer.encode("🙂")[:1], tokenizer.encode(" ok")
    assert "".join(_pieces(tokenizer, half + letters)).endswith(" ok")
    assert "".join(_pieces(tokenizer, letters + half)) == " ok\ufffd"


def test_streams_are_lazy_and_separate_and_end_when_all_rows_have():
    tokenizer = CharTokenizer("abX")
    taken = itertools.count()
    columns = (torch.tensor([0 if n != 2 else 2, 0 if n != 4 else 2]) for n in taken)
    stream = stream_texts(columns, [TextStream(tokenizer, ["b"]), TextStream(tokenizer, ["b"])])
    assert next(stream) == (0, "X")
    assert next(taken) == 1  # no column was computed ahead
    assert list(stream) == [(1, "X")] * 3


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
def test_no_part_of_a_stop_string_is_shown(stops, expected):
    tokenizer = CharTokenizer("one\ntwo END three")  # a character a token: stop strings come in pieces
    ids = tokenizer.encode("one\ntwo END three")
    assert "".join(_pieces(tokenizer, ids, stops)) == expected


def test_of_two_stop_strings_in_one_token_the_earlier_ends_the_text():
    tokenizer = GPT2Tokenizer()
    (token,) = tokenizer.encode("hello")
    assert _pieces(tokenizer, [token], ["lo", "e"]) == ["h"]
