"""Linear cross-entropy in chunks compared with the plain loss: values, gradients, memory."""

import pytest
import torch
from torch.nn import functional as F

from train.model import loss as head
from train.model.loss import linear_cross_entropy

V = 97


def inputs(n: int, dtype: torch.dtype, ignored: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(n)
    hidden = (3 * torch.randn(n, 24, dtype=dtype)).requires_grad_()
    weight = torch.randn(V, 24, dtype=dtype).requires_grad_()
    targets = torch.randint(V, (n,))
    targets[:ignored] = -1
    return hidden, weight, targets


def plain(
    hidden: torch.Tensor, weight: torch.Tensor, targets: torch.Tensor, softcap: float | None = None
) -> torch.Tensor:
    logits = F.linear(hidden, weight)
    return F.cross_entropy(softcap * torch.tanh(logits / softcap) if softcap else logits, targets, ignore_index=-1)


def gradients(loss: torch.Tensor, *tensors: torch.Tensor) -> tuple[torch.Tensor, ...]:
    return torch.autograd.grad(3 * loss, tensors)  # the loss's own gradient is not 1 in training either


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize(("n", "ignored", "rows", "softcap"), [(40, 7, 16, None), (5, 4, 5, None), (40, 7, 16, 15.0)])
def test_it_is_the_plain_loss_in_float64(
    monkeypatch: pytest.MonkeyPatch, n: int, ignored: int, rows: int, softcap: float | None, compiled: bool
) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", rows * 128 * 8)  # 97 columns, padded to 128, of 8 bytes
    hidden, weight, targets = inputs(n, torch.float64, ignored)
    torch._dynamo.reset()
    function = linear_cross_entropy
    if compiled:
        function = torch.compile(function, fullgraph=True, backend="aot_eager_decomp_partition")
    loss, reference = function(hidden, weight, targets, softcap), plain(hidden, weight, targets, softcap)
    assert loss.dtype == torch.float64
    torch.testing.assert_close(loss, reference, atol=1e-13, rtol=1e-13)
    for ours, theirs in zip(gradients(loss, hidden, weight), gradients(reference, hidden, weight), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-13, rtol=1e-13)
    with torch.no_grad():
        evaluated = linear_cross_entropy(hidden, weight, targets, softcap)
        torch.testing.assert_close(evaluated, loss, atol=1e-13, rtol=1e-13)


def test_in_bf16_its_error_is_no_larger_than_the_plain_losss() -> None:
    hidden, weight, targets = inputs(200, torch.float32)
    exact = [tensor.detach().double().requires_grad_() for tensor in (hidden, weight)]
    truth = plain(*exact, targets)
    with torch.autocast("cpu", torch.bfloat16):
        ours, theirs = linear_cross_entropy(hidden, weight, targets), plain(hidden, weight, targets)
    assert ours.dtype == torch.float32
    assert abs(ours - truth) <= 1.1 * abs(theirs - truth) + 1e-3
    found = (gradients(ours, hidden, weight), gradients(theirs, hidden, weight), gradients(truth, *exact))
    for mine, other, true in zip(*found, strict=True):
        assert mine.dtype == torch.float32
        assert (mine - true).norm() <= 1.1 * (other - true).norm()


def test_large_logits_do_not_overflow() -> None:
    hidden, weight, targets = inputs(16, torch.float32)
    loss = linear_cross_entropy(1e4 * hidden, weight, targets)
    torch.testing.assert_close(loss, plain(1e4 * hidden, weight, targets))
    assert all(gradient.isfinite().all() for gradient in gradients(loss, hidden, weight))


def test_only_one_chunk_of_logits_exists_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head, "CHUNK_BYTES", 2**21)
    hidden, targets = torch.randn(4096, 16, requires_grad=True), torch.randint(5000, (4096,))
    weight = torch.randn(5000, 16, requires_grad=True)
    with torch.profiler.profile(profile_memory=True) as record:
        linear_cross_entropy(hidden, weight, targets).backward()
    largest = max(event.self_cpu_memory_usage for event in record.events())
    assert largest <= 2**21 < 4096 * 5000 * 4 / 30
