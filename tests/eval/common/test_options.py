"""Opening a model, the shared options, and how scores are printed and written."""

import argparse
import json

import pytest
import torch

from eval.common.open_model import evaluating, open_model
from eval.common.options import add_dataset_options, add_model_options, report_scores
from prepare.common.cli import ArgumentError, Parser, UserError
from tests.helpers.random_gpt2 import save_random_gpt2
from train.weights.load_model import LoadedModel


def test_options_open_a_model_in_evaluation_mode_and_exact_float32(tmp_path):
    save_random_gpt2(tmp_path / "random", vocab_size=50257, n_embd=8, n_positions=8)
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    args = parser.parse_args(["--model", str(tmp_path / "random"), "--device", "cpu"])
    torch.set_float32_matmul_precision("high")
    with open_model(args.model, args.device) as (loaded, world):
        assert torch.get_float32_matmul_precision() == "highest"
        assert (loaded.name, world.size, world.device.type) == ("random", 1, "cpu")
        assert not loaded.model.training
        with evaluating(loaded.model.train()):
            assert not loaded.model.training
        assert loaded.model.training
    assert parser.parse_args([]).model is None


def test_a_missing_gpu_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="GPU"), open_model(str(tmp_path), "cuda"):
        pass


def test_scores_are_printed_as_aligned_lines_and_written_as_json(tmp_path, capsys):
    parser = Parser("Ask.", "python eval/ask.py")
    add_dataset_options(parser, tmp_path / "set.jsonl", "questions")
    args = parser.parse_args(["--output", str(tmp_path / "scores.json"), "--limit", "3"])
    assert (args.data, args.limit) == (tmp_path / "set.jsonl", 3)
    for output in (tmp_path, tmp_path / "absent" / "x.json"):
        with pytest.raises(ArgumentError, match="--output"):
            parser.parse_args(["--output", str(output)])
    loaded = LoadedModel(None, None, "random", 7)
    report_scores(loaded, {"questions": "3", "truncated": "", "acc": "0.5"}, args.output, args.data, acc=0.5)
    lines = ["model:     random", "questions: 3", "acc:       0.5", f"written:   {args.output}"]
    assert capsys.readouterr().out.splitlines() == lines
    assert json.loads(args.output.read_text()) == {"model": "random", "step": 7, "data": str(args.data), "acc": 0.5}
