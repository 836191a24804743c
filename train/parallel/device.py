"""The device: its precision, its peak FLOP/s for MFU, its set-up, and the micro-batch size that fits in its memory."""

import ctypes
import os
import re
import resource
import sys

import torch

from prepare.common.cli import UserError
from train.model.transformer import Transformer

# Dense bf16 FLOP/s with float32 accumulation, from NVIDIA's datasheets; the first key found in the GPU's name is taken.
PEAK_FLOPS = {
    "H200 NVL": 835.5e12,
    "H200": 989.4e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989.4e12,
    "B200": 2250e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 3090": 71e12,
    "RTX 4090": 165.2e12,
    "RTX 5090": 209.5e12,
}

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # malloc.h


def peak_flops(device: torch.device) -> float | None:
    """The peak that MFU divides by: dense bf16 FLOP/s of this GPU model; None if it is not known."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    if re.search(r"\b(MIG|Laptop|Ti|SUPER|D)\b", name):  # a slice, or another chip with a similar name
        return None
    return next((peak for model, peak in PEAK_FLOPS.items() if re.search(rf"\b{model}\b", name)), None)


def precision_name(context: torch.autocast) -> str:
    """The precision of matrix products in an autocast context: "bf16" or "fp32"."""
    return "bf16" if context._enabled else "fp32"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """The autocast context of the forward pass: bf16 matrix products, or (fp32) no change at all.

    Args:
        precision: fp32; bf16 (a CPU without bf16 instructions would only emulate it, slowly, and takes fp32); or auto,
            which is bf16 where the device has it.
    """
    if device.type == "cpu":
        enabled = precision != "fp32" and _cpu_has_bf16()
    elif device.type == "cuda" and precision == "auto":
        enabled = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        enabled = precision == "bf16"
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=enabled)


def _cpu_has_bf16() -> bool:
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def prepare_device(device: torch.device, varying_lengths: bool = False) -> None:
    """Set up this process once, before it computes.

    Args:
        varying_lengths: batches differ in length, as in fine-tuning: cuDNN's attention, which makes a plan for each
            new length, is switched off on a GPU (PyTorch then takes its flash kernels).
    """
    if device.type == "cpu":
        warm_up_math_kernels()
        keep_freed_memory()
    elif varying_lengths:
        torch.backends.cuda.enable_cudnn_sdp(False)


def warm_up_math_kernels() -> None:
    """Let MKL choose its kernels for exp and log on one thread, so that a process's first results equal later ones.

    MKL chooses at a function's first call. When several threads make that call at once, one of them may compute its
    share with a kernel for another processor, of half the precision: the first step's loss was occasionally off by 4e-6
    (https://github.com/pytorch/pytorch/issues/188792; how often: docs/log.md).
    """
    for function in (torch.exp, torch.log):
        function(torch.ones(1))


def keep_freed_memory() -> None:
    """Let glibc keep the memory that tensors free; otherwise each step on a CPU page-faults its large buffers in again.

    A model of 4 layers, 128 wide, 16 x 64 tokens on one core of an EPYC 9004: 1.3 to 1.5 times the tokens/s in
    float32, 1.4 to 1.8 times in bf16. Elsewhere (macOS, musl) nothing is changed.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):
        return
    mallopt(M_MMAP_MAX, 0)
    mallopt(M_TRIM_THRESHOLD, 2**31 - 1)


def find_micro_batch_size(model: Transformer, per_rank: int, device: torch.device, precision: str) -> int:
    """The largest micro-batch, a divisor of `per_rank` sequences, whose forward and backward pass fits in memory.

    On a GPU, sizes are tried from 64 down, with memory reserved for AdamW's moments and DDP's buckets. Elsewhere a try
    that runs out of memory could take down the machine, so the largest is taken whose float32 logits fit in 512 MiB.
    UserError if not one sequence fits.
    """
    config = model.config
    divisors = [size for size in range(min(64, per_rank), 0, -1) if per_rank % size == 0]
    if device.type != "cuda":
        bytes_per_sequence = 4 * config.block_size * config.vocab_size
        return next((size for size in divisors if size * bytes_per_sequence <= 2**29), 1)
    for size in divisors:
        try:
            _forward_backward(model, size, device, precision)
            return size
        except torch.OutOfMemoryError:
            continue
        finally:
            model.zero_grad(set_to_none=True)
            torch.cuda.empty_cache()
    raise UserError(
        f"not one sequence of model.block_size {config.block_size} fits in this GPU's memory: lower model.block_size, "
        "or take a smaller model"
    )


def _forward_backward(model: Transformer, size: int, device: torch.device, precision: str) -> None:
    """Run one micro-batch of `size` sequences with the memory reserved that training needs for the rest."""
    floats = 3 * model.num_parameters() + torch.cuda.mem_get_info(device)[1] // 80  # moments, buckets; 5% for the rest
    reserved = torch.empty(floats, device=device)
    tokens = torch.zeros(size, model.config.block_size, dtype=torch.int64, device=device)
    with autocast(device, precision):
        loss = model(tokens, tokens)
    loss.backward()
    del reserved


def peak_memory(device: torch.device) -> int:
    """The most memory that this process has used so far, in bytes: on a GPU what PyTorch holds of it, else RSS."""
    if device.type == "cuda":
        return torch.cuda.max_memory_reserved(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def total_memory(device: torch.device) -> int:
    """The memory of the GPU, or of the machine, in bytes."""
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def gpu_watts(device: torch.device) -> float:
    """The power that a GPU draws; NaN on a CPU, without nvidia-ml-py, or where the driver does not report it."""
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # NVML has an exception for each of its errors
        return float("nan")


def is_out_of_memory(failure: BaseException) -> bool:
    """Whether this exception means that the GPU or the machine ran out of memory."""
    if isinstance(failure, (torch.OutOfMemoryError, MemoryError)):
        return True
    return any(
        words in str(failure) for words in ("can't allocate memory", "out of memory", "CUBLAS_STATUS_ALLOC_FAILED")
    )
