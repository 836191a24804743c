"""The modern architecture against transformers' NanoChat: exports have the same logits, and its directories open."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, NanoChatConfig, NanoChatForCausalLM

from eval.generation.sampling import generate
from prepare.common.cli import UserError
from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.tiny import make_run
from train import export_hf
from train.weights.huggingface import load_hf
from train.weights.load_model import load_model

CHARACTERS = CharTokenizer("abcde\n").describe()


OPTIONAL = ["relu2", "untied_head", "softcap"]


@pytest.mark.parametrize("without", [[], ["norm_weights"], OPTIONAL, ["norm_weights", *OPTIONAL, "zero_init"]], ids=str)
@torch.no_grad()
def test_transformers_opens_it_with_the_same_logits_loss_and_text(tmp_path: Path, without: list[str]) -> None:
    run = make_run(tmp_path / "run", GPT2Tokenizer().describe(), architecture="modern", without=without)
    output = tmp_path / "hf"
    export_hf.main([f"--model={run}", f"--output={output}"])
    ours = load_model(str(run))
    theirs = AutoModelForCausalLM.from_pretrained(output, local_files_only=True).eval()
    assert isinstance(theirs, NanoChatForCausalLM)
    idx = torch.randint(50257, (3, 24))
    torch.testing.assert_close(theirs(idx).logits, ours.model(idx), atol=1e-5, rtol=1e-5)
    loss = torch.nn.functional.cross_entropy(theirs(idx).logits.flatten(0, 1), idx.flatten())
    torch.testing.assert_close(ours.model(idx, idx), loss, atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(output, local_files_only=True)
    assert tokenizer("naïve 東京")["input_ids"] == ours.tokenizer.encode("naïve 東京")
    prompt = torch.randint(50257, (2, 5))
    written = theirs.generate(prompt, max_new_tokens=19, do_sample=False, eos_token_id=None)
    assert written[:, 5:].tolist() == torch.stack(list(generate(ours.model, prompt, 19, temperature=0)), 1).tolist()

    again = load_model(str(output))  # and back
    torch.testing.assert_close(again.model(idx), ours.model(idx), atol=1e-5, rtol=1e-5)
    if "norm_weights" in without:  # the same tensors, not only the same logits
        assert (again.model.config.without, again.tokenizer.name) == (without[:4], "gpt2")
        for a, b in zip(ours.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)


def test_a_directory_of_transformers_gives_its_gradients(tmp_path: Path) -> None:
    torch.manual_seed(0)
    shape = {"hidden_size": 32, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2}
    shape |= {"vocab_size": 50257, "max_position_embeddings": 16}
    rope = {"rope_theta": 1e4, "rope_type": "default", "partial_rotary_factor": 1.0}  # all of each head, as by default
    theirs = NanoChatForCausalLM(NanoChatConfig(**shape, rope_parameters=rope))
    theirs.save_pretrained(tmp_path)
    ours, idx = load_hf(tmp_path), torch.randint(50257, (2, 16))
    assert (ours.config.architecture, ours.config.without, ours.config.block_size) == ("modern", ["norm_weights"], 16)
    torch.nn.functional.cross_entropy(theirs(idx).logits.flatten(0, 1), idx.flatten()).backward()
    ours(idx, idx).backward()
    q, k, v = ours.h[1].attn.c_attn.weight.grad.chunk(3)
    layer = theirs.model.layers[1]
    for found, expected in (
        (q, layer.self_attn.q_proj),
        (k, layer.self_attn.k_proj),
        (v, layer.self_attn.v_proj),
        (ours.h[0].mlp.c_fc.weight.grad, theirs.model.layers[0].mlp.fc1),
        (ours.wte.weight.grad, theirs.model.embed_tokens),
        (ours.lm_head.weight.grad, theirs.lm_head),
    ):
        torch.testing.assert_close(found, expected.weight.grad, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_key_value_heads": 1}, "num_key_value_heads is 1, but this model has 2"),
        ({"intermediate_size": 96}, "intermediate_size is 96, but this model has 128"),
        ({"rope_parameters": {"rope_theta": 5e5, "rope_type": "default"}}, "rope_theta is 500000"),
        ({"rope_parameters": None, "rope_theta": 5e5}, "rope_theta is 500000"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "type is 'linear'"),
        ({"final_logit_softcapping": 30.0}, "final_logit_softcapping is 30.0"),
        ({"num_hidden_layers": 3}, r"Missing key.*h\.2\."),
    ],
)
def test_what_is_not_this_nanochat_is_named(tmp_path: Path, change: dict, message: str) -> None:
    run, output = make_run(tmp_path / "run", CHARACTERS, vocab_size=6, architecture="modern"), tmp_path / "hf"
    export_hf.main([f"--model={run}", f"--output={output}"])
    assert not [name for name in load_file(output / "model.safetensors") if "c_attn" in name]
    config = json.loads((output / "config.json").read_text())
    (output / "config.json").write_text(json.dumps({**config, **change}))
    with pytest.raises(UserError, match=message):
        load_hf(output)


def test_what_transformers_does_not_have_is_not_exported(tmp_path: Path) -> None:
    shape = {"vocab_size": 6, "architecture": "modern", "without": ["rotary", "relu2"]}
    run = make_run(tmp_path / "run", CHARACTERS, **shape)
    with pytest.raises(UserError, match="without rotary, which"):
        export_hf.main([f"--model={run}", f"--output={tmp_path / 'hf'}"])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
