"""What both kinds of fine-tuning share: which parameters are trained, and what identifies a run and its data."""

import hashlib
import re
from pathlib import Path
from typing import Any

import numpy as np

from prepare.common.cli import UserError
from prepare.common.files import file_sha256
from train.config.finetune import FinetuneConfig, TuneConfig
from train.data.examples import ExampleLoader, Examples, fingerprint
from train.model.lora import add_lora
from train.model.transformer import Transformer
from train.parallel.device import precision_name
from train.parallel.world import World
from train.run import checkpoint
from train.trainer.trainer import Trainer
from train.weights.load_model import LoadedModel, load_model


def data_identity(config: FinetuneConfig, base: LoadedModel, **options: Any) -> dict[str, Any]:
    """What determines a run's examples: the checksum of the input file, the tokenizer, and the options. UserError if
    the file cannot be read."""
    path = Path(config.data.train)
    try:
        digest = file_sha256(path)
    except OSError as failure:
        raise UserError(f"data.train {path} cannot be read ({failure.strerror}): name a file of examples") from None
    shares = {"val_share": config.data.val_share, "test_share": config.data.test_share, "seed": config.train.seed}
    vocabulary = base.tokenizer.describe()["sha256"]
    encoding = {"block_size": base.model.config.block_size, "tokenizer": vocabulary}
    return {"file": path.name, "sha256": digest, **shares, **encoding, **options}


def run_identity(config: FinetuneConfig, base: LoadedModel, splits: dict[str, Examples]) -> dict[str, Any]:
    """What must be the same when a fine-tuning run is resumed: see Trainer."""
    trainable = {"blocks": config.tune.blocks, "lora_rank": config.tune.lora_rank}
    return {
        "tokenizer": base.tokenizer.describe(),
        "init": weights_sha256(base.model),
        "data": fingerprint(splits),
        "batches": {"examples": config.data.batch_examples, "seed": config.train.seed, **trainable},
    }


def weights_sha256(model: Transformer) -> str:
    """A sha256 over a model's weights, the same wherever it was loaded from."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()


def freeze(model: Transformer, tune: TuneConfig) -> None:
    """Make only the last tune.blocks layers trainable, with what follows them: the final norm, and a classifier's or
    modern's untied head. `all`: every parameter; 0: only a classifier's head. With tune.lora_rank these layers are
    frozen too, and low-rank updates of their matrices are trained instead (LoRA). UserError if the model has fewer
    layers."""
    layers = model.config.n_layer
    blocks = layers if tune.blocks == "all" else tune.blocks
    if blocks > layers:
        raise UserError(f"tune.blocks is {blocks}, but the model has {layers} layers: lower it, or give all")
    last = range(layers - blocks, layers)
    if tune.lora_rank:
        for layer in last:
            add_lora(model.h[layer], tune.lora_rank)
        trainable = r"score\.|.*\.lora_[ab]$"
    elif tune.blocks == "all":
        trainable = ""
    else:
        following = [r"ln_f\.", r"lm_head\."] if blocks else []
        trainable = "|".join([r"score\.", *following, *(rf"h\.{layer}\." for layer in last)])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = re.match(trainable, name) is not None


def example_loader(config: FinetuneConfig, world: World, train: Examples, shares: np.ndarray) -> ExampleLoader:
    """This rank's data loader of the training examples; `shares`: see ExampleLoader."""
    data, pin = config.data, world.device.type == "cuda"
    sizes = data.batch_examples, data.micro_batch_size, world.rank, world.size
    return ExampleLoader(train, shares, *sizes, config.train.seed, pin)


def print_summary(trainer: Trainer, splits: dict[str, Examples]) -> None:
    """Print the model, the data and the steps of the run that is about to start."""
    config, world, model, loader = trainer.config, trainer.world, trainer.model, trainer.loader
    trainable = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    steps = config.train.max_steps
    world.print(
        f"model: {model.num_parameters():,} parameters, {trainable:,} trainable, {precision_name(trainer.context)}, "
        f"{world.describe()}\n"
        f"data:  {' + '.join(f'{len(split):,} {name}' for name, split in splits.items())} examples; {steps:,} steps of "
        f"{config.data.batch_examples} are {loader.epoch_of(steps):.2f} epochs"
        + (f"\nresumed at step {trainer.step:,}" if trainer.step else "")
    )


def best_model(trainer: Trainer, classifier: bool) -> LoadedModel:
    """Load the model of a finished run, on rank 0; with eval.patience, first roll back to the checkpoint that has the
    lowest validation loss."""
    losses, path = trainer.log.val_losses, trainer.run.path
    if trainer.config.eval.patience and (best := checkpoint.roll_back_to_best(path, losses)):
        step, path = checkpoint.step_of(best), best
        trainer.world.print(f"best: step {step}, validation loss {losses[step]:.4f}")
    return load_model(str(path), trainer.world.device, classifier=classifier)
