"""The power that a run draws, where the machine lets it be read."""

import os
import time
from pathlib import Path
from statistics import fmean

import torch

from train.parallel.world import World

POWERCAP = Path("/sys/class/powercap")  # Linux: energy counters of the CPU packages, which often only root may read


class PowerMeter:
    """The mean power between the first and the last sample: of each rank's GPU, or of the CPU packages of each node."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.samples: list[tuple[float, float]] = []  # time in seconds, and watts of the GPU or joules of the packages

    def sample(self) -> None:
        """Read the sensor, where there is one."""
        reading = gpu_watts(self.world.device) if self.world.device.type == "cuda" else cpu_joules()
        if reading is not None:
            self.samples.append((time.perf_counter(), reading))

    def watts(self) -> float | None:
        """The sum over all ranks, or None if any of them cannot read its sensor. Every rank must call it."""
        watts = None
        if len(self.samples) > 1:
            times, readings = zip(*self.samples, strict=True)
            watts = fmean(readings)
            if self.world.device.type != "cuda":  # a counter, which starts from 0 again at its limit
                watts = (readings[-1] - readings[0]) / (times[-1] - times[0])
                watts = (watts if os.environ.get("LOCAL_RANK", "0") == "0" else 0.0) if watts > 0 else None
        total, unknown = self.world.sum([watts or 0.0, watts is None])
        return None if unknown else total


def gpu_watts(device: torch.device) -> float | None:
    """The power of a GPU; None without nvidia-ml-py, or where the driver does not report it."""
    try:
        return torch.cuda.power_draw(device) / 1000
    except Exception:  # NVML has an exception for each of its errors
        return None


def cpu_joules() -> float | None:
    """The energy that the CPU packages have used, from a counter; None where it cannot be read."""
    packages = [zone for zone in POWERCAP.glob("intel-rapl:*") if zone.name.count(":") == 1]
    try:
        return sum(int((zone / "energy_uj").read_text()) for zone in packages) / 1e6 if packages else None
    except OSError:
        return None
