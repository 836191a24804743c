"""The configuration of pretraining: one frozen dataclass per section.

Only commands and the Trainer see the whole Config; functions take their own section or plain values.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from prepare.common.cli import ArgumentError
from prepare.tokens.tokenizer import GPT2_VOCAB_SIZE
from train.config.parsing import check_not_negative, check_positive, check_probability, nearest_multiples, read_config

Component = Literal[
    "rotary", "qk_norm", "embed_norm", "rms_norm", "norm_weights", "relu2", "zero_init", "untied_head", "softcap"
]


@dataclass(frozen=True)
class ModelConfig:
    """The shape of the model.

    Args:
        n_layer: transformer layers
        n_head: attention heads a layer
        n_embd: width, a multiple of n_head
        block_size: the longest context, in tokens
        vocab_size: token ids are below this; 0: as many as the data's tokenizer has (GPT-2's: 50257)
        dropout: probability, after the embeddings, the attention and each residual branch
        bias: of gpt2: biases in the linear layers and LayerNorms, as in OpenAI's models
        architecture: gpt2, or modern: rotary positions, QK norm, RMSNorm, squared ReLU, no biases, residual projections
            initialized to zero, an untied output head, soft-capped logits
        without: parts of modern to leave out, replaced by GPT-2's, such as '[rotary, relu2]'; of norm_weights, by none
    """

    n_layer: int = 12
    n_head: int = 12
    n_embd: int = 768
    block_size: int = 1024
    vocab_size: int = 0
    dropout: float = 0.0
    bias: bool = True
    architecture: Literal["gpt2", "modern"] = "gpt2"
    without: list[Component] = field(default_factory=list)


@dataclass(frozen=True)
class SourceConfig:
    """A named source of training data.

    Args:
        files: glob, or list of globs, of its shards
        weight: its part of the windows, relative to the other weights
    """

    files: str | list[str]
    weight: float = 1.0


@dataclass(frozen=True)
class DataConfig:
    """The token shards, and how many tokens a step takes.

    Args:
        train: glob, or list of globs, of the training shards; or named sources, such as
            '{web: {files: data/web/*_train_*.bin, weight: 0.7}, code: {files: data/code/*_train_*.bin, weight: 0.3}}'
        val: glob, or list of globs, of the validation shards; or named ones, '{web: GLOB, code: GLOB}', with a loss
            for each and their mean
        batch_tokens: tokens in one optimizer step, over all processes and micro-batches
        micro_batch_size: sequences in one forward and backward pass of a process; auto finds what fits
        shuffle: shuffle the windows of each shard, and the shards, again in each epoch
    """

    train: str | list[str] | dict[str, SourceConfig] = "data/fineweb10B/fineweb_train_*.bin"
    val: str | list[str] | dict[str, str | list[str]] = "data/fineweb10B/fineweb_val_*.bin"
    batch_tokens: int = 524288
    micro_batch_size: int | Literal["auto"] = "auto"
    shuffle: bool = True

    @property
    def sources(self) -> dict[str, SourceConfig]:
        """The training sources by name; plain globs are one source without a name."""
        return self.train if isinstance(self.train, dict) else {"": SourceConfig(self.train)}

    @property
    def val_globs(self) -> dict[str, str | list[str]]:
        """The globs of the validation shards by name; plain globs have none."""
        return self.val if isinstance(self.val, dict) else {"": self.val}


@dataclass(frozen=True)
class OptimConfig:
    """The optimizer and its schedule.

    Args:
        optimizer: muon orthogonalizes the updates of the layers' matrices; embeddings, head and vectors stay with AdamW
        max_lr: learning rate at the end of the warmup
        embedding_lr: max_lr of the embeddings, on the same schedule (min_lr in proportion); 0 takes max_lr
        head_lr: the same for an untied output head
        vector_lr: the same for biases and the weights of norms
        min_lr: learning rate of the last step, unless schedule is constant or the run is no longer than the warmup
        warmup_steps: steps of linear warmup
        schedule: what follows the warmup; wsd is constant, then falls linearly to min_lr
        cooldown: share of train.max_steps, the last ones, in which wsd falls
        weight_decay: on matrices and embeddings only
        betas: AdamW's
        eps: AdamW's
        grad_clip: largest global gradient norm; 0 turns clipping off
    """

    optimizer: Literal["adamw", "muon"] = "adamw"
    max_lr: float = 6e-4
    embedding_lr: float = 0.0
    head_lr: float = 0.0
    vector_lr: float = 0.0
    min_lr: float = 0.0
    warmup_steps: int = 700
    schedule: Literal["cosine", "linear", "constant", "wsd"] = "cosine"
    cooldown: float = 0.2
    weight_decay: float = 0.1
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = 1e-8
    grad_clip: float = 1.0


@dataclass(frozen=True)
class TrainConfig:
    """How long to train, and on what.

    Args:
        max_steps: optimizer steps in the run
        seed: of the initial weights, the data order and the dropout
        device: auto takes the GPU when there is one
        precision: of the matrix products; auto and bf16 take bf16 where the device has it, and fp32 elsewhere
        compile: use torch.compile
        recompute: activation checkpointing: store only each layer's input, and compute the rest again in the backward
            pass; less memory for more time
        shard_optimizer: each process keeps only its share of the optimizer's state (ZeRO-1)
        init_from: the model whose weights a new run starts from, named as for --model; empty starts from random ones
        timeout_seconds: how long a process may keep the others waiting before the run ends with an error that names it
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
    """Evaluations during training. An interval is in steps; 0 turns the evaluation off.

    Args:
        every: interval of the validation loss
        val_tokens: tokens of the validation loss, always the same first ones of each named source
        hellaswag_every: interval of HellaSwag, whose tasks prepare/eval_sets.py downloads
        sample_every: interval of the generated samples
        sample_prompt: the text that they continue
        sample_tokens: the length of each, in tokens
    """

    every: int = 250
    val_tokens: int = 10485760
    hellaswag_every: int = 250
    sample_every: int = 250
    sample_prompt: str = "Hello, I'm a language model,"
    sample_tokens: int = 64


@dataclass(frozen=True)
class CheckpointConfig:
    """When to save the run.

    Args:
        every: interval in steps; 0 saves at the end only
        keep: the number of latest checkpoints to keep, in addition to the one with the best validation loss
        keep_every: never delete checkpoints at multiples of this, in steps, itself a multiple of `every`; 0: none
        keep_steps: save after these steps too, and never delete those checkpoints
        margin_seconds: stop and save this long before Slurm's time limit, or twice the slowest save so far
    """

    every: int = 500
    keep: int = 2
    keep_every: int = 0
    keep_steps: list[int] = field(default_factory=list)
    margin_seconds: int = 120


@dataclass(frozen=True)
class LogConfig:
    """What to log.

    Args:
        every: interval in steps of the train rows and console lines; 0 turns them off
        tensorboard: write an event file into the run directory, for `tensorboard --logdir runs`
        wandb: auto is online if wandb is logged in, and disabled otherwise
        wandb_project: the project there
    """

    every: int = 1
    tensorboard: bool = True
    wandb: Literal["auto", "online", "offline", "disabled"] = "auto"
    wandb_project: str = "gpt2-pretraining"


@dataclass(frozen=True)
class RunConfig:
    """The run directory.

    Args:
        dir: runs/<name of the config file> when not given
        fresh: refuse a directory that already holds a run, instead of resuming it
        branch: start from a copy of this checkpoint of another run (weights, optimizer, step, metrics),
            RUN/checkpoints/step_XXXXXXXX
    """

    dir: str | None = None
    fresh: bool = False
    branch: str = ""


@dataclass(frozen=True)
class PretrainRunConfig(RunConfig):
    """The run directory, and the dry run.

    Args:
        dry: take a few steps, print predicted time, memory and energy, and exit; nothing is kept
        price_per_hour: of the whole machine or allocation, for the cost that a dry run prints; 0: not given
        fit: the sweep.json of a ladder of sizes (train/sweep.py), for the final loss that a dry run predicts
    """

    dry: bool = False
    price_per_hour: float = 0.0
    fit: str = ""


@dataclass(frozen=True)
class Config:
    """The configuration of a pretraining run."""

    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: PretrainRunConfig = field(default_factory=PretrainRunConfig)


def load_config(argv: list[str] | None, opening: str) -> Config:
    """The configuration of a pretraining run; see read_config. Without `--config` it is gpt2_124m.yaml."""
    return read_config(argv, opening, Config, "gpt2_124m.yaml", check_config)


def check_config(config: Config) -> None:
    """Refuse values that no run can use, before anything is read or built. ArgumentError names the key, its value and
    the values that work."""
    model, data = config.model, config.data
    check_positive(config, (f"model.{name}" for name in ("n_layer", "n_head", "n_embd", "block_size")))
    check_positive(config, ("data.batch_tokens", "data.micro_batch_size", "eval.val_tokens", "eval.sample_tokens"))
    check_not_negative(config, ("model.vocab_size", "eval.every", "eval.hellaswag_every", "eval.sample_every"))
    check_not_negative(config, ("run.price_per_hour",))
    check_probability(config, "model.dropout")
    check_common(config)
    globs = {f"data.train.{name}": source.files for name, source in data.sources.items()}
    globs |= {f"data.val.{name}": files for name, files in data.val_globs.items()}
    for key, files in ((key.rstrip("."), files) for key, files in globs.items()):
        if not files:
            raise ArgumentError(f"{key} is empty: give a glob, such as 'data/fineweb10B/*_train_*.bin'")
        if str(files).startswith("{"):  # jsonargparse takes what it cannot read as a dict for a glob
            raise ArgumentError(f"{key} {files}: --help shows how sources are named; quote globs, a space after each :")
    for name, source in data.sources.items():
        if not source.weight > 0:
            raise ArgumentError(f"data.train.{name}.weight is {source.weight}: give a number above 0")
    if model.n_embd % model.n_head:
        raise ArgumentError(f"model.n_embd {model.n_embd} is not a multiple of model.n_head {model.n_head}")
    head_size = model.n_embd // model.n_head
    if head_size % 2 and model.architecture == "modern" and "rotary" not in model.without:
        raise ArgumentError(f"model.n_embd / model.n_head is {head_size}: rotary positions take an even head size")
    if model.without and model.architecture != "modern":
        raise ArgumentError(f"model.without is {model.without}: only model.architecture modern has these parts")
    if model.vocab_size > 65536:
        raise ArgumentError(f"model.vocab_size is {model.vocab_size}: shards hold uint16 tokens, so give 65536 or less")


def check_common(config: Any) -> None:
    """Check the sections that pretraining and fine-tuning share. ArgumentError names the key, its value and the values
    that work."""
    optim = config.optim
    check_positive(config, ("optim.max_lr", "optim.eps", "train.max_steps", "train.timeout_seconds", "checkpoint.keep"))
    check_not_negative(config, ("optim.min_lr", "optim.warmup_steps", "optim.weight_decay", "optim.grad_clip"))
    check_not_negative(config, ("optim.embedding_lr", "optim.head_lr", "optim.vector_lr"))
    check_not_negative(config, ("train.seed", "checkpoint.every", "checkpoint.keep_every", "checkpoint.margin_seconds"))
    check_not_negative(config, ("log.every",))
    if optim.min_lr > optim.max_lr:
        raise ArgumentError(f"optim.min_lr {optim.min_lr} is above optim.max_lr {optim.max_lr}: lower it")
    every, keep_every = config.checkpoint.every, config.checkpoint.keep_every
    if keep_every and (not every or keep_every % every):
        raise ArgumentError(f"checkpoint.keep_every {keep_every} is not a multiple of checkpoint.every {every}")
    if not 0 < optim.cooldown <= 1:
        raise ArgumentError(f"optim.cooldown is {optim.cooldown}: give a share above 0, up to 1")
    if not config.run.dir:
        raise ArgumentError("run.dir is empty: give a directory, or leave it out")


def with_vocab_size(config: Config, tokenizer: Mapping[str, Any] | None) -> Config:
    """The configuration with model.vocab_size: if it is 0, that of the data's tokenizer, without one GPT-2's."""
    size = config.model.vocab_size or (tokenizer["vocab_size"] if tokenizer else GPT2_VOCAB_SIZE)
    return replace(config, model=replace(config.model, vocab_size=size))


def sequences_per_rank(config: Config, world_size: int) -> int:
    """The number of windows each process takes per step: batch_tokens / (block_size * world_size), an integer.
    ArgumentError, with the nearest values that work, if batch_tokens does not divide evenly."""
    data, block_size = config.data, config.model.block_size
    micro = 1 if data.micro_batch_size == "auto" else data.micro_batch_size
    unit = micro * block_size * world_size
    if data.batch_tokens % unit:
        raise ArgumentError(
            f"data.batch_tokens {data.batch_tokens} is not a multiple of micro_batch_size {micro} x block_size "
            f"{block_size} x {world_size} processes = {unit}: take {nearest_multiples(data.batch_tokens, unit)}"
        )
    return data.batch_tokens // (block_size * world_size)
