"""What is said of a model whose logits are no numbers, by every measurement; the rest is tested by the scripts'."""

import json
import math
import re

import numpy as np
import pytest
import torch

from eval import hellaswag, lambada, report, val_loss, wikitext
from eval.scoring.evaluate import perplexity_of
from prepare.common.cli import UserError
from prepare.tokens.shards import write_shard
from prepare.tokens.tokenizer import GPT2Tokenizer
from tests.helpers.tiny import make_run, save_checkpoint
from train.weights.load_model import load_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    task = {"ind": 1, "activity_label": "Sewing", "ctx": "Someone sews. the thread", "label": 0}
    task |= {"endings": ["is red.", "breaks in two.", "sings", "was long, at least."]}
    (folder / "hellaswag_val.jsonl").write_text((json.dumps(task) + "\n") * 3)
    (folder / "lambada_test.jsonl").write_text((json.dumps({"text": "The needle and the thread"}) + "\n") * 2)
    (folder / "wikitext2_test.tokens").write_text(" \n = Words = \n \n Some words , and more . \n")
    write_shard(folder / "x_val_000000.bin", np.arange(200, dtype=np.uint16))
    return folder


@pytest.fixture(scope="module", params=["a weight that is no number", "logits beyond measure"])
def diverged(request, tmp_path_factory):
    run = make_run(tmp_path_factory.mktemp("run") / "run", GPT2Tokenizer().describe())
    model = load_model(str(run)).model
    with torch.no_grad():
        if "number" in request.param:
            model.h[0].mlp.c_fc.bias[3] = math.nan
        else:
            model.ln_f.weight.mul_(3e4)
    save_checkpoint(run, 4, model, tokenizer=GPT2Tokenizer().describe())
    return run


FILES = {lambada: "lambada_test.jsonl", wikitext: "wikitext2_test.tokens", val_loss: "x_val_000000.bin"}


@pytest.mark.parametrize("script", FILES, ids=lambda script: script.__name__)
def test_a_diverged_model_has_no_perplexity(diverged, data, script):
    with pytest.raises(UserError, match="diverged, or its weights are damaged"):
        script.main([f"--model={diverged}", f"--data={data / FILES[script]}", "--device=cpu"])


def test_a_diverged_model_does_not_look_like_one_that_guesses(diverged, data, tmp_path, capsys):
    options = [f"--model={diverged}", "--device=cpu"]
    if load_model(str(diverged)).model.h[0].mlp.c_fc.bias.isnan().any():
        with pytest.raises(UserError, match="it has diverged, or its weights are damaged"):
            hellaswag.main([*options, f"--data={data / 'hellaswag_val.jsonl'}"])
        with pytest.raises(UserError, match="nothing to measure"):
            report.main([*options, f"--data={data}", f"--output={tmp_path / 'report'}"])
        assert capsys.readouterr().out.count("diverged, or its weights are damaged") == 4
    else:  # choices among finite numbers are choices
        report.main([*options, f"--data={data}", f"--output={tmp_path / 'report'}"])
        rows = json.loads((tmp_path / "report/report.json").read_text())["rows"]
        assert {row["measure"].split()[0] for row in rows} == {"hellaswag"}


def test_perplexity_of():
    assert perplexity_of(2.0) == math.exp(2)
    for loss in (math.nan, math.inf, 1e6):
        with pytest.raises(UserError, match=re.escape(f"a loss of {loss:.6g} nats")):
            perplexity_of(loss)
