"""Precision, how many sequences fit, and the power."""

import math

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from prepare.common.cli import UserError
from train.config.pretrain import ModelConfig
from train.model.gpt import GPT
from train.parallel.device import (
    autocast,
    find_micro_batch_size,
    gpu_watts,
    is_out_of_memory,
    peak_flops,
    prepare_device,
)

CPU = torch.device("cpu")


@pytest.mark.parametrize("has_bf16", [True, False])
def test_a_cpu_takes_bf16_where_it_has_instructions_for_it(monkeypatch: pytest.MonkeyPatch, has_bf16: bool) -> None:
    monkeypatch.setattr("train.parallel.device._cpu_has_bf16", lambda: has_bf16)
    a = torch.randn(8, 8)
    half = torch.bfloat16 if has_bf16 else torch.float32
    for precision, dtype in (("auto", half), ("fp32", torch.float32), ("bf16", half)):
        with autocast(CPU, precision):
            assert (a @ a).dtype == dtype


@pytest.mark.parametrize(
    ("block_size", "vocab_size", "per_rank", "expected"),
    [(1024, 50257, 512, 2), (64, 50257, 24, 24), (64, 50257, 100, 25), (256, 65, 64, 64), (1024, 50257, 7, 1)],
)
def test_on_a_cpu_the_logits_are_bounded(block_size: int, vocab_size: int, per_rank: int, expected: int) -> None:
    with torch.device("meta"):
        model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=block_size, vocab_size=vocab_size))
    size = find_micro_batch_size(model, per_rank, CPU, "fp32")
    assert size == expected
    assert per_rank % size == 0


def test_on_a_gpu_micro_batches_are_tried_downwards(monkeypatch: pytest.MonkeyPatch) -> None:
    tried = []

    def forward_backward(_model: GPT, size: int, *_: object) -> None:
        tried.append(size)
        if size > limit:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("train.parallel.device._forward_backward", forward_backward)
    model = GPT(ModelConfig(n_layer=1, n_head=1, n_embd=8, block_size=8, vocab_size=16))
    limit = 20
    assert find_micro_batch_size(model, 96, torch.device("cuda"), "bf16") == 16
    assert tried == [48, 32, 24, 16]
    limit = 0
    with pytest.raises(UserError, match=r"not one sequence of model.block_size 8 fits"):
        find_micro_batch_size(model, 96, torch.device("cuda"), "bf16")


def test_exp_and_log_are_called_on_one_thread_first() -> None:
    called = {}

    class Calls(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None) -> torch.Tensor:
            result = function(*args, **(kwargs or {}))
            called[function] = result.numel()
            return result

    with Calls():
        prepare_device(CPU)
    assert called[torch.ops.aten.exp.default] == called[torch.ops.aten.log.default] == 1  # too few to share


def test_out_of_memory_is_recognised() -> None:
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    with pytest.raises(RuntimeError) as failure:
        torch.empty(2**50)
    assert is_out_of_memory(failure.value)
    assert not is_out_of_memory(RuntimeError("shapes differ"))


@pytest.mark.parametrize(
    ("name", "peak"),
    [
        ("NVIDIA A100-SXM4-80GB", 312e12),
        ("NVIDIA H100 80GB HBM3", 989.4e12),
        ("NVIDIA H100 PCIe", 756e12),
        ("NVIDIA H200", 989.4e12),
        ("NVIDIA H200 NVL", 835.5e12),
        ("NVIDIA B200", 2250e12),
        ("NVIDIA GB200", None),
        ("NVIDIA L4", 121e12),
        ("NVIDIA L40", 181e12),
        ("NVIDIA L40S", 362e12),
        ("NVIDIA GeForce RTX 4090", 165.2e12),
        ("NVIDIA H100 80GB HBM3 MIG 1g.10gb", None),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", None),
        ("NVIDIA GeForce RTX 4090 D", None),
        ("NVIDIA GeForce RTX 3090 Ti", None),
        ("Tesla T4", None),
    ],
)
def test_the_peak_is_the_datasheets_or_none(monkeypatch: pytest.MonkeyPatch, name: str, peak: float) -> None:
    monkeypatch.setattr("torch.cuda.get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda")) == peak
    assert peak_flops(CPU) is None


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU reports its power")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_power_of_a_device_that_cannot_be_read_is_nan(device: str) -> None:
    assert math.isnan(gpu_watts(torch.device(device)))
