"""The configuration: one frozen dataclass a section, filled from a YAML file and the command line.

Only roots see the whole Config; functions take their own section or plain arguments.
"""

import argparse
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NoReturn, TypeVar

import jsonargparse
import yaml

from prepare.common.cli import ROOT, RUNS, ArgumentError
from prepare.common.files import atomic_write_text

CONFIGS = ROOT / "configs"
AnyConfig = TypeVar("AnyConfig")
Keys = Mapping[str, Sequence[str]]  # of sections


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
        min_lr: learning rate of the last step, unless schedule is constant or the run is no longer than the warmup
        warmup_steps: steps of linear warmup
        schedule: what follows the warmup
        weight_decay: on matrices and embeddings only
        betas: AdamW's
        eps: AdamW's
        grad_clip: largest global gradient norm; 0 does not clip
        spike_zscore: a gradient norm so many standard deviations above the mean of the latest is logged as a spike; 0
            looks for none
        spike_window: how many steps are the latest
        skip_spikes: leave the model as it is in a step with a spike
    """

    max_lr: float = 6e-4
    min_lr: float = 0.0
    warmup_steps: int = 700
    schedule: Literal["cosine", "linear", "constant"] = "cosine"
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0
    spike_zscore: float = 6.0
    spike_window: int = 100
    skip_spikes: bool = False


@dataclass(frozen=True)
class TrainConfig:
    """How long, and on what.

    Args:
        max_steps: optimizer steps in the whole run
        seed: of the weights, the order of the data and the dropout
        device: auto takes the GPU when there is one
        precision: of the matrix products; auto and bf16 take bf16 where the device has it, and fp32 elsewhere
        compile: use torch.compile
        recompute: activation checkpointing: store only each layer's input, and compute the rest again in the backward
            pass; less memory for more time
        shard_optimizer: each process keeps its share of AdamW's moments only (ZeRO-1)
        init_from: the model whose weights a new run begins with, named as for --model; empty begins with random ones
        timeout_seconds: a process that keeps the others waiting for so long ends the run, by name
    """

    max_steps: int = 18865
    seed: int = 1337
    device: Literal["auto", "cpu", "cuda", "mps"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: bool = True
    recompute: bool = False
    shard_optimizer: bool = False
    init_from: str = ""
    timeout_seconds: int = 600


@dataclass(frozen=True)
class EvalConfig:
    """What is measured during training; an interval is in steps, and 0 turns the thing off.

    Args:
        every: interval of the validation loss
        val_tokens: tokens that it is measured on, always the same first ones
        hellaswag_every: interval of HellaSwag, whose tasks prepare/eval_sets.py downloads
        sample_every: interval of the generated samples
        sample_prompt: what they continue
        sample_tokens: how many tokens each
    """

    every: int = 250
    val_tokens: int = 10485760
    hellaswag_every: int = 250
    sample_every: int = 250
    sample_prompt: str = "Hello, I'm a language model,"
    sample_tokens: int = 64


@dataclass(frozen=True)
class CheckpointConfig:
    """When the run is saved.

    Args:
        every: interval in steps; 0 saves at the end only
        keep: how many checkpoints stay, the latest ones; the one with the best validation loss stays besides
        margin_seconds: stop and save this long before Slurm's time limit, or twice the slowest save so far
    """

    every: int = 500
    keep: int = 2
    margin_seconds: int = 120


@dataclass(frozen=True)
class LogConfig:
    """What is written down.

    Args:
        every: interval in steps of the train rows and console lines; 0 leaves them out
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
    where = ""  # the file that is read, for messages

    def format_help(self) -> str:
        return self.opening + super().format_help()

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        hint = "quote globs, so that the shell leaves them alone" if ".bin" in message else "see --help for every key"
        raise ArgumentError(f"{self.where}{message} ({hint})") from ex


def load_config(argv: list[str] | None, opening: str) -> Config:
    """The configuration of a pretraining run; see read_config. Without `--config` it is gpt2_124m.yaml."""
    return read_config(argv, opening, Config, "gpt2_124m.yaml", check)


def read_config(
    argv: list[str] | None,
    opening: str,
    kind: type[AnyConfig],
    default: str,
    check: Callable[[AnyConfig], None],
) -> AnyConfig:
    """Read `--config FILE`, then the command line's `--section.key value`, and check the values.

    Args:
        argv: the command line, without the program's name; None takes the process's.
        opening: what --help prints first.
        kind: a dataclass of sections, `run` among them.
        default: the file of configs/ that is read where none is named.

    Raises:
        ArgumentError: an unknown key, a value of the wrong type, or values that cannot go together.
    """
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    first.add_argument("--config", type=Path, default=CONFIGS / default)
    chosen, words = first.parse_known_args(argv)  # the file is read first, wherever it stands on the line
    parser = _Parser(allow_abbrev=False)
    parser.opening = opening
    parser.add_argument("--config", action="config", help=f"a YAML file (default: configs/{default})")
    sections = kind.__dataclass_fields__
    for name, section in sections.items():
        parser.add_argument(f"--{name}", type=section.type, default=section.default_factory(), **section.metadata)
    try:
        if chosen.config.is_file():
            parser.where = f"{chosen.config}: "
            parser.parse_path(chosen.config)  # by itself first, so that its mistakes are called its own
            parser.where = ""
        values = parser.instantiate(parser.parse_args(["--config", str(chosen.config), *words]))
        config = kind(**{name: values[name] for name in sections})
        if config.run.dir is None:
            config = replace(config, run=replace(config.run, dir=str(RUNS / chosen.config.stem)))
        check(config)
    except UnicodeDecodeError:
        raise ArgumentError(f"--config {chosen.config} is not text: name a YAML file") from None
    except TypeError as failure:
        raise ArgumentError(
            f"a section or value without content (null) in {chosen.config} ({failure}): fill it"
        ) from None
    return config


POSITIVE = {
    "optim": ("max_lr", "eps", "spike_window"),
    "train": ("max_steps", "timeout_seconds"),
    "checkpoint": ("keep",),
}
NOT_NEGATIVE = {
    "optim": ("min_lr", "warmup_steps", "weight_decay", "grad_clip", "spike_zscore"),
    "train": ("seed",),
    "checkpoint": ("every", "margin_seconds"),
    "log": ("every",),
}


def check(config: Config) -> None:
    """Refuse values that no run can use, before anything is read or built.

    Raises:
        ArgumentError: names the key, its value and the values that work.
    """
    model, data = config.model, config.data
    check_common(
        config,
        {
            "model": ("n_layer", "n_head", "n_embd", "block_size", "vocab_size"),
            "data": ("batch_tokens",),
            "eval": ("val_tokens", "sample_tokens"),
        },
        {"eval": ("every", "hellaswag_every", "sample_every")},
    )
    if not data.train or not data.val:
        raise ArgumentError("data.train or data.val is empty: give a glob, such as 'data/fineweb10B/*_train_*.bin'")
    if model.n_embd % model.n_head:
        raise ArgumentError(f"model.n_embd {model.n_embd} is not a multiple of model.n_head {model.n_head}")
    if model.vocab_size > 65536:
        raise ArgumentError(f"model.vocab_size is {model.vocab_size}: shards hold uint16 tokens, so 65536 at the most")
    check_probability("model.dropout", model.dropout)
    if data.micro_batch_size != "auto" and data.micro_batch_size < 1:
        raise ArgumentError(f"data.micro_batch_size is {data.micro_batch_size}: give a number above 0, or auto")


def check_common(config: Any, positive: Keys, not_negative: Keys) -> None:
    """Check the sections that every kind of run has, and that these keys of the others are numbers in range.

    Raises:
        ArgumentError: names the key, its value and the values that work.
    """
    optim = config.optim
    for keys_by_section, zero_allowed, words in (
        (positive, False, "above 0"),
        (POSITIVE, False, "above 0"),
        (not_negative, True, "0 or more"),
        (NOT_NEGATIVE, True, "0 or more"),
    ):
        for section, keys in keys_by_section.items():
            for key in keys:
                value = getattr(getattr(config, section), key)
                if value is None:
                    raise ArgumentError(f"{section}.{key} has no value: give a number {words}")
                if not math.isfinite(value) or value < 0 or (value == 0 and not zero_allowed):
                    raise ArgumentError(f"{section}.{key} is {value}: give a number {words}")
    for key, value in (
        ("optim.spike_window", optim.spike_window),
        ("train.timeout_seconds", config.train.timeout_seconds),
    ):
        if value > 10**9:
            raise ArgumentError(f"{key} is {value}: give a number up to 1000000000")
    if not config.run.dir:
        raise ArgumentError("run.dir is empty: give a directory, or leave it out")
    if config.train.seed >= 2**63:
        raise ArgumentError(f"train.seed is {config.train.seed}: give a number below 2^63")
    if not all(0 <= beta < 1 for beta in optim.betas):
        raise ArgumentError(f"optim.betas is {optim.betas}: give two numbers from 0 to below 1")
    if optim.min_lr > optim.max_lr:
        raise ArgumentError(f"optim.min_lr {optim.min_lr} is above optim.max_lr {optim.max_lr}: lower it")


def check_probability(key: str, value: float) -> None:
    """ArgumentError unless a key's value lies in [0, 1)."""
    if not 0 <= value < 1:
        raise ArgumentError(f"{key} is {value}: give a probability from 0 to below 1")


def sequences_per_rank(config: Config, world_size: int) -> int:
    """How many windows each process takes a step: batch_tokens / (block_size * world_size), a whole number.

    Raises:
        ArgumentError: batch_tokens does not divide; proposes the nearest values that do.
    """
    data, block_size = config.data, config.model.block_size
    micro = 1 if data.micro_batch_size == "auto" else data.micro_batch_size
    unit = micro * block_size * world_size
    if data.batch_tokens % unit:
        raise ArgumentError(
            f"data.batch_tokens {data.batch_tokens} is not a multiple of micro_batch_size {micro} x block_size "
            f"{block_size} x {world_size} processes = {unit}: take {nearest_multiples(data.batch_tokens, unit)}"
        )
    return data.batch_tokens // (block_size * world_size)


def nearest_multiples(value: int, unit: int) -> str:
    """The multiples of `unit` around a value that is none, in words; 0 is not among them."""
    below = value // unit * unit
    return " or ".join(str(multiple) for multiple in (below, below + unit) if multiple)


def save_config(config: Config, path: Path) -> None:
    """Write the configuration as YAML that `--config` reads; it appears whole."""
    plain = asdict(config)
    plain["optim"]["betas"] = list(config.optim.betas)
    atomic_write_text(path, yaml.safe_dump(plain, sort_keys=False))
