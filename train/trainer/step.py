"""One optimizer step: gradients accumulated over the micro-batches, averaged over the ranks, clipped once, applied."""

import hashlib
from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel as DDP

MicroBatch = tuple[Tensor, Tensor]  # inputs and targets, int64 (B, T) each
MicroBatches = list[MicroBatch]  # of one rank's step


def train_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    micro_batches: Sequence[MicroBatch],
    context: torch.autocast,
    lr: float,
    grad_clip: float,
    seeds: Sequence[int],
    skip_above: float = float("inf"),
    mark: Callable[[str], None] = lambda _: None,
    weights: Sequence[float] | None = None,
) -> tuple[Tensor, Tensor]:
    """Move the model by one step, unless the loss of any rank or the gradient is not finite: then nothing moves.

    Args:
        model: maps (B, T) inputs and targets to the mean loss; may be compiled and wrapped in DDP.
        micro_batches: this rank's inputs and targets, int64 (B, T) each, on the CPU.
        context: the precision of the forward pass.
        lr: learning rate of this step.
        grad_clip: largest global gradient norm; 0 does not clip.
        seeds: one for each micro-batch, of its dropout. They name the windows, not the rank, so that with the same
            micro_batch_size the masks are the same for every world size, and after a resume.
        skip_above: a gradient of a larger norm moves nothing either.
        mark: called with each phase's name as it begins: forward, backward, optimizer, end; bench.py times them.
        weights: one for each micro-batch, what its mean loss counts; None: all the same, and 1 together.

    Returns:
        this rank's part of the loss, whose mean over the ranks is the batch's, and the norm of the whole gradient
        before clipping, float32 scalars on the device. The norm is that of the averaged gradient, the same on every
        rank: all of them skip a step, or none.
    """
    device = next(model.parameters()).device
    loss = torch.zeros((), device=device)
    weights = weights or [1 / len(micro_batches)] * len(micro_batches)
    for number, (inputs, targets) in enumerate(micro_batches):
        x, y = inputs.to(device, non_blocking=True), targets.to(device, non_blocking=True)
        torch.manual_seed(seeds[number])
        mark("forward")
        # Gradients are exchanged once, behind the last micro-batch; DDP decides that in the forward pass.
        last = number == len(micro_batches) - 1
        with model.no_sync() if isinstance(model, DDP) and not last else nullcontext():
            with context:
                micro_loss = model(x, y) * weights[number]
            mark("backward")
            # a loss that is not finite makes the gradient of all ranks so
            micro_loss.backward(torch.where(micro_loss.detach().isfinite(), 1.0, torch.nan))
        loss += micro_loss.detach()
    mark("optimizer")
    grad_norm = clip_gradients(model.parameters(), grad_clip or float("inf"))
    if torch.isfinite(grad_norm) and grad_norm <= skip_above:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    mark("end")
    return loss, grad_norm


def clip_gradients(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """Scale all gradients together, so that their norm is at most max_norm; the norm before, a float32 scalar.

    As nn.utils.clip_grad_norm_, which adds the squares of a whole tensor in turn in float32 on a CPU, and so loses
    small ones behind large ones: the norm of GPT-2 124M is 6e-5 off, with some heavy rows in the embedding 8e-3. Here
    a CPU takes the norm of each row, and adds those in float64 (1e-7, in 3% more time). A GPU adds in a tree anyway.
    """
    parameters = list(parameters)
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    rows = [torch.linalg.vector_norm(g, dim=-1).double() if g.device.type == "cpu" else g for g in gradients]
    norm = nn.utils.get_total_norm(rows).float()
    nn.utils.clip_grads_with_norm_(parameters, max_norm, norm)
    return norm


def dropout_seeds(seed: int, first_window: int, micro_batch_size: int, n: int) -> list[int]:
    """Seeds for n micro-batches: a function of the run's seed and the number of each one's first window.

    Hashed, since torch's generator on the CPU looks at the low 32 bits alone.
    """
    windows = range(first_window, first_window + n * micro_batch_size, micro_batch_size)
    digests = (hashlib.blake2b(f"{seed} {window}".encode(), digest_size=8).digest() for window in windows)
    return [int.from_bytes(digest) for digest in digests]
