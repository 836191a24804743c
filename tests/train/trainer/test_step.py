"""One optimizer step: gradient accumulation, clipping, skipping, dropout seeds, and one all-reduce."""

import copy
import math

import pytest
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP

from train.config.pretrain import ModelConfig, OptimConfig
from train.data.loader import MicroBatch, dropout_seeds
from train.model.gpt import GPT
from train.parallel.device import autocast
from train.trainer.optim import build_optimizer
from train.trainer.step import train_step

CONFIG = ModelConfig(n_layer=2, n_head=2, n_embd=32, block_size=16, vocab_size=50)
FP32 = autocast(torch.device("cpu"), "fp32")


def build(dropout: float = 0.0) -> tuple[GPT, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = GPT(ModelConfig(**{**vars(CONFIG), "dropout": dropout}))
    return model, build_optimizer(model, OptimConfig())


def batch(n: int, seed: int = 1) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    tokens = torch.randint(50, (n, 17), generator=generator)
    return tokens[:, :-1], tokens[:, 1:]


def split(n: int, parts: int, seed: int = 0) -> list[MicroBatch]:
    x, y = batch(n)
    seeds = dropout_seeds(seed, 0, n // parts, parts)
    return [MicroBatch(*two, 1 / parts, s) for *two, s in zip(x.chunk(parts), y.chunk(parts), seeds, strict=True)]


def step(model, optimizer, micro_batches, lr=1e-3, grad_clip=1.0):
    return train_step(model, optimizer, micro_batches, FP32, lr, grad_clip)


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_accumulation_is_one_large_batch(parts: int) -> None:
    one_batch, optimizer = build()
    loss, norm = step(one_batch, optimizer, split(8, 1))
    accumulated, optimizer = build()
    loss_parts, norm_parts = step(accumulated, optimizer, split(8, parts))
    assert loss_parts.item() == pytest.approx(loss.item(), abs=1e-6)
    assert norm_parts.item() == pytest.approx(norm.item(), rel=1e-5)
    for a, b in zip(one_batch.parameters(), accumulated.parameters(), strict=True):
        torch.testing.assert_close(a, b, atol=1e-5, rtol=0)


def test_the_returned_norm_is_of_the_mean_gradient_before_clipping() -> None:
    model, optimizer = build()
    reference = copy.deepcopy(model).double()
    x, y = batch(8)
    logits = reference(x)
    torch.nn.functional.cross_entropy(logits.flatten(0, 1), y.flatten()).backward()
    expected = math.sqrt(sum(p.grad.square().sum().item() for p in reference.parameters()))
    _, norm = step(model, optimizer, split(8, 4), grad_clip=0.01)
    assert norm.item() == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize("grad_clip", [0.05, 0.0, 100.0])
def test_clipping_scales_the_whole_gradient(grad_clip: float) -> None:
    model, _ = build()
    sgd = torch.optim.SGD(
        [{"params": model.parameters(), "lr_scale": 1.0}], lr=1.0
    )  # its update shows the gradient itself
    before = [p.detach().clone() for p in model.parameters()]
    _, norm = step(model, sgd, split(4, 2), lr=1.0, grad_clip=grad_clip)
    moved = math.sqrt(sum((p - q).square().sum().item() for p, q in zip(model.parameters(), before, strict=True)))
    expected = min(norm.item(), grad_clip) if grad_clip else norm.item()
    assert moved == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("heavy", [10.0, 5000.0])
def test_the_norm_of_a_long_gradient_is_that_of_float64(heavy: float) -> None:
    """An embedding of whose rows one weighs more than all others: in float32, each of their squares would be lost."""

    class Linear(torch.nn.Module):
        """A loss whose gradient is `slopes`, at one of its two parameters."""

        def __init__(self, slopes: torch.Tensor) -> None:
            super().__init__()
            self.slopes, self.unused = slopes, torch.nn.Parameter(torch.zeros(2))
            self.weight = torch.nn.Parameter(torch.zeros_like(slopes))

        def forward(self, _x: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
            return (self.weight * self.slopes).sum()

    slopes = torch.randn(50257, 32, generator=torch.Generator().manual_seed(0)) * 1e-2
    slopes[0] *= heavy
    model = Linear(slopes)
    sgd = torch.optim.SGD([{"params": model.parameters(), "lr_scale": 1.0}], lr=1.0)
    _, norm = step(model, sgd, split(1, 1), lr=1.0, grad_clip=0.5)
    exact = slopes.double().norm().item()
    assert norm.dtype == torch.float32
    assert norm.item() == pytest.approx(exact, rel=1e-6)
    assert model.weight.double().norm().item() == pytest.approx(0.5, rel=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_non_finite_gradient_changes_nothing(bad: float) -> None:
    model, optimizer = build()
    step(model, optimizer, split(4, 1))
    with torch.no_grad():
        kept = model.ln_f.bias.clone()
        model.ln_f.bias[0] = bad
    weights = [p.detach().clone() for p in model.parameters()]
    state = copy.deepcopy(optimizer.state_dict()["state"])
    _, norm = step(model, optimizer, split(4, 2))
    assert not math.isfinite(norm.item())
    for before, after in zip(weights, model.parameters(), strict=True):
        torch.testing.assert_close(after.detach(), before, atol=0, rtol=0, equal_nan=True)
    for index, values in state.items():
        for key, value in values.items():
            assert torch.equal(value, optimizer.state_dict()["state"][index][key])
    with torch.no_grad():
        model.ln_f.bias.copy_(kept)
    _, norm = step(model, optimizer, split(4, 2))
    assert math.isfinite(norm.item())  # nothing of the bad gradient is left


def test_dropout_is_decided_by_seed_and_window() -> None:
    losses = []
    for seed in (3, 3, 4):
        model, optimizer = build(dropout=0.3)
        losses.append(step(model, optimizer, split(8, 2, seed))[0].item())
    assert losses[0] == losses[1] != losses[2]
    seeds = [dropout_seeds(1337, first, 4, 3) for first in (0, 12, 24)]
    assert len({seed for some in seeds for seed in some}) == 9
    # two ranks with two micro-batches each have the seeds of one rank with four
    assert dropout_seeds(5, 16, 4, 4) == dropout_seeds(5, 16, 4, 2) + dropout_seeds(5, 24, 4, 2)


def test_gradients_are_all_reduced_once_a_step() -> None:
    store = dist.HashStore()
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    try:
        model, optimizer = build()
        wrapped = DDP(model)
        reduced = []

        def count(_state: object, bucket: dist.GradBucket) -> torch.futures.Future[torch.Tensor]:
            reduced.append(bucket.buffer().numel())
            future = torch.futures.Future()
            future.set_result(bucket.buffer())
            return future

        wrapped.register_comm_hook(None, count)
        step(wrapped, optimizer, split(8, 4))
        assert sum(reduced) == model.num_parameters()
        alone, optimizer = build()
        step(alone, optimizer, split(8, 4))
        for a, b in zip(alone.parameters(), model.parameters(), strict=True):
            assert torch.equal(a, b)
    finally:
        dist.destroy_process_group()


def test_bf16_computes_in_bf16_and_the_loss_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("train.parallel.device._cpu_has_bf16", lambda: True)
    model, optimizer = build()
    loss, _ = train_step(model, optimizer, split(8, 1), autocast(torch.device("cpu"), "bf16"), 1e-3, 1.0)
    reference, optimizer = build()
    exact, _ = step(reference, optimizer, split(8, 1))
    assert loss.dtype == torch.float32
    assert 0 < abs(loss.item() - exact.item()) < 0.02
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_an_infinite_loss_skips_the_step_though_its_own_gradient_is_finite() -> None:
    """One micro-batch of two; the other ranks see a gradient that is not finite, too."""

    class Overflows(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(2, 2))
            self.calls = 0

        def forward(self, x: torch.Tensor, _y: torch.Tensor) -> torch.Tensor:
            self.calls += 1
            return (x.float() @ self.weight).mean() + (math.inf if self.calls == 1 else 0)

    model = Overflows()
    optimizer = torch.optim.AdamW(model.parameters())
    batches = [MicroBatch(torch.ones(1, 2), torch.ones(1), 0.5, seed) for seed in (0, 1)]
    loss, norm = train_step(model, optimizer, batches, FP32, 1e-3, 1.0)
    assert loss.isinf()
    assert norm.isnan()
    assert torch.equal(model.weight, torch.ones(2, 2))
