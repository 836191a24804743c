"""The power that a GPU draws."""

import torch


def gpu_watts(device: torch.device) -> float:
    """The power of a GPU; NaN on a CPU, without nvidia-ml-py, or where the driver does not report it."""
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # NVML has an exception for each of its errors
        return float("nan")
