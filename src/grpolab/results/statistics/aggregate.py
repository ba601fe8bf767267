"""Aggregates over several tasks, after rliable (arXiv 2108.13264): scores are [runs, tasks].

Uncertainty comes from runs alone: the bootstrap is stratified, it draws each task's runs on their
own, and takes the resamples' percentiles. With few runs such intervals are too narrow (see
`intervals`); the paper recommends them for many tasks together.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import stats

from grpolab.results.statistics.intervals import Floats, Interval

Array = npt.NDArray[np.float64]
RESAMPLES = 2000


def interquartile_mean(scores: Floats) -> float:
    """Mean of the middle half of all `scores` [...]: the lowest and highest quarter cut off.

    As in rliable the number cut at each end is a quarter, rounded down.
    """
    data = np.asarray(scores, dtype=float)
    return float(stats.trim_mean(data, proportiontocut=0.25, axis=None)) if data.size else np.nan


def stratified_interval(
    scores: Floats,
    rng: np.random.Generator,
    aggregate: Callable[[Array], float] = interquartile_mean,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """`aggregate` of `scores` [runs, tasks] with its stratified bootstrap interval; n is runs."""
    data = _table(scores)
    drawn = np.array([aggregate(_redrawn(data, rng)) for _ in range(resamples)])
    return _interval(aggregate(data), drawn, len(data), level)


def improvement(arm: Floats, baseline: Floats) -> float:
    """Probability that a run of `arm` [n, tasks] beats one of `baseline` [m, tasks].

    P(X > Y) + P(X = Y) / 2 for each task (the Mann-Whitney U over nm), averaged over tasks.
    """
    x, y = _table(arm), _table(baseline)
    if x.shape[1] != y.shape[1]:
        raise ValueError(f"tasks: {x.shape[1]} and {y.shape[1]} given, the same are needed")
    difference = x[:, None, :] - y[None, :, :]  # [n, m, tasks]
    return float((0.5 * (np.sign(difference) + 1)).mean())


def improvement_interval(
    arm: Floats,
    baseline: Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> Interval:
    """`improvement` with its interval; runs of both sides are redrawn, each task on its own."""
    x, y = _table(arm), _table(baseline)
    drawn = [improvement(_redrawn(x, rng), _redrawn(y, rng)) for _ in range(resamples)]
    return _interval(improvement(x, y), drawn, len(x), level)


def performance_profile(scores: Floats, thresholds: Floats) -> Array:
    """Share of all runs of `scores` [runs, tasks] above each of `thresholds` [T]: [T]."""
    data, taus = _table(scores), np.asarray(thresholds, dtype=float)
    profile: Array = (data[None] > taus[:, None, None]).mean(axis=(1, 2))
    return profile


def profile_band(
    scores: Floats,
    thresholds: Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    resamples: int = RESAMPLES,
) -> tuple[Array, Array]:
    """Pointwise ends [T] and [T] of the profile's stratified bootstrap band."""
    data = _table(scores)
    drawn = [performance_profile(_redrawn(data, rng), thresholds) for _ in range(resamples)]
    low, high = _percentiles(drawn, level)
    return low, high


def _percentiles(drawn: Floats, level: float) -> Array:
    """[2, ...] the ends between which the middle `level` of `drawn` [resamples, ...] lies."""
    ends: Array = np.quantile(
        np.asarray(drawn, dtype=float), [0.5 - level / 2, 0.5 + level / 2], axis=0
    )
    return ends


def _interval(value: float, drawn: Floats, n: int, level: float) -> Interval:
    low, high = _percentiles(drawn, level)
    return Interval(value, float(low), float(high), n, "stratified percentile")


def _redrawn(data: Array, rng: np.random.Generator) -> Array:
    """`data` [runs, tasks] with every task's runs drawn anew, with replacement."""
    chosen = rng.integers(0, len(data), size=data.shape)
    redrawn: Array = np.take_along_axis(data, chosen, axis=0)
    return redrawn


def _table(scores: Floats) -> Array:
    data = np.asarray(scores, dtype=float)
    if data.ndim == 1:  # one task
        data = data[:, None]
    if data.ndim != 2 or not data.size:
        raise ValueError(f"scores: shape {data.shape} given, [runs, tasks] is needed")
    return data
