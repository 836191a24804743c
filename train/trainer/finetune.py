"""What both kinds of fine-tuning share: the model to begin with, what of it moves, and the parts of the run."""

import hashlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from prepare.common.cli import UserError
from prepare.common.files import file_sha256
from train.config.finetune import ClassifyConfig, FinetuneConfig, TuneConfig
from train.data.examples import ExampleLoader, Examples, fingerprint
from train.model.gpt import GPT
from train.model.lora import add_updates
from train.parallel.compile_ddp import compile_and_wrap_ddp
from train.parallel.device import autocast, precision_name
from train.parallel.world import World
from train.run import checkpoint
from train.run.metrics_log import MetricsLog
from train.run.run_dir import RunDir
from train.run.stop_request import StopRequest
from train.trainer.job import changeable_settings
from train.trainer.optim import build_optimizer
from train.trainer.trainer import Measures, Training
from train.weights.load_model import LoadedModel, load_model

MakeMonitor = Callable[[GPT, torch.autocast, MetricsLog], Measures]


def initial_model(spec: str) -> LoadedModel:
    """What `--init` names: whatever `--model` may name, but a classifier."""
    return load_model(spec, option="--init")


def identity(config: FinetuneConfig, base: LoadedModel, **options: Any) -> dict[str, Any]:
    """What decides how the run's data comes out: the file and its checksum, the tokenizer, and the options.

    Raises:
        UserError: the file is not there.
    """
    path = Path(config.data.train)
    try:
        digest = file_sha256(path)
    except OSError as failure:
        raise UserError(f"data.train {path} cannot be read ({failure.strerror}): name a file of examples") from None
    shares = {"val_share": config.data.val_share, "test_share": config.data.test_share, "seed": config.train.seed}
    vocabulary = base.tokenizer.describe()["sha256"]
    cut = {"block_size": base.model.config.block_size, "tokenizer": vocabulary}
    return {"file": path.name, "sha256": digest, **shares, **cut, **options}


def weights_sha256(model: GPT) -> str:
    """What tells a model from any other, wherever it lies: a sha256 over its weights."""
    digest = hashlib.sha256()
    for tensor in model.state_dict().values():
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()))
    return digest.hexdigest()


def freeze(model: GPT, tune: TuneConfig) -> None:
    """Let only the last tune.blocks layers learn, and what follows them: the final LayerNorm and a classifier's head.
    `all`: every parameter; 0: a classifier's head alone. With tune.lora_rank these layers' matrices stay as they are,
    and updates of that rank learn in their place.

    Raises:
        UserError: the model has not as many layers.
    """
    layers = model.config.n_layer
    blocks = layers if tune.blocks == "all" else tune.blocks
    if blocks > layers:
        raise UserError(f"tune.blocks is {blocks}, but the model has {layers} layers: lower it, or give all")
    last = range(layers - blocks, layers)
    if tune.lora_rank:
        for layer in last:
            add_updates(model.h[layer], tune.lora_rank)
        moving = r"score\.|.*\.lora_[ab]$"
    elif tune.blocks == "all":
        moving = ""
    else:
        moving = "|".join([r"score\.", *(rf"h\.{layer}\." for layer in last), *([r"ln_f\."] if blocks else [])])
    for name, parameter in model.named_parameters():
        parameter.requires_grad = re.match(moving, name) is not None


def assemble(
    config: FinetuneConfig,
    world: World,
    run: RunDir,
    stop: StopRequest,
    base: LoadedModel,
    raw: GPT,
    parts: dict[str, Examples],
    shares: np.ndarray,
    facts: dict[str, Any],
    make_monitor: MakeMonitor,
) -> Training:
    """The run with all of its parts, new or as its newest checkpoint left it, and said what it is.

    Args:
        base: the model to begin with; a run goes on with no other.
        shares: see ExampleLoader.
        facts: what a checkpoint says of the model besides.

    Raises:
        UserError: there is nothing to train on, or the run cannot be gone on with.
    """
    data, train = config.data, parts["train"]
    if config.eval.patience and not len(parts["val"]):
        raise UserError(
            f"data.val_share {data.val_share} of so few examples is none, and eval.patience needs some: raise it, or "
            "set eval.patience 0"
        )
    weights = {"data__class_weights": data.class_weights} if isinstance(config, ClassifyConfig) else {}
    moving = {"blocks": config.tune.blocks, "lora_rank": config.tune.lora_rank}
    facts = facts | {
        "tokenizer": base.tokenizer.describe(),
        "init": weights_sha256(base.model),
        "data": fingerprint(parts),
        "batches": {"examples": data.batch_examples, "seed": config.train.seed, **moving},
        "settings": changeable_settings(config, tune__dropout=config.tune.dropout, **weights),
    }
    optimizer = build_optimizer(raw, config.optim, sharded=config.train.shard_optimizer and world.size > 1)
    resumed = checkpoint.resume(run.path, raw, optimizer, facts)
    model = compile_and_wrap_ddp(raw, config.train.compile, world)
    pin = world.device.type == "cuda"
    loader = ExampleLoader(
        train, shares, data.batch_examples, data.micro_batch_size, world.rank, world.size, config.train.seed, pin
    )
    context = autocast(world.device, config.train.precision)
    log = MetricsLog(run.path, config, resumed.step, 0, world, loader.tokens_read)
    monitor = make_monitor(raw, context, log)
    if not world.all_equal(resumed.step, facts["data"]["sha256"]):
        raise UserError("the processes see different checkpoints or data: put run.dir on a file system that all share")
    run.begin(config, resumed.damaged)
    moved = sum(parameter.numel() for parameter in raw.parameters() if parameter.requires_grad)
    steps = config.train.max_steps
    world.print(
        f"model: {raw.num_parameters():,} parameters, {moved:,} of them move, {precision_name(context)}, "
        f"{world.describe()}\n"
        f"data:  {' + '.join(f'{len(part):,} {name}' for name, part in parts.items())} examples; {steps:,} steps of "
        f"{data.batch_examples} are {loader.epoch_of(steps):.2f} epochs"
        + (f"\ngoing on from step {resumed.step:,}" if resumed.step else "")
    )
    return Training(
        config=config,
        world=world,
        run=run,
        stop=stop,
        log=log,
        raw=raw,
        model=model,
        optimizer=optimizer,
        context=context,
        loader=loader,
        facts=facts,
        monitor=monitor,
        resumed=resumed,
    )


def best_model(t: Training, classifier: bool) -> LoadedModel:
    """The model that the run leaves; with eval.patience the one of the lowest validation loss, to which it goes back.
    On rank 0, once the run is complete."""
    if t.config.eval.patience and (best := checkpoint.roll_back_to_best(t.run.path, t.log.val_losses)):
        step = checkpoint.step_of(best)
        t.world.print(f"best: step {step}, validation loss {t.log.val_losses[step]:.4f}")
    return load_model(str(t.run.path), t.world.device, classifier=classifier)
