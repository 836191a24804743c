"""The configuration: one frozen dataclass a section, filled from a YAML file and the command line.

Only roots see the whole Config; functions take their own section or plain arguments.
"""

import argparse
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Literal, NoReturn

import jsonargparse
import yaml

from prepare.cli import ROOT, RUNS, ArgumentError, write_whole

CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class ModelConfig:
    """The shape of a GPT-2.

    Args:
        n_layer: transformer layers
        n_head: attention heads a layer
        n_embd: width, a multiple of n_head
        block_size: the longest context, in tokens
        vocab_size: token ids are below this; 50257 for GPT-2's tokenizer
        dropout: probability, after the embeddings, the attention and each residual branch
        bias: biases in the linear maps and LayerNorms, as OpenAI's models have them
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 50257
    dropout: float = 0.0
    bias: bool = True


@dataclass(frozen=True)
class DataConfig:
    """What is read, and how much of it a step takes.

    Args:
        train: glob, or list of globs, of the training shards
        val: glob, or list of globs, of the validation shards
        batch_tokens: tokens in one optimizer step, over all processes and micro-batches
        micro_batch_size: sequences a process takes through the model at a time; auto finds what fits
        shuffle: shuffle the windows of each shard, and the shards, anew in each epoch
        allow_change: let a run go on with other training data than it began with
    """

    train: str | list[str] = "data/fineweb10B/fineweb_train_*.bin"
    val: str | list[str] = "data/fineweb10B/fineweb_val_*.bin"
    batch_tokens: int = 524288
    micro_batch_size: int | Literal["auto"] = "auto"
    shuffle: bool = True
    allow_change: bool = False


@dataclass(frozen=True)
class OptimConfig:
    """AdamW and its schedule.

    Args:
        max_lr: learning rate at the end of the warmup
        min_lr: learning rate of the last step
        warmup_steps: steps of linear warmup
        schedule: what follows the warmup
        weight_decay: on matrices and embeddings only
        betas: AdamW's
        eps: AdamW's
        grad_clip: largest global gradient norm; 0 does not clip
        max_skipped: steps with a non-finite gradient in a row before the run gives up
    """

    max_lr: float = 6e-4
    min_lr: float = 0.0
    warmup_steps: int = 700
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    max_skipped: int = 5


@dataclass(frozen=True)
class TrainConfig:
    """How long, and on what.

    Args:
        max_steps: optimizer steps in the whole run
        seed: of the weights, the order of the data and the dropout
        device: auto takes the GPU when there is one
        precision: of the matrix products; bf16 where the device has it; auto is fp32 on a CPU, bf16 on a GPU
        compile: use torch.compile
    """

    max_steps: int = 18865
    seed: int = 1337
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = True


@dataclass(frozen=True)
class EvalConfig:
    """What is measured during training; an interval is in steps, and 0 turns the thing off.

    Args:
        every: interval of the validation loss
        val_tokens: tokens that it is measured on, always the same first ones
        hellaswag_every: interval of HellaSwag
        hellaswag_data: its tasks; what prepare/eval_sets.py fetches
        hellaswag_limit: take the first so many tasks; 0 takes all
        sample_every: interval of the generated samples
        sample_prompt: what they continue
        sample_tokens: how many tokens each
    """

    every: int = 250
    val_tokens: int = 10485760
    hellaswag_every: int = 250
    hellaswag_data: str = "data/hellaswag_val.jsonl"
    hellaswag_limit: int = 0
    sample_every: int = 250
    sample_prompt: str = "Hello, I'm a language model,"
    sample_tokens: int = 64


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved.

    Args:
        every: interval in steps; 0 saves at the end only
        keep: how many checkpoints stay, the latest ones
        margin_seconds: stop and save this long before Slurm's time limit
    """

    every: int = 500
    keep: int = 2
    margin_seconds: int = 120


@dataclass(frozen=True)
class LogConfig:
    """What is written down.

    Args:
        every: interval in steps of the train rows and console lines
        wandb: auto is online where somebody has logged in, and disabled elsewhere
        wandb_project: its project there
    """

    every: int = 1
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    wandb_project: str = "gpt2-pretraining"


@dataclass(frozen=True)
class RunConfig:
    """Where the run lives.

    Args:
        dir: its directory; runs/<name of the config file> when not given
        fresh: refuse a directory that holds a run already, instead of going on with it
    """

    dir: str | None = None
    fresh: bool = False


@dataclass(frozen=True)
class Config:
    """The whole configuration of a run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)


class _Parser(jsonargparse.ArgumentParser):
    """A jsonargparse parser with this project's help and one-line errors."""

    opening = ""

    def format_help(self) -> str:
        return self.opening + super().format_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = "quote globs, so that the shell leaves them alone" if ".bin" in message else "see --help for every key"
        raise ArgumentError(f"{message} ({hint})") from ex


def load_config(argv: list[str] | None, opening: str) -> Config:
    """Read `--config FILE` (else gpt2_124m.yaml), then the command line's `--section.key value`, and check the values.

    Args:
        argv: the command line, without the program's name; None takes the process's.
        opening: what --help prints first.

    Raises:
        ArgumentError: an unknown key, a value of the wrong type, or values that cannot go together.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=CONFIGS / "gpt2_124m.yaml")
    chosen, words = first.parse_known_args(argv)  # the file is read first, wherever it stands on the line
    parser = _Parser(allow_abbrev=False)
    parser.opening = opening
    parser.add_argument("--config", action="config", help="a YAML file (default: configs/gpt2_124m.yaml)")
    for name, section in Config.__dataclass_fields__.items():
        parser.add_argument(f"--{name}", type=section.type, default=section.default_factory())
    try:
        values = parser.instantiate(parser.parse_args(["--config", str(chosen.config), *words]))
        config = Config(**{name: values[name] for name in Config.__dataclass_fields__})
        if config.run.dir is None:
            config = replace(config, run=replace(config.run, dir=str(RUNS / chosen.config.stem)))
        check(config)
    except TypeError as failure:
        raise ArgumentError(
            f"a section or value without content (null) in {chosen.config} ({failure}): fill it"
        ) from None
    return config


def check(config: Config) -> None:
    """Refuse values that no run can use, before anything is read or built.

    Raises:
        ArgumentError: names the key, its value and the values that work.
    """
    model, data, optim = config.model, config.data, config.optim
    positive = {
        "model": ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"),
        "data": ("batch_tokens",),
        "optim": ("max_lr", "eps", "max_skipped"),
        "train": ("max_steps",),
        "eval": ("val_tokens", "sample_tokens"),
        "checkpoint": ("keep",),
        "log": ("every",),
    }
    not_negative = {
        "optim": ("min_lr", "warmup_steps", "weight_decay", "grad_clip"),
        "train": ("seed",),
        "eval": ("every", "hellaswag_every", "hellaswag_limit", "sample_every"),
        "checkpoint": ("every", "margin_seconds"),
    }
    for keys_by_section, lowest, words in ((positive, 1, "above 0"), (not_negative, 0, "0 or more")):
        for section, keys in keys_by_section.items():
            for key in keys:
                value = getattr(getattr(config, section), key)
                if value is None:
                    raise ArgumentError(f"{section}.{key} has no value: give a number {words}")
                if not math.isfinite(value) or value < 0 or (lowest and value == 0):
                    raise ArgumentError(f"{section}.{key} is {value}: give a number {words}")
    if not data.train or not data.val:
        raise ArgumentError("data.train or data.val is empty: give a glob, such as 'data/fineweb10B/*_train_*.bin'")
    if not config.run.dir:
        raise ArgumentError("run.dir is empty: give a directory, or leave it out")
    if config.train.seed >= 2**63:
        raise ArgumentError(f"train.seed is {config.train.seed}: give a number below 2^63")
    if model.n_embd % model.n_head:
        raise ArgumentError(f"model.n_embd {model.n_embd} is not a multiple of model.n_head {model.n_head}")
    if model.vocab_size > 65536:
        raise ArgumentError(f"model.vocab_size is {model.vocab_size}: shards hold uint16 tokens, so 65536 at the most")
    if not 0 <= model.dropout < 1:
        raise ArgumentError(f"model.dropout is {model.dropout}: give a probability from 0 to below 1")
    if not all(0 <= beta < 1 for beta in optim.betas):
        raise ArgumentError(f"optim.betas is {optim.betas}: give two numbers from 0 to below 1")
    if optim.min_lr > optim.max_lr:
        raise ArgumentError(f"optim.min_lr {optim.min_lr} is above optim.max_lr {optim.max_lr}: lower it")
    if data.micro_batch_size != "auto" and data.micro_batch_size < 1:
        raise ArgumentError(f"data.micro_batch_size is {data.micro_batch_size}: give a number above 0, or auto")


def sequences_per_rank(config: Config, world_size: int) -> int:
    """How many windows each process takes a step: batch_tokens / (block_size * world_size), a whole number.

    Raises:
        ArgumentError: batch_tokens does not divide; proposes the nearest values that do.
    """
    data, block_size = config.data, config.model.block_size
    micro = 1 if data.micro_batch_size == "auto" else data.micro_batch_size
    unit = micro * block_size * world_size
    if data.batch_tokens % unit:
        below = data.batch_tokens // unit * unit
        proposals = " or ".join(str(value) for value in (below, below + unit) if value)
        raise ArgumentError(
            f"data.batch_tokens {data.batch_tokens} is not a multiple of micro_batch_size {micro} x block_size "
            f"{block_size} x {world_size} processes = {unit}: take {proposals}"
        )
    return data.batch_tokens // (block_size * world_size)


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML that `--config` reads; it appears whole."""
    plain = asdict(config)
    plain["optim"]["betas"] = list(config.optim.betas)
    write_whole(path, yaml.safe_dump(plain, sort_keys=False))
