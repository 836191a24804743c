"""Fit a power law to the final losses of models of several sizes, and predict the loss of a larger one.

    L(N) = E + A * N ** -alpha

N counts the parameters without embeddings and head, as in Kaplan et al. 2020 (arXiv:2001.08361), whose form has no E;
the irreducible loss E is that of Hoffmann et al. 2022 (arXiv:2203.15556), and needs at least four sizes here.

A fit, as sweep.json has it under `fit`, is a dict:

    form             "E + A * N ** -alpha"
    key              what N is: "hidden_parameters"
    A, alpha, E      float; E is 0 with fewer than four sizes
    alpha_deviation  standard deviation of alpha, by bootstrap
    residual         standard deviation of a run's loss around the curve, in nats
    bootstrap        [A, alpha, E] of BOOTSTRAPS fits to resampled residuals
    sizes, losses    what was fitted: N and the final loss of each run
    tokens           of each run, or of the longest
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from prepare.common.cli import UserError

ALPHAS = np.geomspace(0.01, 3, 300)  # published exponents are 0.05 to 0.5
BOOTSTRAPS = 200
MIN_SIZES, MIN_SIZES_WITH_E = 3, 4
LARGER = (2, 10)  # times the largest size: where the report of a sweep predicts the loss


def fit_power_law(sizes: Sequence[float], losses: Sequence[float], tokens: int) -> dict[str, Any] | None:
    """Fit the law to runs by least squares; None if they have fewer than three sizes, or the loss does not fall with
    the size.

    Residuals are resampled for the bootstrap, enlarged by the degrees of freedom that the fit took.
    """
    n, y = np.array(sizes, dtype=float), np.array(losses, dtype=float)
    distinct = len(set(sizes))
    if distinct < MIN_SIZES:
        return None
    with_e = distinct >= MIN_SIZES_WITH_E
    a, alpha, e = map(float, _least_squares(n, y[None], with_e)[0])
    if a <= 0:
        return None
    fitted = e + a * n**-alpha
    freedom = max(1, len(y) - 2 - with_e)
    residuals = (y - fitted) * np.sqrt(len(y) / freedom)
    resampled = fitted + np.random.default_rng(0).choice(residuals, (BOOTSTRAPS, len(y)))
    bootstrap = _least_squares(n, resampled, with_e)
    return {
        "form": "E + A * N ** -alpha",
        "key": "hidden_parameters",
        "A": a,
        "alpha": alpha,
        "E": e,
        "alpha_deviation": float(bootstrap[:, 1].std(ddof=1)),
        "residual": float(np.sqrt((residuals**2).mean())),
        "bootstrap": bootstrap.tolist(),
        "sizes": n.tolist(),
        "losses": y.tolist(),
        "tokens": tokens,
    }


def predict_loss(fit: dict[str, Any], size: float) -> tuple[float, float, float]:
    """The loss that a fit predicts for a run of this size, and the ends of the interval that holds 90% of such runs by
    the bootstrap and the residuals."""
    a, alpha, e = np.array(fit["bootstrap"]).T
    noise = np.random.default_rng(0).normal(0, fit["residual"], (50, len(a)))
    low, high = np.percentile(e + a * size**-alpha + noise, (5, 95))
    return fit["E"] + fit["A"] * size ** -fit["alpha"], float(low), float(high)


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
        loss, low, high = predict_loss(fit, size)
        as_there = f"the data, recipe and {fit['tokens']:,} tokens of {file}, sizes to {max(fit['sizes']):,.0f}"
        return f"{loss:.3f} (90% of runs: {low:.3f} to {high:.3f}), with {as_there}"

    return describe


def _least_squares(n: np.ndarray, y: np.ndarray, with_e: bool) -> np.ndarray:
    """A, alpha, E, (B, 3), of the curves of least squares through losses y (B, R) of runs of sizes n (R,): alpha on a
    grid, then on a finer one around the best."""
    coarse = _best(n, y, np.broadcast_to(ALPHAS, (len(y), len(ALPHAS))), with_e)
    return _best(n, y, coarse[:, 1:2] * np.linspace(0.98, 1.02, 201), with_e)


def _best(n: np.ndarray, y: np.ndarray, alphas: np.ndarray, with_e: bool) -> np.ndarray:
    """As _least_squares, with alpha one of a row's alphas (B, K), and E >= 0 and A in closed form for each."""
    scale = np.exp(np.log(n).mean())
    x, y = (n / scale) ** -alphas[..., None], y[:, None]  # (B, K, R), (B, 1, R)
    a, e = (x * y).sum(-1) / (x**2).sum(-1), np.zeros(alphas.shape)  # of E = 0
    if with_e:
        centred = x - x.mean(-1, keepdims=True)
        slope = (centred * y).sum(-1) / (centred**2).sum(-1)
        e = np.maximum(0, y.mean(-1) - slope * x.mean(-1))
        a = np.where(e > 0, slope, a)
    error = ((y - e[..., None] - a[..., None] * x) ** 2).sum(-1)  # (B, K)
    best = (np.arange(len(alphas)), error.argmin(-1))
    return np.stack([a[best] * scale ** alphas[best], alphas[best], e[best]], axis=1)
