"""lambada.py against transformers on real passages."""

import json
import math
import re
import statistics

import pytest
import torch

from eval import lambada
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.commands import run_command
from tests.helpers.random_gpt2 import log_likelihood, save_random_gpt2


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "random"
    return folder, save_random_gpt2(folder, n_layer=1, n_positions=256, n_embd=32)


def _printed(text: str) -> dict[str, str]:
    return dict(re.findall(r"^(\w+): +(.*)$", text, re.MULTILINE))


def test_perplexity_and_accuracy_of_real_passages_are_transformers(real_data, model):
    folder, theirs = model
    data = real_data / "lambada_test.jsonl"
    result = run_command("python", "eval/lambada.py", "--model", folder, "--data", data, "--limit", 40)
    assert result.returncode == 0, result.stderr
    tokenizer, found = GPT2Tokenizer(), []
    for line in data.read_text().splitlines()[:40]:
        words = json.loads(line)["text"].split(" ")
        found.append(log_likelihood(theirs, tokenizer.encode(" ".join(words[:-1])), tokenizer.encode(" " + words[-1])))
    logliks = [loglik for loglik, _ in found]
    perplexity = math.exp(-statistics.fmean(logliks))
    printed = _printed(result.stdout)
    value, error = map(float, printed["perplexity"].split(" +- "))
    assert value == pytest.approx(perplexity, rel=1e-4)
    assert error == pytest.approx(perplexity * statistics.stdev(logliks) / math.sqrt(40), rel=1e-3)
    assert printed["accuracy"].startswith(f"{sum(greedy for _, greedy in found) / 40:.4f} +- ")
    assert printed["passages"].startswith("40 of ")


def test_words_that_the_model_generates_itself_are_correct(model, tmp_path, capsys):
    """Half of the passages end in the model's own first choice, half in another word."""
    folder, theirs = model
    tokenizer, rows = GPT2Tokenizer(), []
    starts = iter(f"Number {i} is" for i in range(4000))
    while len(rows) < 4:
        text = next(starts)
        token = theirs(torch.tensor([tokenizer.encode(text)])).logits[0, -1].argmax()
        word = tokenizer.decode([int(token)])
        if re.fullmatch(r" [A-Za-z]+", word):
            rows += [{"text": text + word}, {"text": text + " nineteen"}]
    data = tmp_path / "passages.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    lambada.main([f"--model={folder}", f"--data={data}", "--device=cpu"])
    assert _printed(capsys.readouterr().out)["accuracy"].startswith("0.5000 +- ")
