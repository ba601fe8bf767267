"""Corrections of p for many comparisons, and the confidence levels that go with them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from grpolab.results.statistics.intervals import Floats

Array = npt.NDArray[np.float64]


def bonferroni(p_values: Floats) -> Array:
    """p · m, at most 1. A NaN stays NaN and still counts towards m."""
    p = np.asarray(p_values, dtype=float)
    corrected: Array = np.minimum(p * len(p), 1.0)
    return corrected


def holm(p_values: Floats) -> Array:
    """Holm's step-down correction of `p_values` [m], in the order given (Holm 1979).

    A NaN (a comparison planned but not computable) stays NaN and still counts towards m.
    """
    p = np.asarray(p_values, dtype=float)
    ranked: Array = np.where(np.isnan(p), np.inf, p)
    order = np.argsort(ranked, kind="stable")
    scaled = ranked[order] * np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.maximum.accumulate(scaled), 1.0)
    corrected[np.isnan(p)] = np.nan
    return corrected


def benjamini_hochberg(p_values: Floats) -> Array:
    """Adjusted p of the step-up procedure that bounds the false discovery rate (1995).

    min over ranks j ≥ i of p_(j) · m / j. A NaN stays NaN and still counts towards m.
    """
    p = np.asarray(p_values, dtype=float)
    ranked: Array = np.where(np.isnan(p), np.inf, p)
    order = np.argsort(ranked, kind="stable")[::-1]
    scaled = ranked[order] * len(p) / np.arange(len(p), 0, -1)
    corrected = np.empty_like(p)
    corrected[order] = np.minimum(np.minimum.accumulate(scaled), 1.0)
    corrected[np.isnan(p)] = np.nan
    return corrected


def uncorrected(p_values: Floats) -> Array:
    """The p values themselves."""
    return np.array(p_values, dtype=float)


ADJUST: dict[str, Callable[[Floats], Array]] = {
    "holm": holm,
    "bonferroni": bonferroni,
    "bh": benjamini_hochberg,
    "none": uncorrected,
}


def interval_alphas(p: Floats, corrected: Floats, correction: str, alpha: float) -> Array:
    """For each of m comparisons the α of its interval, so that it excludes 0 where `corrected` < α.

    - `none`: α. `bonferroni`: α/m, all intervals together hold with 1 − α.
    - `bh`: Rα/m with R arms called different (at least 1): of the intervals of those arms a share
      of at most α misses on average (FCR; Benjamini and Yekutieli 2005).
    - `holm`: α/m as well, except for an arm that only a later step of Holm's calls different, whose
      interval at α/m would reach over 0: it gets the α of its own step, α·p/corrected. The signs of
      all arms called different hold together with 1 − α, and so do all intervals at α/m. There
      are no bounded intervals that do both for Holm's procedure (Guilbaud 2012); `dunnett` and
      `bonferroni` have them.
    """
    p, adjusted = np.asarray(p, dtype=float), np.asarray(corrected, dtype=float)
    m = max(1, len(p))
    if correction == "none":
        return np.full(len(p), alpha)
    if correction == "bh":
        return np.full(len(p), max(1, int((adjusted < alpha).sum())) * alpha / m)
    single = np.full(len(p), alpha / m)
    if correction == "holm":
        later = (adjusted < alpha) & ~(p < alpha / m)
        single[later] = alpha * p[later] / adjusted[later]
    return single
