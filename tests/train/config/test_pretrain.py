"""The configuration: files and the command line joined, and mistakes named before anything starts."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from prepare.common.cli import ArgumentError
from train.config.parsing import CONFIGS, save_config
from train.config.pretrain import (
    Config,
    DataConfig,
    ModelConfig,
    SourceConfig,
    load_config,
    sequences_per_rank,
    with_vocab_size,
)
from train.model.build import build_model


def test_without_arguments_it_is_the_124m_recipe() -> None:
    config = load_config([], "")
    assert config.model == ModelConfig()
    assert (config.data.batch_tokens, config.optim.max_lr, config.optim.warmup_steps) == (524288, 6e-4, 700)
    assert (config.optim.weight_decay, config.optim.min_lr, config.train.max_steps) == (0.1, 0.0, 18865)
    assert config.optim.betas == (0.9, 0.95)
    assert config.run.dir.endswith("runs/gpt2_124m")


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {n_layer: 4}\noptim: {max_lr: 1e-3, betas: [0.9, 0.99]}\ndata: {train: [a, b]}\n")
    config = load_config(["--optim.max_lr", "3e-4", "--config", str(file), "--data.micro_batch_size", "8"], "")
    assert config.model == ModelConfig(n_layer=4)
    assert (config.optim.max_lr, config.optim.betas, config.data.micro_batch_size) == (3e-4, (0.9, 0.99), 8)
    assert config.data.train == ["a", "b"]
    assert config.run.dir.endswith("runs/mine")


def test_sources_are_named_in_a_file_or_on_the_command_line_and_survive_being_saved(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("data: {train: {web: {files: 'web/*', weight: 0.7}}, val: {web: a, code: [b, c]}}\n")
    words = ["--config", str(file), "--data.train.web.weight", "2", "--data.train.code", "{files: [x, y]}"]
    config = load_config(words, "")
    assert config.data.sources == {"web": SourceConfig("web/*", 2), "code": SourceConfig(["x", "y"], 1)}
    assert config.data.val_globs == {"web": "a", "code": ["b", "c"]}
    whole = "{web: {files: web/*, weight: 2}, code: {files: [x, y]}}"
    assert load_config(["--config", str(file), "--data.train", whole], "") == config
    save_config(config, file)
    assert load_config(["--config", str(file)], "") == config
    plain = load_config(["--config", str(file), "--data.train", "a*.bin"], "")
    assert plain.data.sources == {"": SourceConfig("a*.bin")}


PARAMETERS = {
    "gpt2_124m": 124_439_808,
    "gpt2_350m": 354_823_168,
    "gpt2_774m": 774_030_080,
    "gpt2_1558m": 1_557_611_200,
    "modern_124m": 12 * (12 * 768**2 + 2 * 768) + 768 + 2 * 50257 * 768,
}
PRETRAINING = [path for path in sorted(CONFIGS.glob("*.yaml")) if not path.name.startswith("finetune_")]


@pytest.mark.parametrize("file", PRETRAINING, ids=lambda path: path.stem)
def test_each_shipped_configuration_is_valid_survives_being_saved_and_has_openais_shape(
    file: Path, tmp_path: Path
) -> None:
    config = load_config(["--config", str(file)], "")
    save_config(config, tmp_path / file.name)
    assert load_config(["--config", str(tmp_path / file.name)], "") == config
    sequences_per_rank(config, 1)
    with torch.device("meta"):
        count = build_model(with_vocab_size(config, None).model).num_parameters()
    assert count == PARAMETERS.get(file.stem.removesuffix("_muon"), count)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--model.n_layr=4", "n_layr"),
        ("--optim.max_lr=fast", "optim.max_lr"),
        ("--optim.max_lr=-1", "optim.max_lr is -1.0: "),
        ("--optim.min_lr=1", "optim.min_lr 1.0 is above optim.max_lr 0.0006"),
        ("--optim.cooldown=0", "optim.cooldown is 0.0: "),
        ("--checkpoint.keep_every=700", "checkpoint.keep_every 700 is not a multiple of checkpoint.every 500"),
        ("--model.n_embd=100", "model.n_embd 100 is not a multiple of model.n_head 12"),
        ("--model.architecture modern --model.n_embd=36", "model.n_embd / model.n_head is 3: "),
        ("--model.vocab_size=70000", "uint16"),
        ("--model.without=[rotary]", "model.without is ['rotary']: only model.architecture modern has these parts"),
        ("--model.architecture modern --model.without=[bias]", "model.without"),
        ("--model.dropout=1.5", "model.dropout is 1.5: "),
        ("--train.max_steps=0", "train.max_steps is 0: "),
        ("--eval.every=-5", "eval.every is -5: "),
        ("--data.micro_batch_size=0", "data.micro_batch_size is 0: "),
        ("--data.micro_batch_size=many", "data.micro_batch_size"),
        ("--log.wandb=sometimes", "log.wandb"),
        ("--config=nowhere.yaml", "nowhere.yaml"),
        ("--data.train=[]", "data.train is empty: "),
        ('--data.train={"web":{"files":[]}}', "data.train.web is empty: "),
        ('--data.train={"web":{"files":"a","weight":0}}', "data.train.web.weight is 0.0: "),
        ('--data.val={"web":""}', "data.val.web is empty: "),
        ("--data.train={web:{files:a}}", "data.train {web:{files:a}}: "),
        ("--run.dir=", "run.dir is empty"),
        ("--data.train a_000001.bin a_000002.bin", "quote globs"),
    ],
)
def test_mistakes_are_named(words: str, message: str) -> None:
    with pytest.raises(ArgumentError) as failure:
        load_config(words.split(), "")
    assert message in str(failure.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("optim:\n  maxlr: 1\n", "does not accept option 'maxlr'"),
        ("optim: {max_lr: abc}\n", 'Parser key "optim.max_lr"'),
        ("foo: {a: 1}\n", "'foo.a' is not accepted"),
        ("optim: [1\n", "Problems parsing config"),
        ("model:\n", "model"),
        ("eval:\n  every:\n", "eval.every has no value"),
    ],
)
def test_a_mistake_in_a_file_names_the_file(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(content)
    with pytest.raises(ArgumentError) as failure:
        load_config(["--config", str(file)], "")
    assert str(file) in str(failure.value) or "has no value" in message
    assert message in str(failure.value)
    file.write_text("optim: {max_lr: 1e-3}\n")
    with pytest.raises(ArgumentError, match=r"^unrecognized"):  # not the file's
        load_config(["--config", str(file), "--optim.maxlr", "3"], "")


@pytest.mark.parametrize(
    ("batch_tokens", "micro", "world"), [(1000, 4, 1), (524288, 48, 1), (524288, 64, 3), (5, 1, 2)]
)
def test_a_batch_that_does_not_divide_is_refused_with_values_that_do(batch_tokens: int, micro: int, world: int) -> None:
    config = Config(data=DataConfig(batch_tokens=batch_tokens, micro_batch_size=micro))
    with pytest.raises(ArgumentError, match=f"data.batch_tokens {batch_tokens} is not a multiple") as refusal:
        sequences_per_rank(config, world)
    proposals = [int(word) for word in str(refusal.value).split(": take ")[1].split(" or ")]
    assert proposals
    for value in proposals:
        better = replace(config, data=replace(config.data, batch_tokens=value))
        assert sequences_per_rank(better, world) * world * 1024 == value
        assert abs(value - batch_tokens) <= micro * world * 1024


def test_sequences_per_rank() -> None:
    assert sequences_per_rank(Config(), 8) == 64
    assert sequences_per_rank(Config(data=DataConfig(micro_batch_size=16)), 2) == 256
