"""The configurations of fine-tuning: pretraining's sections where they mean the same, and new ones."""

from dataclasses import dataclass, field
from typing import Literal

from prepare.common.cli import ArgumentError
from prepare.finetuning.instructions import Template
from train.config.parsing import check_not_negative, check_positive, check_probability, nearest_multiples, read_config
from train.config.pretrain import CheckpointConfig, LogConfig, OptimConfig, RunConfig, TrainConfig, check_common


@dataclass(frozen=True)
class TuneConfig:
    """Which parameters are trained.

    Args:
        blocks: the number of last transformer layers to train, with what follows them; all is the whole model; 0 is a
            classifier's head alone
        lora_rank: LoRA: train updates of this rank in place of the matrices of these layers; 0 turns LoRA off
        dropout: probability, after the embeddings, the attention and each residual branch
    """

    blocks: int | Literal["all"] = "all"
    lora_rank: int = 0
    dropout: float = 0.1


@dataclass(frozen=True)
class ExampleData:
    """The examples, and how many a step takes.

    Args:
        train: the file of examples
        encoding: of the file; null is UTF-8, or what a byte-order mark states
        val_share: share of the examples (of each label) that is held out for validation and early stopping
        test_share: share of the examples (of each label) that is held out for the final report
        batch_examples: examples in one optimizer step, over all processes and micro-batches
        micro_batch_size: examples in one forward and backward pass of a process
    """

    train: str = ""
    encoding: str | None = None
    val_share: float = 0.1
    test_share: float = 0.1
    batch_examples: int = 16
    micro_batch_size: int = 8


@dataclass(frozen=True)
class LabelledData(ExampleData):
    """Labelled texts.

    Args:
        train: a .tsv, .csv, .jsonl, .json or .parquet file; others are read as label<TAB>text
        text: the column of the texts; in a file without column names the second
        label: the column of the labels; in a file without column names the first
        class_weights: balanced gives each label the same weight in the loss, however rare it is
    """

    test_share: float = 0.2
    batch_examples: int = 32
    micro_batch_size: int = 16
    text: str = "text"
    label: str = "label"
    class_weights: Literal["none", "balanced"] = "none"


@dataclass(frozen=True)
class InstructionData(ExampleData):
    """Instructions with answers, or conversations.

    Args:
        train: a .json, .jsonl or .parquet file of {instruction, input, output}, {prompt, completion}, {messages} ...
    """


@dataclass(frozen=True)
class ClassifyEval:
    """Evaluations during training.

    Args:
        every: interval in steps of the validation; 0 turns it off
        patience: early stopping: this many validations in a row without a lower loss end the run, which then rolls
            back to its best checkpoint; 0 trains to the last step, and keeps the last checkpoint
    """

    every: int = 20
    patience: int = 5


@dataclass(frozen=True)
class InstructEval(ClassifyEval):
    """Evaluations during training.

    Args:
        sample_every: interval in steps of the sampled answers; 0 turns them off
        samples: the number of held-out instructions to answer, always the first ones
        sample_tokens: the most tokens in an answer
    """

    sample_every: int = 50
    samples: int = 3
    sample_tokens: int = 64


@dataclass(frozen=True)
class _Common:
    optim: OptimConfig = field(default_factory=OptimConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)
    train: TrainConfig = field(default_factory=TrainConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    log: LogConfig = field(default_factory=LogConfig)
    run: RunConfig = field(default_factory=RunConfig)
    init: str = field(
        default_factory=lambda: "gpt2",
        metadata={"help": "the model to start from: a run, a checkpoint, a Hugging Face directory, or a hub name"},
    )


@dataclass(frozen=True)
class ClassifyConfig(_Common):
    """The configuration of a classifier's run."""

    data: LabelledData = field(default_factory=LabelledData)
    eval: ClassifyEval = field(default_factory=ClassifyEval)


@dataclass(frozen=True)
class InstructConfig(_Common):
    """The configuration of an instruction follower's run."""

    data: InstructionData = field(default_factory=InstructionData)
    template: Template = field(default_factory=Template)
    eval: InstructEval = field(default_factory=InstructEval)


FinetuneConfig = ClassifyConfig | InstructConfig


def load_classify_config(argv: list[str] | None, opening: str) -> ClassifyConfig:
    """The configuration of a classifier's run; see train.config.parsing.read_config."""
    return read_config(argv, opening, ClassifyConfig, "finetune_classify.yaml", check_config)


def load_instruct_config(argv: list[str] | None, opening: str) -> InstructConfig:
    """The configuration of an instruction follower's run; see train.config.parsing.read_config."""
    return read_config(argv, opening, InstructConfig, "finetune_instruct.yaml", check_config)


def check_config(config: FinetuneConfig) -> None:
    """Refuse values that no run can use. ArgumentError names the key, its value and the values that work."""
    check_common(config)
    check_positive(config, ("data.batch_examples", "data.micro_batch_size"))
    check_not_negative(config, ("eval.every", "eval.patience", "tune.lora_rank"))
    check_probability(config, "tune.dropout", "data.val_share", "data.test_share")
    if isinstance(config, InstructConfig):
        check_positive(config, ("eval.samples", "eval.sample_tokens"))
        check_not_negative(config, ("eval.sample_every",))
        check_template(config.template)
    data, blocks = config.data, config.tune.blocks
    if config.train.init_from:
        raise ArgumentError(f"train.init_from is {config.train.init_from}: fine-tuning starts from --init MODEL")
    if not data.train:
        raise ArgumentError("data.train is empty: name the file of examples, --data.train FILE")
    if data.val_share + data.test_share >= 1:
        raise ArgumentError(
            f"data.val_share {data.val_share} and data.test_share {data.test_share} leave no training data: lower them"
        )
    if blocks != "all" and blocks < (1 if isinstance(config, InstructConfig) else 0):
        raise ArgumentError(f"tune.blocks is {blocks}: give all, or a number of layers")
    if config.tune.lora_rank and not blocks:
        raise ArgumentError(f"tune.lora_rank is {config.tune.lora_rank}, but tune.blocks 0 has no layers: raise it")
    if config.eval.patience and not (config.eval.every and data.val_share):
        raise ArgumentError("eval.patience needs validations: set eval.every and data.val_share, or eval.patience 0")


def check_template(template: Template) -> None:
    """ArgumentError unless {} stands where a message goes, and not in the assistant's part, which an answer follows."""
    for key, value in template.describe().items():
        if key == "assistant" and "{}" in value:
            raise ArgumentError(f"template.assistant is {value!r}: take {{}} out, the answer follows it")
        if key != "assistant" and "{}" not in value:
            raise ArgumentError(f"template.{key} is {value!r}: put {{}} where the message goes")


def check_batch(config: FinetuneConfig, world_size: int) -> None:
    """ArgumentError, with the nearest values that work, unless the batch divides evenly among the ranks."""
    batch, unit = config.data.batch_examples, config.data.micro_batch_size * world_size
    if batch % unit:
        raise ArgumentError(
            f"data.batch_examples {batch} is not a multiple of micro_batch_size {config.data.micro_batch_size} x "
            f"{world_size} processes = {unit}: take {nearest_multiples(batch, unit)}"
        )
