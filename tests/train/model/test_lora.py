"""LoRA: updates start at 0, and merge into a plain model with the same outputs."""

import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers.finetuning import base_model, finetune
from tests.helpers.tiny import VOCAB
from train.config.pretrain import ModelConfig
from train.model.build import build_model
from train.model.lora import add_lora, merge_lora
from train.weights.load_model import load_model


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_updates_start_at_0_and_merge_into_a_plain_model(architecture: str) -> None:
    torch.manual_seed(0)
    shape = ModelConfig(2, 2, 32, block_size=16, vocab_size=VOCAB, architecture=architecture)
    model, tokens = build_model(shape), torch.randint(VOCAB, (3, 16))
    before, names = model(tokens), model.state_dict().keys()
    add_lora(model.h[1], 4)
    assert torch.equal(model(tokens), before)
    tensors = model.state_dict()
    added = {name: tuple(tensors[name].shape) for name in tensors.keys() - names}
    stems = {"attn.c_attn": (96, 32), "attn.c_proj": (32, 32), "mlp.c_fc": (128, 32), "mlp.c_proj": (32, 128)}
    assert added == {f"h.1.{stem}.lora_a": (4, inputs) for stem, (_, inputs) in stems.items()} | {
        f"h.1.{stem}.lora_b": (outputs, 4) for stem, (outputs, _) in stems.items()
    }
    for stem, (_, inputs) in stems.items():
        assert tensors[f"h.1.{stem}.lora_a"].std().item() == pytest.approx(inputs**-0.5, rel=0.3)
    with torch.no_grad():
        for name in added:
            model.get_parameter(name).normal_(std=0.2)
    plain = build_model(shape)
    plain.load_state_dict(merge_lora(model.state_dict()))
    assert (model(tokens) - before).abs().max() > 0.01
    torch.testing.assert_close(plain(tokens), model(tokens), atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_a_killed_run_ends_with_the_same_weights_which_open_as_a_plain_model(tmp_path: Path) -> None:
    init, data = base_model(tmp_path / "base", architecture="modern"), tmp_path / "texts"
    data.write_text("\n".join(f"{label}\t{word} number {n}" for n in range(40) for label, word in ("ap", "bq")))
    changes = {"tune__lora_rank": 2, "tune__blocks": 1, "train__max_steps": 6, "eval__every": 2, "checkpoint__every": 2}
    runs = [tmp_path / "uninterrupted", tmp_path / "killed"]
    assert finetune("classify", init, data, runs[1], fault="SIGKILL@5:0", **changes).returncode == -signal.SIGKILL
    for run in runs:
        result = finetune("classify", init, data, run, **changes)
        assert result.returncode == 0, result.stdout + result.stderr
    assert "resumed at step " in result.stdout
    uninterrupted, killed = (load_file(run / "checkpoints" / "step_00000006" / "model.safetensors") for run in runs)
    assert uninterrupted.keys() == killed.keys()
    assert all(torch.equal(uninterrupted[name], killed[name]) for name in uninterrupted)

    initial, plain = (load_model(str(path), classifier=None).model.state_dict() for path in (init, runs[1]))
    assert plain.keys() - initial.keys() == {"score.weight"}
    del initial["lm_head.weight"]  # a classifier has none
    for name, tensor in initial.items():
        assert torch.equal(uninterrupted[name], tensor), name
        changed = name.startswith("h.1.") and name.endswith(("c_attn.weight", "c_fc.weight", "c_proj.weight"))
        assert torch.equal(plain[name], tensor) != changed, name
