"""val_loss.py against transformers, and the unigram entropy of the same targets; its messages."""

import math
import re

import numpy as np
import pytest
import torch

from eval import val_loss
from eval.scoring.evaluation import check_same_tokenizer
from prepare.common.cli import UserError
from prepare.tokens.manifest import build_manifest, write_manifest
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.random_gpt2 import save_random_gpt2
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT

V, T = 50257, 24


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "random"
    return folder, save_random_gpt2(folder, n_layer=1, n_positions=T, n_embd=16, n_head=2)


def _shards(folder, sizes=(1000, 700), top=V, end=None):
    """Shards of skewed random tokens below `top`, the last with an end of text; returns their glob and tokens."""
    folder.mkdir()
    draw = np.random.default_rng(3)
    tokens = [(top * draw.random(size) ** 6).astype(np.uint16) for size in sizes]
    if end:
        tokens[-1][end - 30] = 50256
    for number, array in enumerate(tokens):
        write_shard(folder / f"x_val_{number:06d}.bin", array)
    return f"{folder}/x_val_*.bin", tokens


def _printed(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+): +(.*)$", text, re.MULTILINE))


@torch.no_grad()
def _expected(theirs, tokens, limit):
    """Loss and targets of the first `limit` tokens' worth of windows, one window at a time."""
    windows = [a[i : i + T + 1].astype(np.int64) for a in tokens for i in range(0, len(a) - T, T)][: limit // T]
    losses = []
    for window in torch.from_numpy(np.stack(windows)):
        logits = theirs(window[None, :-1]).logits[0]
        losses.append(torch.nn.functional.cross_entropy(logits, window[1:]).item())
    return np.mean(losses), np.concatenate([window[1:] for window in windows])


def _numbers(printed):
    loss, perplexity = re.match(r"([0-9.]+) nats per token \(perplexity ([0-9.,]+)\)", printed["loss"]).groups()
    return float(loss), float(perplexity.replace(",", "")), float(printed["unigram"].split()[0])


@pytest.mark.parametrize(("limit", "ends"), [(600, False), (10**6, True)])
def test_loss_is_transformers_and_entropy_that_of_the_targets(model, tmp_path, capsys, limit, ends):
    folder, theirs = model
    glob, tokens = _shards(tmp_path / "data", end=690)
    val_loss.main([f"--model={folder}", f"--data={glob}", f"--tokens={limit}", "--device=cpu"])
    printed = _printed(capsys.readouterr().out)
    expected, targets = _expected(theirs, tokens, limit)
    loss, perplexity, unigram = _numbers(printed)
    assert loss == pytest.approx(expected, abs=1e-4)
    assert perplexity == pytest.approx(math.exp(expected), rel=1e-3)
    assert printed["data"].startswith(f"{len(targets):,} tokens of ")
    p = np.unique(targets, return_counts=True)[1] / len(targets)
    assert unigram == pytest.approx(-(p * np.log(p)).sum(), abs=1e-4)
    text = GPT2Tokenizer().decode_bytes(targets[targets != 50256])  # an end-of-text token has no text
    assert (targets == 50256).any() == ends
    bits = expected * len(targets) / math.log(2) / len(text)
    assert float(printed["bits"].split()[0]) == pytest.approx(bits, abs=1e-3)


@pytest.mark.slow
def test_a_run_on_data_without_a_manifest_is_evaluated_without_bits(tmp_path, capsys):
    torch.manual_seed(0)
    raw = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=16, block_size=8, vocab_size=97)).eval()
    save_checkpoint(tmp_path / "run", 1, raw)
    pattern, (tokens,) = _shards(tmp_path / "data", sizes=(801,), top=97)
    val_loss.main(["--model", str(tmp_path / "run"), "--data", pattern])
    printed = _printed(capsys.readouterr().out)
    x = torch.from_numpy(tokens.astype(np.int64))
    with torch.no_grad():
        expected = raw(x[:-1].view(-1, 8), x[1:].view(-1, 8)).item()
    assert _numbers(printed)[0] == pytest.approx(expected, abs=1e-4)
    assert "bits" not in printed


def test_shards_of_another_vocabulary_are_refused(model, tmp_path, capsys):
    glob, _ = _shards(tmp_path / "data", top=5)
    for tokenizer, fits in ((CharTokenizer("abcde"), False), (GPT2Tokenizer(), True)):
        write_manifest(tmp_path / "data", build_manifest("x", None, [], tokenizer.describe(), {}, []))
        arguments = [f"--model={model[0]}", f"--data={glob}", "--device=cpu"]
        if fits:
            val_loss.main(arguments)
            assert "unigram:" in capsys.readouterr().out
        else:
            with pytest.raises(UserError, match="made with the char vocabulary of 5 ids"):
                val_loss.main(arguments)
    with pytest.raises(UserError, match="gpt2 vocabulary of 50257 ids, the model's is char with 3"):
        check_same_tokenizer([tmp_path / "data" / "x_val_000000.bin"], CharTokenizer("abc"))
