"""Fine-tuning's configurations: the shipped files, and mistakes named before anything starts."""

from pathlib import Path

import pytest

from prepare.common.cli import ArgumentError
from prepare.finetuning.instructions import Template
from train.config.finetune import check_batch, load_classify_config, load_instruct_config
from train.config.parsing import save_config

LOADS = {"classify": load_classify_config, "instruct": load_instruct_config}
FILE = ["--data.train", "examples.json"]


@pytest.mark.parametrize("kind", LOADS)
def test_the_shipped_configuration_is_valid_and_survives_being_saved(kind: str, tmp_path: Path) -> None:
    config = LOADS[kind](["--init", "runs/quickstart", *FILE], "")
    assert (config.init, config.run.dir.split("/")[-1]) == ("runs/quickstart", f"finetune_{kind}")
    save_config(config, tmp_path / "saved.yaml")
    assert LOADS[kind](["--config", str(tmp_path / "saved.yaml")], "") == config
    for processes in (1, 2):
        check_batch(config, processes)


def test_the_template_is_an_option() -> None:
    config = load_instruct_config([*FILE, "--template.user", "Q: {}\n"], "")
    assert config.template == Template(user="Q: {}\n")


@pytest.mark.parametrize(
    ("kind", "words", "message"),
    [
        ("classify", "--data.train=", "data.train is empty"),
        ("classify", "--data.test_share=1", "data.test_share is 1.0: "),
        ("classify", "--data.test_share=0.7 --data.val_share=0.3", "data.val_share 0.3 and data.test_share 0.7"),
        ("classify", "--train.init_from=gpt2", "--init"),
        ("classify", "--tune.blocks=-1", "tune.blocks is -1: "),
        ("instruct", "--tune.blocks=0", "tune.blocks is 0: "),
        ("classify", "--tune.lora_rank=-1", "tune.lora_rank is -1: "),
        ("classify", "--tune.blocks=0 --tune.lora_rank=4", "tune.lora_rank is 4, but tune.blocks 0"),
        ("instruct", "--template.user=Q:", "template.user is 'Q:': put {}"),
        ("instruct", "--template.assistant={}", "template.assistant is '{}': take {} out"),
        ("instruct", "--eval.samples=0", "eval.samples is 0: "),
        ("instruct", "--data.val_share=0", "eval.patience needs validations"),
        ("classify", "--eval.every=0", "eval.patience needs validations"),
        ("classify", "--data.class_weights=inverse", "class_weights"),
        ("classify", "--model.n_layer=3", "model.n_layer"),
    ],
)
def test_a_value_that_no_run_can_use_is_named(kind: str, words: str, message: str) -> None:
    with pytest.raises(ArgumentError) as failure:
        LOADS[kind]([*FILE, *words.split()], "")
    assert message in str(failure.value)


def test_a_batch_that_does_not_divide_proposes_those_that_do() -> None:
    config = load_classify_config([*FILE, "--data.batch_examples", "30"], "")
    with pytest.raises(ArgumentError, match="take 16 or 32"):
        check_batch(config, 1)
