"""What --model and --device open."""

import argparse
import json

import pytest
import torch

from eval.common.options import add_model_options, add_set_options, opened, report
from prepare.common.cli import ArgumentError, Parser, UserError
from tests.helpers.random_gpt2 import save_random_gpt2
from train.parallel import device as hardware
from train.weights.load_model import LoadedModel


def test_options_open_a_model_in_evaluation_mode_and_exact_float32(tmp_path):
    save_random_gpt2(tmp_path / "random", vocab_size=50257, n_embd=8, n_positions=8)
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    args = parser.parse_args(["--model", str(tmp_path / "random"), "--device", "cpu"])
    torch.set_float32_matmul_precision("high")
    with opened(args.model, args.device) as (loaded, world):
        assert torch.get_float32_matmul_precision() == "highest"
        assert (loaded.name, world.size, world.device.type) == ("random", 1, "cpu")
        assert not loaded.model.training
    assert parser.parse_args([]).model is None


def test_a_device_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="GPU"), opened(str(tmp_path), "cuda"):
        pass


def test_a_report_is_aligned_lines_and_json(tmp_path, capsys):
    parser = Parser("Ask.", "python eval/ask.py")
    add_set_options(parser, tmp_path / "set.jsonl", "questions")
    args = parser.parse_args(["--output", str(tmp_path / "scores.json"), "--limit", "3"])
    assert (args.data, args.limit) == (tmp_path / "set.jsonl", 3)
    with pytest.raises(ArgumentError, match="name a file"):
        parser.parse_args(["--output", str(tmp_path)])
    loaded = LoadedModel(None, None, "random", 7)
    report(loaded, {"questions": "3", "cut": "", "acc": "0.5"}, args.output, args.data, {"acc": 0.5})
    lines = ["model:     random", "questions: 3", "acc:       0.5", f"written:   {args.output}"]
    assert capsys.readouterr().out.splitlines() == lines
    written = json.loads(args.output.read_text())
    assert written == {"model": "random", "step": 7, "precision": "fp32", "data": str(args.data), "acc": 0.5}


def test_bf16_is_said_where_it_was_used(tmp_path, monkeypatch, capsys):
    save_random_gpt2(tmp_path / "random", vocab_size=50257, n_embd=64, n_positions=16)
    idx = torch.arange(16)[None]
    hidden = {}
    for asked, there in (("fp32", True), ("bf16", True), ("bf16", False)):
        monkeypatch.setattr(hardware, "_cpu_has_bf16", lambda there=there: there)
        with opened(str(tmp_path / "random"), "cpu", precision=asked) as (loaded, _), torch.no_grad():
            hidden[asked, there] = loaded.model.hidden(idx)
        assert loaded.precision == ("bf16" if there else "fp32") or asked == "fp32"
        report(loaded, {"acc": "0.5"}, None, tmp_path, {})
        assert ("precision: bf16" in capsys.readouterr().out) == (asked == "bf16" and there)
    assert not torch.is_autocast_enabled("cpu")
    assert torch.equal(hidden["fp32", True], hidden["bf16", False])
    error = (hidden["bf16", True] - hidden["fp32", True]).abs().max()
    assert 1e-5 < error < 0.1  # other numbers, and not other ones altogether
