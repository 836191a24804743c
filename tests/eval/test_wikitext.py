"""wikitext.py against transformers, window by window; its messages."""

import json
import math
import re

import pytest
import torch

from eval import wikitext
from eval.scoring.detokenize import load_wikitext
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.random_gpt2 import save_random_gpt2

SIZE = 16


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "random"
    return folder, save_random_gpt2(folder, n_layer=1, n_positions=SIZE, n_embd=16, n_head=2)


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "wiki.test.tokens"
    sentences = (f" The {n} @-@ th café , of {n * 7} @,@ 000 ( or so ) . \n" for n in range(8))
    path.write_text(" \n = Words = \n \n" + "".join(sentences))
    return path


@torch.no_grad()
def _perplexity(theirs, data, stride):
    """As in transformers' guide to perplexity of fixed-length models, one window at a time."""
    text = load_wikitext(data)
    tokens = torch.tensor([50256, *GPT2Tokenizer().encode(text.detokenized)])
    nll, predicted = 0.0, 1
    for start in range(0, len(tokens), stride):
        window = tokens[start : start + SIZE + 1]
        logprobs = torch.log_softmax(theirs(window[None, :-1]).logits[0].double(), -1)
        losses = -logprobs.gather(1, window[1:, None])[:, 0]
        nll += losses[predicted - start - 1 :].sum().item()
        predicted = start + len(window)
        if predicted == len(tokens):
            return math.exp(nll / text.words), nll / math.log(2) / len(text.detokenized.encode())


def test_perplexity_is_transformers(model, data, tmp_path, capsys):
    folder, theirs = model
    output = tmp_path / "scores.json"
    wikitext.main([f"--model={folder}", f"--data={data}", f"--output={output}", "--device=cpu"])
    perplexity, bits = _perplexity(theirs, data, SIZE // 2)
    found = json.loads(output.read_text())
    assert found["perplexity"] == pytest.approx(perplexity, rel=1e-4)
    assert found["bits_per_byte"] == pytest.approx(bits, rel=1e-4)
    assert (found["stride"], found["window"]) == (SIZE // 2, SIZE)
    printed = dict(re.findall(r"^(\w+): +(.*)$", capsys.readouterr().out, re.MULTILINE))
    assert printed["perplexity"] == f"{found['perplexity']:,.2f} per word"
