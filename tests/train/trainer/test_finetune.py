"""Which parameters are trainable, and what identifies a run's data."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.common.cli import UserError
from prepare.tokens.tokenizer import CharTokenizer
from tests.helpers.tiny import VOCAB
from train.config.finetune import ClassifyConfig, LabelledData, TuneConfig
from train.config.pretrain import ModelConfig, OptimConfig, TrainConfig
from train.model.build import build_classifier, build_model
from train.model.gpt import GPT
from train.model.loss import IGNORE_INDEX
from train.trainer.finetune import data_identity, freeze
from train.trainer.optim import build_optimizer
from train.weights.load_model import LoadedModel

SHAPE = ModelConfig(n_layer=3, n_head=2, n_embd=16, block_size=8, vocab_size=VOCAB)


def moved(tune: TuneConfig, shape: ModelConfig = SHAPE) -> set[str]:
    """The parameters that two steps have changed, by their names up to the layer's number."""
    torch.manual_seed(0)
    model = build_classifier(shape, 2)
    freeze(model, tune)
    optimizer = build_optimizer(model, OptimConfig(max_lr=0.1))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    tokens, targets = torch.randint(VOCAB, (4, 8)), torch.full((4, 8), IGNORE_INDEX)
    targets[:, -1] = torch.tensor([0, 1, 0, 1])
    for _ in range(2):
        optimizer.zero_grad()
        model(tokens, targets).backward()
        optimizer.step()
    return {name for name, tensor in model.state_dict().items() if not torch.equal(tensor, before[name])}


@pytest.mark.parametrize("architecture", ["gpt2", "modern"])
def test_only_the_chosen_parameters_are_trained(architecture: str) -> None:
    shape = replace(SHAPE, architecture=architecture, without=["zero_init"] if architecture == "modern" else [])
    names = build_classifier(shape, 2).state_dict().keys()
    assert moved(TuneConfig(blocks="all"), shape) == names
    last = {name for name in names if name.startswith(("h.1.", "h.2.", "ln_f.", "score."))}
    assert moved(TuneConfig(blocks=2), shape) == last
    assert moved(TuneConfig(blocks=0), shape) == {"score.weight"}
    matrices = ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    updates = {f"h.2.{matrix}.lora_{half}" for matrix in matrices for half in "ab"}
    assert moved(TuneConfig(blocks=1, lora_rank=2), shape) == {*updates, "score.weight"}
    assert len(moved(TuneConfig(lora_rank=2), shape)) == 3 * len(updates) + 1
    model = build_model(shape)  # with modern's untied head
    freeze(model, TuneConfig(blocks=1))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {name for name in model.state_dict() if name.startswith(("h.2.", "ln_f.", "lm_head."))}
    with pytest.raises(UserError, match=r"tune\.blocks is 4, but the model has 3 layers"):
        freeze(GPT(SHAPE), TuneConfig(blocks=4))


def test_the_data_identity_changes_with_the_file_shares_seed_block_size_and_vocabulary(tmp_path: Path) -> None:
    file, other = tmp_path / "texts", tmp_path / "other" / "texts"
    other.parent.mkdir()
    file.write_text("a\tb\n")
    other.write_text("a\tc\n")
    base = LoadedModel(GPT(SHAPE), CharTokenizer("abc"), "base", 1)

    def of(path: Path = file, model: LoadedModel = base, seed: int = 1, steps: int = 9, val_share: float = 0.1) -> dict:
        data = LabelledData(train=str(path), val_share=val_share)
        config = ClassifyConfig(data=data, train=TrainConfig(seed=seed, max_steps=steps))
        return data_identity(config, model, columns=["a"])

    usual = of()
    assert usual == of(steps=10)
    longer = LoadedModel(GPT(replace(SHAPE, block_size=9)), base.tokenizer, "longer", 1)
    richer = LoadedModel(base.model, CharTokenizer("abcd"), "richer", 1)
    others = [of(other), of(seed=2), of(val_share=0.2), of(model=longer), of(model=richer)]
    assert [found == usual for found in others] == [False] * 5
    with pytest.raises(UserError, match=r"gone cannot be read \(No such file"):
        of(tmp_path / "gone")
