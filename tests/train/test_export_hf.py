"""The way to Hugging Face: transformers opens what is exported, offline, with the same logits, tokens and text."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, GPT2Model

from prepare.tokens.tokenizer import CharTokenizer, GPT2Tokenizer
from tests.helpers.commands import ROOT, one_line_error, run_command
from tests.helpers.loopback_hub import LoopbackHub
from tests.helpers.tiny import make_run
from train import export_hf
from train.weights.load_model import load_model

SCRIPT = ROOT / "train" / "export_hf.py"
TEXTS = ["Hello, I'm a language model,", "naïve 東京 🙂\n\n  tabs\tand spaces  ", "it's 12345 o'clock<|endoftext|>"]


def test_transformers_opens_it_with_the_same_logits_tokens_and_text(tmp_path: Path) -> None:
    run, output = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "hf"
    result = run_command("python", SCRIPT, "--model", run, "--output", output)
    assert (result.returncode, result.stdout) == (0, f"run at step 3 -> {output}\n"), result.stderr

    ours = load_model(str(run))
    theirs = AutoModelForCausalLM.from_pretrained(output, local_files_only=True).eval()
    idx = torch.randint(50257, (2, 24))
    torch.testing.assert_close(theirs(idx).logits, ours.model(idx), atol=1e-5, rtol=1e-5)

    tokenizer = AutoTokenizer.from_pretrained(output, local_files_only=True)
    for text in TEXTS[:2]:
        assert tokenizer(text)["input_ids"] == ours.tokenizer.encode(text)
    assert tokenizer.eos_token_id == 50256

    prompt = torch.tensor([ours.tokenizer.encode("The")])
    written = theirs.generate(prompt, max_new_tokens=12, do_sample=False, eos_token_id=None)
    tokens = prompt
    for _ in range(12):
        tokens = torch.cat([tokens, ours.model(tokens)[:, -1:].argmax(-1)], dim=1)
    assert written.tolist() == tokens.tolist()

    again = load_model(str(output))  # and back
    for a, b in zip(ours.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_other_loaders_ask_for_is_there(tmp_path: Path) -> None:
    """What llama.cpp's conversion/gpt2.py and vLLM's models/gpt2.py read.

    llama.cpp's takes n_ctx and no other name for it, and drops no tensor but the masks; vLLM's takes the head from
    tie_word_embeddings. Both read the tokenizer as transformers' AutoTokenizer does.
    """
    run, output = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "hf"
    export_hf.main([f"--model={run}", f"--output={output}"])
    config = json.loads((output / "config.json").read_text())
    expected = {"architectures": ["GPT2LMHeadModel"], "n_ctx": 24, "n_positions": 24, "n_embd": 32, "n_layer": 2}
    expected |= {"n_head": 2, "layer_norm_epsilon": 1e-5, "activation_function": "gelu_new", "vocab_size": 50257}
    assert expected | {"tie_word_embeddings": True} == {key: config[key] for key in (*expected, "tie_word_embeddings")}
    theirs = {f"transformer.{name}" for name in GPT2Model(AutoConfig.from_pretrained(output)).state_dict()}
    assert load_file(output / "model.safetensors").keys() == theirs
    assert {"vocab.json", "merges.txt", "tokenizer_config.json"} < {path.name for path in output.iterdir()}


def test_a_character_model_has_weights_only(tmp_path: Path) -> None:
    """As configs/shakespeare_char.yaml makes one: without biases too, which are zeros there."""
    run = make_run(tmp_path / "run", CharTokenizer("abcde\n").describe(), vocab_size=6, bias=False)
    result = run_command("python", SCRIPT, "--model", run, "--output", tmp_path / "hf")
    assert "no Hugging Face tokenizer" in result.stdout
    idx = torch.randint(6, (2, 24))
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path / "hf", local_files_only=True).eval()
    torch.testing.assert_close(theirs(idx).logits, load_model(str(run)).model(idx), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", ["exists", "no model", "under a file"])
def test_mistakes_are_one_line_and_leave_nothing(tmp_path: Path, case: str) -> None:
    run = make_run(tmp_path / "run", GPT2Tokenizer().describe())
    output = tmp_path / "hf"
    if case == "exists":
        output.mkdir()
    if case == "under a file":
        (tmp_path / "file").touch()
        output = tmp_path / "file" / "hf"
    model = tmp_path / "gone" if case == "no model" else run
    result = run_command("python", SCRIPT, "--model", model, "--output", output)
    messages = {"exists": "exists already", "no model": "there is no such folder"}
    assert (messages | {"under a file": "Not a directory"})[case] in one_line_error(result)
    assert [path.name for path in tmp_path.iterdir() if "hf" in path.name] == (["hf"] if case == "exists" else [])


def test_push_uploads_the_folder_or_says_how(tmp_path: Path) -> None:
    run, output = make_run(tmp_path / "run", GPT2Tokenizer().describe()), tmp_path / "hf"
    (tmp_path / "served").mkdir()
    with LoopbackHub(tmp_path / "served") as hub:
        environment = hub.environment(tmp_path)
        command = ("python", SCRIPT, "--model", run, "--output", output, "--push", "me/my-gpt2")
        refused = one_line_error(run_command(*command, **environment))
        assert f"hf upload me/my-gpt2 {output}" in refused
        shutil.rmtree(output)  # it stays, complete, for another try
        result = run_command(*command, **environment | {"HF_TOKEN": "hf_secret"})
        assert result.returncode == 0, result.stderr
        assert result.stdout.splitlines()[-1] == f"{output} -> {hub.endpoint}/me/my-gpt2"
        assert {seen.authorization for seen in hub.requests if seen.method == "POST"} == {None, "Bearer hf_secret"}
    there = tmp_path / "served/models/me/my-gpt2"
    assert {path.name: path.read_bytes() for path in there.iterdir()} == {
        path.name: path.read_bytes() for path in output.iterdir()
    }
