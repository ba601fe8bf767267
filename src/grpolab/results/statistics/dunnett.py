"""Dunnett's comparisons of several arms with one baseline (1955), blocked by seed or not.

All arms share one error, pooled over them, and the correlation that the common baseline gives their
differences is made use of: bounds for all arms at once that are narrower than Bonferroni's. The
price is the assumption that all arms vary alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import optimize, stats

from grpolab.results.statistics.intervals import ROUNDING, Floats

Array = npt.NDArray[np.float64]
_Z, _Z_WEIGHTS = np.polynomial.hermite_e.hermegauss(80)
_S, _S_WEIGHTS = np.polynomial.legendre.leggauss(160)


@dataclass(frozen=True)
class Dunnett:
    """Differences [m] from the baseline with errors [m]; `weights` [m] make their correlations.

    The correlation of differences i and j is weights_i · weights_j.
    """

    delta: Array
    error: Array
    degrees: int
    weights: Array

    @property
    def t(self) -> Array:
        """The m statistics."""
        ratio: Array = self.delta / self.error
        return ratio

    def corrected(self) -> Array:
        """p [m] corrected for all m comparisons: P(max |T| ≥ |t_i|)."""
        return np.array([exceeds(abs(t), self.weights, self.degrees) for t in self.t])

    def quantile(self, level: float) -> float:
        """The c with P(max |T| ≤ c) = level; delta ± c · error hold together with that level."""
        m = max(1, len(self.weights))
        single = float(stats.t.isf((1 - level) / 2, self.degrees))
        most = float(stats.t.isf((1 - level) / (2 * m), self.degrees)) * 1.001
        if m == 1:
            return single
        return float(
            optimize.brentq(
                lambda c: exceeds(c, self.weights, self.degrees) - (1 - level), single * 0.999, most
            )
        )


def dunnett_blocked(arms: Floats, baseline: Floats) -> Dunnett | None:
    """Of `arms` [m, n] and `baseline` [n], column j of one seed: seeds are blocks.

    The error is the residual of value = arm + seed, (n − 1) m degrees. None without any spread.
    """
    data = np.vstack([np.asarray(baseline, dtype=float)[None], np.asarray(arms, dtype=float)])
    rows, n = data.shape
    if n < 2 or rows < 2:
        return None
    left = data - data.mean(axis=1, keepdims=True) - data.mean(axis=0) + data.mean()
    degrees = (n - 1) * (rows - 1)
    deviation = float(np.sqrt((left**2).sum() / degrees))
    if deviation <= ROUNDING * np.abs(data).max():
        return None
    delta = data[1:].mean(axis=1) - data[0].mean()
    error = np.full(rows - 1, deviation * np.sqrt(2 / n))
    return Dunnett(delta, error, degrees, np.full(rows - 1, np.sqrt(0.5)))


def dunnett_unpaired(arms: Sequence[Floats], baseline: Floats) -> Dunnett | None:
    """Of m unpaired samples and a baseline, as `scipy.stats.dunnett`; None without any spread."""
    groups = [np.asarray(g, dtype=float) for g in (baseline, *arms)]
    counts = np.array([len(g) for g in groups])
    degrees = int(counts.sum()) - len(groups)
    if counts.min() < 1 or degrees < 1 or len(groups) < 2:
        return None
    squares = sum(float(((g - g.mean()) ** 2).sum()) for g in groups)
    deviation = np.sqrt(squares / degrees)
    if deviation <= ROUNDING * max(np.abs(g).max() for g in groups):
        return None
    delta = np.array([g.mean() for g in groups[1:]]) - groups[0].mean()
    error = deviation * np.sqrt(1 / counts[1:] + 1 / counts[0])
    return Dunnett(delta, error, degrees, np.sqrt(counts[1:] / (counts[1:] + counts[0])))


def exceeds(bound: float, weights: Array, degrees: float) -> float:
    """P(max |T_i| > bound) of m statistics with correlations weights_i · weights_j, one error.

    Given the baseline's share z and the error's ratio s the T_i are independent: two integrals,
    over z by Gauss and Hermite, over log s by Gauss and Legendre.
    """
    w = np.asarray(weights, dtype=float)[:, None, None]
    low, high = (np.log(stats.chi.ppf([1e-14, 1 - 1e-14], degrees) / np.sqrt(degrees))).tolist()
    log_s = (high + low) / 2 + (high - low) / 2 * _S
    s = np.exp(log_s)
    density = stats.chi.pdf(s * np.sqrt(degrees), degrees) * np.sqrt(degrees) * s
    z, root = _Z[:, None], np.sqrt(1 - w**2)
    # [m, z, s]: the chance of each statistic to lie outside, as logarithm of one minus it
    outside = stats.norm.sf((bound * s - w * z) / root) + stats.norm.cdf(
        (-bound * s - w * z) / root
    )
    any_outside = -np.expm1(np.log1p(-np.minimum(outside, 1 - 1e-16)).sum(axis=0))
    over_z = (_Z_WEIGHTS / np.sqrt(2 * np.pi)) @ any_outside  # [s]
    return float(min(1.0, (over_z * density * _S_WEIGHTS).sum() * (high - low) / 2))
