"""The power of the CPU packages, from Linux's counters."""

from pathlib import Path

import pytest
import torch

from train.parallel import power
from train.parallel.world import World


def test_the_power_of_all_packages_is_their_energy_over_the_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(power, "POWERCAP", tmp_path)
    times = iter((10.0, 14.0))
    monkeypatch.setattr(power.time, "perf_counter", lambda: next(times))
    world = World(0, 1, torch.device("cpu"))
    meter = power.PowerMeter(world)
    meter.sample()
    assert meter.watts() is None  # no counters
    for joules in (5, 105):
        for zone in ("intel-rapl:0", "intel-rapl:1", "intel-rapl:0:0"):  # the last is a part of the first
            (tmp_path / zone).mkdir(exist_ok=True)
            (tmp_path / zone / "energy_uj").write_text(f"{joules * 10**6}\n")
        meter.sample()
    assert meter.watts() == 2 * 100 / 4
    assert power.gpu_watts(torch.device("cuda:0")) is None  # a GPU that cannot be asked
