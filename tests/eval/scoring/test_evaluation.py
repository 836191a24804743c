"""Models whose logits are not finite, and sliding windows; the rest is tested by the commands' tests."""

import json
import math

import numpy as np
import pytest
import torch

from eval import hellaswag, lambada, report, val_loss, wikitext
from eval.scoring.evaluation import sliding_windows
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


@pytest.fixture(scope="module")
def diverged(tmp_path_factory):
    """A run whose weights hold a NaN."""
    run = make_run(tmp_path_factory.mktemp("run") / "run", GPT2Tokenizer().describe())
    model = load_model(str(run)).model
    with torch.no_grad():
        model.h[0].mlp.c_fc.bias[3] = math.nan
    save_checkpoint(run, 4, model, tokenizer=GPT2Tokenizer().describe())
    return run


FILES = {
    hellaswag: "hellaswag_val.jsonl",
    lambada: "lambada_test.jsonl",
    wikitext: "wikitext2_test.tokens",
    val_loss: "x_val_000000.bin",
}


@pytest.mark.parametrize("script", FILES, ids=lambda script: script.__name__)
def test_a_diverged_model_has_no_score(diverged, data, script):
    with pytest.raises(UserError, match="diverged, or its weights are corrupt"):
        script.main([f"--model={diverged}", f"--data={data / FILES[script]}", "--device=cpu"])


def test_a_report_of_a_diverged_model_skips_every_dataset(diverged, data, tmp_path, capsys):
    with pytest.raises(UserError, match="nothing to evaluate"):
        report.main([f"--model={diverged}", "--device=cpu", f"--data={data}", f"--output={tmp_path / 'report'}"])
    assert capsys.readouterr().out.count("diverged, or its weights are corrupt") == 4


@pytest.mark.parametrize("n", [1, 7, 16, 17, 18, 40])
@pytest.mark.parametrize("stride", [1, 6, 16])
def test_sliding_windows_predict_each_token_once_from_the_tokens_before_it(n, stride):
    tokens = list(range(100, 101 + n))
    seen = []
    for window in sliding_windows(tokens, 16, stride):
        [continuation] = window.continuations
        read = window.context + continuation
        assert read == list(range(read[0], read[0] + len(read)))
        assert len(read) - 1 <= 16  # the last token is not an input
        assert len(window.context) > min(16 - stride, len(seen))  # as much context as promised
        seen += continuation
    assert seen == tokens[1:]
