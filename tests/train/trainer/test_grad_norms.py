"""Which gradient norm is out of line."""

import math

import numpy as np
import pytest

from train.trainer.grad_norms import GradNorms


def test_the_limit_is_the_mean_and_some_standard_deviations_of_a_full_window() -> None:
    values = np.random.default_rng(0).lognormal(size=50)
    norms = GradNorms(window=20, zscore=3.0)
    for number, value in enumerate(values):
        last = values[max(0, number - 20) : number]
        expected = last.mean() + 3.0 * last.std() if number >= 20 else math.inf
        assert norms.limit() == pytest.approx(expected)
        norms.add(value)


def test_what_is_not_finite_is_not_remembered_and_a_spike_is() -> None:
    norms = GradNorms(3, 2.0, latest=[1.0, 1.0, 1.0])
    norms.add(math.nan)
    norms.add(math.inf)
    assert norms.limit() == 1.0
    norms.add(100.0)
    assert norms.limit() > 100.0


def test_a_resumed_window_goes_on_exactly() -> None:
    norms = GradNorms(10, 4.0)
    for value in np.random.default_rng(1).random(15).tolist():
        norms.add(value)
    assert GradNorms(10, 4.0, list(norms.latest)).limit() == norms.limit()
    assert GradNorms(10, 0.0, list(norms.latest)).limit() == math.inf
