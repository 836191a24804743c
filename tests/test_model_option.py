"""What --model and --device open."""

import argparse

import pytest
import torch

from eval.model_option import add_model_options, open_model
from prepare.cli import UserError
from tests.random_gpt2 import save_random_gpt2


def test_options_open_a_model_in_evaluation_mode_and_exact_float32(tmp_path):
    save_random_gpt2(tmp_path / "random", vocab_size=50257, n_embd=8, n_positions=8)
    parser = argparse.ArgumentParser()
    add_model_options(parser)
    args = parser.parse_args(["--model", str(tmp_path / "random"), "--device", "cpu"])
    torch.set_float32_matmul_precision("high")
    loaded, world = open_model(args.model, args.device)
    assert torch.get_float32_matmul_precision() == "highest"
    assert (loaded.name, world.size, world.device.type) == ("random", 1, "cpu")
    assert not loaded.model.training
    assert parser.parse_args([]).model is None


def test_a_device_that_is_not_there_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(UserError, match="GPU"):
        open_model(str(tmp_path), "cuda")
