"""Fit a power law to the final losses of models of several sizes, and predict the loss of a larger one.

    L(N) = E + A * N ** -alpha

N counts the parameters without embeddings and head, as in Kaplan et al. 2020 (arXiv:2001.08361), whose form has no E;
the irreducible loss E is that of Hoffmann et al. 2022 (arXiv:2203.15556), and needs at least four sizes here.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prepare.common.cli import UserError

BOOTSTRAPS = 200
MIN_SIZES, MIN_SIZES_WITH_E = 3, 4


def fit_power_law(sizes: Sequence[float], losses: Sequence[float], tokens: int) -> dict[str, Any] | None:
    """Fit the law to runs that were trained on `tokens` tokens each. sweep.json has the fit as it is returned:

        A, alpha, E      float; E is 0 with fewer than four sizes
        alpha_std        standard deviation of alpha over the bootstrap
        bootstrap        [A, alpha, E] of fits to resampled residuals
        sizes, losses    what was fitted: N and the final loss of each run
        tokens

    Returns:
        None with fewer than three sizes, or if the loss does not fall with the size.
    """
    n, y = np.array(sizes, dtype=float), np.array(losses, dtype=float)
    if len(set(sizes)) < MIN_SIZES:
        return None
    with_e = len(set(sizes)) >= MIN_SIZES_WITH_E
    a, alpha, e = least_squares(n, y, with_e)
    if alpha <= 0:
        return None
    fitted = e + a * n**-alpha
    dof = max(1, len(y) - 2 - with_e)
    residuals = (y - fitted) * np.sqrt(len(y) / dof)  # scaled for the fit's degrees of freedom
    rng = np.random.default_rng(0)
    bootstrap = [least_squares(n, fitted + rng.choice(residuals, len(y)), with_e) for _ in range(BOOTSTRAPS)]
    return {
        "A": a,
        "alpha": alpha,
        "E": e,
        "alpha_std": float(np.std(bootstrap, axis=0)[1]),
        "bootstrap": bootstrap,
        "sizes": n.tolist(),
        "losses": y.tolist(),
        "tokens": tokens,
    }


def least_squares(n: np.ndarray, y: np.ndarray, with_e: bool) -> tuple[float, float, float]:
    """Fit A, alpha and E to losses y of runs of sizes n, (R,) each: for each E of a grid a line through log(y - E) over
    log n, of which the one with the smallest squared error in y is taken."""
    e = np.linspace(0, 0.99 * y.min(), 400) if with_e else np.zeros(1)
    slope, intercept = np.polyfit(np.log(n), np.log(y[:, None] - e), 1)
    errors = e + np.exp(intercept + slope * np.log(n)[:, None]) - y[:, None]
    best = (errors**2).sum(0).argmin()
    return float(np.exp(intercept[best])), float(-slope[best]), float(e[best])


def predict_loss(fit: dict[str, Any], size: float) -> tuple[float, float, float]:
    """The loss that a fit predicts for this size, and the ends of its 90% interval over the bootstrap."""
    a, alpha, e = np.array(fit["bootstrap"]).T
    low, high = np.percentile(e + a * size**-alpha, (5, 95))
    return fit["E"] + fit["A"] * size ** -fit["alpha"], float(low), float(high)


def describe_prediction(fit: dict[str, Any], size: float) -> str:
    """The loss that a fit predicts for this size, as text."""
    loss, low, high = predict_loss(fit, size)
    return f"{loss:.3f} (90% interval: {low:.3f} to {high:.3f})"


def open_fit(file: str) -> Callable[[int], str] | None:
    """A function from N to a text about the loss that a sweep.json predicts; None without a file. UserError if the file
    has no fit."""
    if not file:
        return None
    try:
        fit = json.loads(Path(file).read_text())["fit"]
    except (OSError, ValueError, LookupError, TypeError) as failure:
        raise UserError(f"run.fit {file} is not a sweep.json of train/sweep.py ({failure})") from None
    if fit is None:
        raise UserError(f"run.fit {file} has no fit: the sweep needs finished runs of {MIN_SIZES} sizes")

    def describe(size: int) -> str:
        fitted = f"the data, recipe and {fit['tokens']:,} tokens of {file}, sizes to {max(fit['sizes']):,.0f}"
        return f"{describe_prediction(fit, size)}, with {fitted}"

    return describe
