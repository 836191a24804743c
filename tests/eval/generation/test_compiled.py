"""The compiled step: the text of the one that is not, and one compilation for all of it."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from eval import generate as script
from eval.generation.compiled import CompiledStep
from eval.generation.sampling import generate
from prepare.common.cli import ArgumentError, UserError
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.tiny import save_checkpoint
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT


@pytest.fixture(scope="module")
def model() -> GPT:
    torch.manual_seed(0)
    model = GPT(ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=32, vocab_size=90)).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # clear preferences, so that rounding decides nothing
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_the_same_text_and_nothing_compiled_twice(model: GPT, tmp_path: Path, monkeypatch, capsys) -> None:
    """Beyond the block, from two prompts of any lengths; then in a conversation, whose steps have one row: one
    compilation for each number of rows."""
    monkeypatch.setattr("train.model.gpt.WORTH_ONEDNN", 0)  # as in a model of any size worth compiling
    draw = torch.Generator().manual_seed(4)
    counters.clear()
    with torch._dynamo.config.patch(error_on_recompile=True):
        step = CompiledStep(model, 2)
        for lengths in ((5, 1), (40, 31), (1, 1)):
            prompts = [torch.randint(90, (n,), generator=draw).tolist() for n in lengths]
            plain, compiled = (
                torch.stack(list(generate(model, prompts, 70, temperature=0, compiled=which)), 1)
                for which in (None, step)
            )
            assert torch.equal(plain, compiled)
    assert counters["stats"]["unique_graphs"] == 1

    characters = "".join(map(chr, range(33, 123)))
    save_checkpoint(tmp_path / "run", 1, model, tokenizer=CharTokenizer(characters).describe())
    options = [f"--model={tmp_path / 'run'}", "--device=cpu", "--interactive", "--temperature=0", "--max-new-tokens=9"]
    said = []
    for compiled in ([], ["--compile"]):
        lines = iter(["abc", "", "Hello", "", "x"])
        monkeypatch.setattr(script, "read_line", lambda lines=lines: next(lines, None))
        counters.clear()
        script.main([*options, *compiled])
        said.append(capsys.readouterr().out)
        assert counters["stats"]["unique_graphs"] == len(compiled)
    assert said[0] == said[1]
    assert said[0].count("\n") == 3


def test_what_it_cannot_do_is_said(model: GPT, monkeypatch) -> None:
    with pytest.raises(ArgumentError, match="--no-cache"):
        script.main(["--compile", "--no-cache"])
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UserError, match="--compile needs a C"):
        CompiledStep(model, 1)
