"""The power of a device that cannot be read."""

import math

import pytest
import torch

from train.parallel.power import gpu_watts


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU reports its power")
@pytest.mark.parametrize("device", ["cpu", "cuda:0"])
def test_the_power_of_a_device_that_cannot_be_read_is_nan(device: str) -> None:
    assert math.isnan(gpu_watts(torch.device(device)))
