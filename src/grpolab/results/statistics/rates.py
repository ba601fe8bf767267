"""Rates of few runs: how many diverged, how sure that is, and whether two arms differ in it."""

from __future__ import annotations

from math import sqrt

import numpy as np
import numpy.typing as npt
from scipy import stats

from grpolab.results.statistics.intervals import Interval


def wilson(count: int, n: int, level: float = 0.95) -> Interval:
    """The share `count` / `n` with Wilson's score interval (1927), sound at 0 and at n."""
    if not 0 <= count <= n:
        raise ValueError(f"count: {count} given, 0 to {n} are allowed")
    if n == 0:
        return Interval(np.nan, np.nan, np.nan, 0, "wilson")
    share, z = count / n, float(stats.norm.ppf(0.5 + level / 2))
    middle = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    low = 0.0 if count == 0 else max(0.0, middle - half)
    return Interval(share, low, 1.0 if count == n else min(1.0, middle + half), n, "wilson")


def fisher(count: int, n: int, other: int, m: int) -> float:
    """Fisher's exact two-sided p of `count` of `n` against `other` of `m`, unpaired."""
    if not (0 <= count <= n and 0 <= other <= m):
        raise ValueError(f"count: {count} of {n} and {other} of {m} given, 0 to n are allowed")
    return float(stats.fisher_exact([[count, n - count], [other, m - other]]).pvalue)


def mcnemar(arm: npt.ArrayLike, baseline: npt.ArrayLike) -> float:
    """Exact two-sided p of `arm` [n] and `baseline` [n], true or false, paired by seed.

    Only seeds on which they differ count: under no difference each falls either way with 1/2.
    """
    x, y = np.asarray(arm, dtype=bool), np.asarray(baseline, dtype=bool)
    if x.shape != y.shape:
        raise ValueError(f"arm and baseline: {len(x)} and {len(y)} given, pairs are needed")
    only, theirs = int((x & ~y).sum()), int((y & ~x).sum())
    return float(stats.binomtest(only, only + theirs).pvalue) if only + theirs else 1.0
