"""The power law recovers what made the losses."""

import numpy as np
import pytest

from train.sweeping.power_law import fit_power_law, predict_loss


@pytest.mark.parametrize(("sizes", "e"), [([1e5, 4e5, 1.6e6, 6.4e6, 2.5e7], 1.7), ([5e5, 1.8e6, 4e6], 0.0)])
def test_the_fit_recovers_a_known_law_and_covers_a_larger_run(sizes: list[float], e: float) -> None:
    a, alpha = 400.0, 0.34
    n = np.repeat(sizes, 3)
    losses = e + a * n**-alpha + np.random.default_rng(1).normal(0, 0.003, len(n))
    fit = fit_power_law(n.tolist(), losses.tolist(), 1000)
    assert fit["alpha"] == pytest.approx(alpha, abs=4 * fit["alpha_std"])
    assert 0 < fit["alpha_std"] < 0.01
    assert (fit["A"], fit["E"]) == (pytest.approx(a, rel=0.05), pytest.approx(e, abs=0.02))
    loss, low, high = predict_loss(fit, 2.5e8)
    assert low < loss < high
    assert low < e + a * 2.5e8**-alpha < high
    assert high - low < 0.05


def test_no_law_is_fitted_to_two_sizes_or_to_a_loss_that_grows() -> None:
    assert fit_power_law([1e6, 2e6], [3.0, 2.9], 1) is None
    assert fit_power_law([1e6, 2e6, 4e6, 8e6], [3.0, 3.1, 3.2, 3.3], 1) is None
