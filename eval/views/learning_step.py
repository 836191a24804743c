"""View 7: one step of learning: the gradient of the run's next batch, and what the optimizer changes.

The step is taken by the trainer's own functions on a copy of the model; nothing is written.
"""

import copy
import math
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from eval.common.open_model import DIVERGED, evaluating
from eval.views.subject import Subject, Unavailable, pretraining_config
from prepare.common.cli import UserError
from prepare.tokens.shards import find_shards
from train.data.loader import MicroBatch, Mixture, WindowLoader
from train.model.transformer import Transformer
from train.parallel.device import autocast, find_micro_batch_size, precision_name
from train.run.checkpoint import TRAIN_STATE, read_meta
from train.run.resume import load_moments
from train.trainer.optim import build_optimizer, learning_rate
from train.trainer.step import train_step

VECTORS = "biases and norms"


def learning_step(subject: Subject) -> dict[str, Any]:
    """Take the step that the run took, or would take, from this checkpoint, on a copy of its model.

    Of the batch it reads the first micro-batch that fits in memory. Where the run ends, with a learning rate of 0 or
    after its last step, the rate is the last one above 0.

    Returns:
        matrices: of each matrix `layer` (None outside the layers), `name`, `gradient` (norm, before clipping) and
            `change` (norm of the update over norm of the weights; None of zeros); and of a layer's vectors together.
        grad_norm: of all gradients together, before clipping to `grad_clip` (0: no clipping).
        lr, optimizer: the learning rate, and adamw or muon.
        tokens, batch_tokens: that were read here, and of the run's step.
        before, after: the loss of the batch, in nats, without dropout.
        ends: whether the run ends here.
    """
    model, checkpoint = subject.loaded.model, subject.loaded.checkpoint
    if checkpoint is None:
        raise Unavailable("Only a checkpoint of a run holds the optimizer's state, from which the next step is taken.")
    config = pretraining_config(checkpoint.parents[1])
    try:
        meta = read_meta(checkpoint)
        sources = {name: find_shards(source.files) for name, source in config.data.sources.items()}
        mixture = Mixture(sources, config.data, model.config, config.train.seed)
    except UserError as reason:
        raise Unavailable(f"The optimizer's state or the training data of this run is not here: {reason}.") from None
    if mixture.fingerprint() != meta["data"]:
        raise Unavailable("The training shards are other ones now than this run has read.")

    # The model and the optimizer as they were saved
    device = next(model.parameters()).device
    context = autocast(device, config.train.precision)
    model = copy.deepcopy(model).train()
    optimizer = build_optimizer(model, config.optim, precision_name(context) == "bf16")
    state = torch.load(checkpoint / TRAIN_STATE, map_location="cpu", weights_only=True)
    load_moments(optimizer, state["optimizer"])
    old = [parameter.detach().clone() for parameter in model.parameters()]

    # The batch
    per_step = config.data.batch_tokens // model.config.block_size
    micro = find_micro_batch_size(model, per_step, device, config.train.precision)
    batch = WindowLoader(mixture, per_step, micro, 0, 1).micro_batches(meta["step"])[0]._replace(weight=1.0)

    # The step
    gradients: list[Tensor] = []

    def keep_gradients(phase: str) -> None:
        if phase == "optimizer":  # before clipping
            gradients.extend(parameter.grad.clone() for parameter in model.parameters())

    step, last = meta["step"], config.train.max_steps
    rates = (learning_rate(at, config.optim, last) for at in range(min(step, last - 1), -1, -1))
    lr = next(filter(None, rates), config.optim.max_lr)
    before = _loss(model, batch, context)
    with torch.random.fork_rng():  # train_step seeds the dropout
        _, grad_norm = train_step(model, optimizer, [batch], context, lr, config.optim.grad_clip, keep_gradients)
    if not math.isfinite(grad_norm):
        raise UserError(DIVERGED)
    return {
        "matrices": compare(model, old, gradients),
        "grad_norm": grad_norm.item(),
        "grad_clip": config.optim.grad_clip,
        "lr": lr,
        "optimizer": config.optim.optimizer,
        "tokens": batch.targets.numel(),
        "batch_tokens": config.data.batch_tokens,
        "before": before,
        "after": _loss(model, batch, context),
        "ends": step >= last or learning_rate(step, config.optim, last) == 0,
    }


@torch.no_grad()
def _loss(model: Transformer, batch: MicroBatch, context: torch.autocast) -> float:
    device = next(model.parameters()).device
    with evaluating(model), context:
        return model(batch.inputs.to(device), batch.targets.to(device)).item()


def compare(model: Transformer, old: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[dict[str, Any]]:
    """The `matrices` of learning_step, from the parameters' values before the step and their gradients."""
    squares: dict[tuple[int | None, str], Tensor] = {}  # of gradient, change and weights, float64 (3,)
    for (name, parameter), before, gradient in zip(model.named_parameters(), old, gradients, strict=True):
        layer, part = re.fullmatch(r"(?:h\.(\d+)\.)?(.*)\.\w+", name).groups()
        key = (None if layer is None else int(layer), part if parameter.dim() > 1 else VECTORS)
        norms = [x.detach().double().square().sum().cpu() for x in (gradient, parameter - before, before)]
        squares[key] = squares.get(key, 0) + torch.stack(norms)
    rows = []
    for (layer, name), total in squares.items():
        gradient, change, weight = total.sqrt().tolist()
        rows.append({"layer": layer, "name": name, "gradient": gradient, "change": change / weight if weight else None})
    return rows
