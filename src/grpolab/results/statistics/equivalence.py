"""Equivalence: that a difference is smaller than δ is a finding, and needs a test of its own.

Two one-sided tests (TOST; Schuirmann 1987): equivalent at α where both "at or below -δ" and "at or
above δ" are rejected at α, which is where the 1 - 2α interval lies within (-δ, δ).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy import stats

from grpolab.results.statistics.compare import (
    Array,
    paired_differences,
    typical_paired,
    typical_unpaired,
    welch_error,
)
from grpolab.results.statistics.intervals import ROUNDING, Floats, t_quantile


@dataclass(frozen=True)
class Equivalence:
    """A difference of means, the larger of both one-sided p, and the 1 - 2α interval."""

    delta: float
    low: float
    high: float
    n: int
    p: float


def tost_paired(arm: Floats, baseline: Floats, margin: float, alpha: float = 0.05) -> Equivalence:
    """TOST of paired `arm` [n] and `baseline` [n] by Student-t. Raises ValueError for margin ≤ 0.

    Differences without any spread have no error to test with: p is then the exact sign-flip one.
    """
    _check(margin)
    d = paired_differences(arm, baseline)
    n = len(d)
    delta = float(d.mean()) if n else np.nan
    if n < 2 or not np.isfinite(d).all():
        return Equivalence(delta, np.nan, np.nan, n, np.nan)
    deviation = float(d.std(ddof=1))
    if deviation <= ROUNDING * max(
        np.abs(np.asarray(arm)).max(), np.abs(np.asarray(baseline)).max()
    ):
        p = 0.5**n if abs(delta) < margin else 1.0
        ends = delta if p <= alpha else np.nan
        return Equivalence(delta, ends, ends, n, p)
    return _tost(delta, deviation / np.sqrt(n), n - 1, n, margin, alpha)


def tost_welch(arm: Floats, baseline: Floats, margin: float, alpha: float = 0.05) -> Equivalence:
    """TOST of two unpaired samples with Welch's error and degrees of freedom."""
    _check(margin)
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    delta = float(x.mean() - y.mean()) if len(x) and len(y) else np.nan
    found = welch_error(x, y)
    if found is None:
        return Equivalence(delta, np.nan, np.nan, len(x), np.nan)
    return _tost(delta, found[0], found[1], len(x), margin, alpha)


def tost_sign_flip(arm: Floats, baseline: Floats, margin: float, rng: np.random.Generator) -> float:
    """The larger one-sided sign-flip p of "at or below -margin" and "at or above margin"."""
    _check(margin)
    d = paired_differences(arm, baseline)
    if len(d) == 0 or not np.isfinite(d).all():
        return float("nan")
    return _from_typical(typical_paired(d, rng), margin)


def tost_permutation(
    arm: Floats, baseline: Floats, margin: float, rng: np.random.Generator
) -> float:
    """The larger one-sided permutation p of two unpaired samples, `arm` [n], `baseline` [m]."""
    _check(margin)
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if not (len(x) and len(y) and np.isfinite(x).all() and np.isfinite(y).all()):
        return float("nan")
    return _from_typical(typical_unpaired(x, y, rng), margin)


def _from_typical(typical: Array, margin: float) -> float:
    # a shift of margin is reached by the patterns whose typical value is not below it
    slack = ROUNDING * margin * 10
    tails = (typical >= margin - slack).sum(), (typical <= -margin + slack).sum()
    return float((1 + max(tails)) / (len(typical) + 1))


def _tost(
    delta: float, error: float, degrees: float, n: int, margin: float, alpha: float
) -> Equivalence:
    above = float(stats.t.sf((delta + margin) / error, degrees))  # of "at or below -margin"
    below = float(stats.t.cdf((delta - margin) / error, degrees))  # of "at or above margin"
    half = t_quantile(1 - 2 * alpha, degrees) * error
    return Equivalence(delta, delta - half, delta + half, n, max(above, below))


def _check(margin: float) -> None:
    if not margin > 0:
        raise ValueError(f"margin: {margin} given, a positive number is needed")
