"""Laws that published work fits to learning curves, with what they predict.

A fit describes the points it was given. Asymptotes of curves that have not bent yet are guesses:
leave the last points out and see whether the fit finds them before believing one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize

from grpolab.results.statistics.intervals import Floats

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Sigmoid:
    """R(C) = R0 + (A − R0) / (1 + (C_mid / C)^B), compute C > 0 (arXiv 2510.13786).

    A is the asymptote, B the efficiency, C_mid where half of the gain is made; `error` is the root
    mean squared residual.
    """

    start: float
    asymptote: float
    efficiency: float
    midpoint: float
    error: float

    def __call__(self, compute: Floats) -> Array:
        """The curve at `compute` [n]."""
        ratio = (self.midpoint / np.asarray(compute, dtype=float)) ** self.efficiency
        found: Array = self.start + (self.asymptote - self.start) / (1 + ratio)
        return found


@dataclass(frozen=True)
class EntropyLaw:
    """R = −a e^H + b (arXiv 2505.22617); b − a is where the reward ends once entropy is spent."""

    a: float
    b: float
    error: float

    def __call__(self, entropy: Floats) -> Array:
        """The reward at `entropy` [n] (nats a token)."""
        found: Array = -self.a * np.exp(np.asarray(entropy, dtype=float)) + self.b
        return found


def fit_sigmoid(compute: Floats, reward: Floats, start: float) -> Sigmoid:
    """Least squares of `reward` [n] over `compute` [n], from `start`, the reward before training.

    For each B and C_mid the best A is a linear problem; the best of a grid of them (B .25 to 6,
    C_mid over the compute and four times beyond it) starts a local search. 0 < B ≤ 10; ValueError
    for fewer than 4 points or compute not above 0.
    """
    x, y = np.asarray(compute, dtype=float), np.asarray(reward, dtype=float)
    if x.shape != y.shape or len(x) < 4 or not (x > 0).all() or not np.isfinite(y).all():
        raise ValueError(f"compute: {len(x)} for {len(y)} rewards; 4 points above 0 are needed")
    middles = np.geomspace(x.min(), 4 * x.max(), 40)
    grid = [(np.log(b), np.log(m)) for b in np.geomspace(0.25, 6, 24) for m in middles]

    def gain(p: npt.ArrayLike) -> tuple[float, Array]:
        b, middle = np.exp(np.asarray(p, dtype=float))
        share = 1 / (1 + (middle / x) ** b)
        height = float((share @ (y - start)) / (share @ share))
        return height, start + height * share - y

    first = min(grid, key=lambda p: float((gain(p)[1] ** 2).sum()))
    bounds = ([np.log(0.01), np.log(x.min() / 100)], [np.log(10), np.log(x.max() * 1000)])
    found = optimize.least_squares(
        lambda p: gain(p)[1], first, bounds=bounds, xtol=1e-14, ftol=1e-14
    )
    height, residuals = gain(found.x)
    b, middle = np.exp(found.x)
    error = float(np.sqrt((residuals**2).mean()))
    return Sigmoid(start, start + height, float(b), float(middle), error)


def fit_entropy_law(entropy: Floats, reward: Floats) -> EntropyLaw:
    """Least squares of `reward` [n] over e^H of `entropy` [n]; ValueError for fewer than 2 H."""
    h, y = np.asarray(entropy, dtype=float), np.asarray(reward, dtype=float)
    if h.shape != y.shape or len(np.unique(h)) < 2:
        raise ValueError(f"entropy: {len(h)} for {len(y)} rewards; 2 that differ are needed")
    slope, b = np.polyfit(np.exp(h), y, 1)
    residuals = slope * np.exp(h) + b - y
    return EntropyLaw(float(-slope), float(b), float(np.sqrt((residuals**2).mean())))
