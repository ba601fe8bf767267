"""Two arms compared: paired by seed where seeds are shared, unpaired otherwise.

The unit of replication is the seed. The t tests assume roughly normal values; the sign-flip and
permutation tests do not, are exact where all patterns can be counted, and need 6 pairs (or 4
against 4) to reach p < .05 at all. Their intervals invert the test: every shift of the arm that
the test would not reject.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import comb

import numpy as np
import numpy.typing as npt
from scipy import stats

from grpolab.results.statistics.intervals import ROUNDING, Floats, mean_interval, t_quantile

Array = npt.NDArray[np.float64]
# 2^20 sign patterns are 8 MB a block of 20 seeds; beyond that they are drawn.
MOST_EXACT = 20
DRAWS = 100_000


@dataclass(frozen=True)
class Comparison:
    """A difference of means (arm - baseline), its interval and two-sided p.

    `test` is `paired t`, `Welch t`, `sign-flip`, `permutation`, with `Monte Carlo` after it where
    patterns were drawn and not counted. Bounds are NaN where there is no bounded interval.
    """

    delta: float
    low: float
    high: float
    n: int
    p: float
    test: str


def paired(arm: Floats, baseline: Floats, level: float = 0.95) -> Comparison:
    """Paired t test of `arm` [n] - `baseline` [n], entry i of both from the same seed.

    Where all differences are equal there is no spread to estimate (evaluations on few prompts do
    this by chance, and t would claim p = 0): p and bounds are then the exact sign-flip ones.
    """
    differences = paired_differences(arm, baseline)
    found = mean_interval(differences, level)
    if found.n < 2 or not np.isfinite(differences).all():
        return Comparison(found.mean, np.nan, np.nan, found.n, np.nan, "paired t")
    deviation = float(differences.std(ddof=1))
    size = max(np.abs(np.asarray(arm)).max(), np.abs(np.asarray(baseline)).max())
    if deviation <= ROUNDING * size:
        return _without_spread(found.mean, found.n, level)
    t = found.mean / (deviation / np.sqrt(found.n))
    p = 2 * float(stats.t.sf(abs(t), found.n - 1))
    return Comparison(found.mean, found.low, found.high, found.n, p, "paired t")


def welch(arm: Floats, baseline: Floats, level: float = 0.95) -> Comparison:
    """Welch's t test of two unpaired samples, `arm` [n] and `baseline` [m]; n reported is arm's.

    Degrees of freedom after Welch and Satterthwaite; p and bounds NaN where n or m < 2 or where
    neither sample varies.
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    delta = float(x.mean() - y.mean()) if len(x) and len(y) else np.nan
    none = Comparison(delta, np.nan, np.nan, len(x), np.nan, "Welch t")
    found = welch_error(x, y)
    if found is None:
        return none
    error, degrees = found
    half = t_quantile(level, degrees) * error
    p = 2 * float(stats.t.sf(abs(delta) / error, degrees))
    return Comparison(delta, delta - half, delta + half, len(x), p, "Welch t")


def welch_error(arm: Floats, baseline: Floats) -> tuple[float, float] | None:
    """Standard error of the difference of means and its degrees of freedom; None without either."""
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if min(len(x), len(y)) < 2 or not (np.isfinite(x).all() and np.isfinite(y).all()):
        return None
    a, b = float(x.var(ddof=1)) / len(x), float(y.var(ddof=1)) / len(y)
    size = max(float(np.abs(x).max()), float(np.abs(y).max()))
    if np.sqrt(a + b) <= ROUNDING * size:
        return None
    degrees = (a + b) ** 2 / (a**2 / (len(x) - 1) + b**2 / (len(y) - 1))
    return float(np.sqrt(a + b)), degrees


def sign_flip(differences: Floats) -> float:
    """Exact two-sided sign-flip p of paired `differences` [n], n <= 20.

    The share of the 2^n sign patterns whose |sum| reaches the observed one. Ties are counted
    with a tolerance, so that rounding never lowers p. Raises ValueError for n = 0 or n > 20.
    """
    data = np.asarray(differences, dtype=float)
    if not 0 < len(data) <= MOST_EXACT:
        raise ValueError(f"differences: {len(data)} given, 1 to {MOST_EXACT} are allowed")
    # the sums grow one seed at a time: [1] → [2] → [4] … → [2^n]
    sums = np.zeros(1)
    for value in data:
        sums = np.concatenate([sums + value, sums - value])
    reached = np.abs(sums) >= abs(data.sum()) - ROUNDING * np.abs(data).sum()
    return float(reached.mean())


def minimum_sign_flip_p(n: int) -> float:
    """The smallest p that n pairs can reach by sign-flip: 2 / 2^n (.0625 at 5, .031 at 6)."""
    if n < 1:
        raise ValueError(f"n: {n} given, at least 1 is needed")
    return float(min(1.0, 2.0 ** (1 - n)))


def sign_flip_test(
    arm: Floats,
    baseline: Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Comparison:
    """Sign-flip test of `arm` [n] - `baseline` [n] with its interval; drawn patterns for n > 20.

    Flipping the signs of a set of differences reaches the observed sum exactly where the set's mean
    is not above 0. So a shift θ is rejected by how few of the 2^n - 1 set means lie beyond θ, and
    the interval's ends are order statistics of the set means (Hartigan 1969, "typical values").
    """
    differences = paired_differences(arm, baseline)
    n = len(differences)
    name = "sign-flip" if n <= MOST_EXACT else "sign-flip Monte Carlo"
    delta = float(differences.mean()) if n else np.nan
    if n == 0 or not np.isfinite(differences).all():
        return Comparison(delta, np.nan, np.nan, n, np.nan, name)
    typical = typical_paired(differences, rng, draws)
    return replace(_from_typical(typical, delta, level, np.abs(differences).max()), n=n, test=name)


def permutation_test(
    arm: Floats,
    baseline: Floats,
    rng: np.random.Generator,
    level: float = 0.95,
    draws: int = DRAWS,
) -> Comparison:
    """Permutation test of the difference of means of `arm` [n] and `baseline` [m], unpaired.

    Exact where there are at most `draws` ways to choose the n out of n + m, else that many are
    drawn. p is twice the smaller tail, the observed labelling counted. A relabelling that moves k
    values each way reaches a shift θ's difference where θ ≥ (D - D') / (k/n + k/m), D' its own
    difference: the interval's ends are order statistics of these values.
    """
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    exact = comb(len(x) + len(y), len(x)) <= draws
    name = "permutation" if exact else "permutation Monte Carlo"
    delta = float(x.mean() - y.mean()) if len(x) and len(y) else np.nan
    if not np.isfinite(delta):
        return Comparison(delta, np.nan, np.nan, len(x), np.nan, name)
    typical = typical_unpaired(x, y, rng, draws)
    size = max(float(np.abs(x).max()), float(np.abs(y).max()))
    return replace(_from_typical(typical, delta, level, size), n=len(x), test=name)


def typical_paired(differences: Array, rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """The shifts at which one more sign pattern reaches `differences` [n]: means of its sets."""
    few = len(differences) <= MOST_EXACT
    return _set_means(differences) if few else _drawn(differences, rng, draws)


def typical_unpaired(x: Array, y: Array, rng: np.random.Generator, draws: int = DRAWS) -> Array:
    """The shifts at which one more labelling reaches the difference of `x` [n] and `y` [m]."""
    n, m = len(x), len(y)
    exact = comb(n + m, n) <= draws
    chosen = _labellings(n, m) if exact else _drawn_labels(n, m, rng, draws)
    moved = n - chosen[:, :n].sum(axis=1)
    chosen, moved = chosen[moved > 0], moved[moved > 0]
    both = np.concatenate([x, y])
    sums = chosen @ both
    theirs = sums / n - (both.sum() - sums) / m
    typical: Array = (x.mean() - y.mean() - theirs) / (moved * (1 / n + 1 / m))
    return typical


def _from_typical(typical: Array, delta: float, level: float, size: float) -> Comparison:
    """p of no difference and the interval, from the typical values of all other patterns."""
    total = len(typical) + 1
    slack = ROUNDING * size * 10
    tail = min(int((typical <= slack).sum()), int((typical >= -slack).sum()))
    p = min(1.0, 2 * (1 + tail) / total)
    # the ends are the first values that as many others lie beyond as make p larger than 1 - level
    allowed = (1 - level) * total / 2
    k = int(np.floor(allowed * (1 + 1e-12)))  # with k beyond it 2 (1 + k) / total > 1 - level
    low, high = np.nan, np.nan
    if 1 <= k <= len(typical):
        ordered = np.partition(typical, (k - 1, len(typical) - k))
        low, high = float(ordered[k - 1]), float(ordered[len(typical) - k])
    return Comparison(delta, low, high, 0, p, "")


def _without_spread(mean: float, n: int, level: float) -> Comparison:
    """Differences without spread: p as the signs give it, the interval the one value or nothing."""
    p = minimum_sign_flip_p(n) if mean else 1.0
    ends = mean if minimum_sign_flip_p(n) <= 1 - level else np.nan
    return Comparison(mean, ends, ends, n, p, "sign-flip")


def _set_means(differences: Array) -> Array:
    """Means of all 2^n - 1 non-empty sets of `differences` [n]."""
    sums, counts = np.zeros(1), np.zeros(1)
    for value in differences:
        sums = np.concatenate([sums, sums + value])
        counts = np.concatenate([counts, counts + 1])
    means: Array = sums[1:] / counts[1:]
    return means


def _drawn(differences: Array, rng: np.random.Generator, draws: int) -> Array:
    """Means of up to `draws` random sets of `differences` [n], empty ones left out."""
    chosen = rng.integers(0, 2, size=(draws, len(differences)), dtype=np.int8).astype(float)
    counts = chosen.sum(axis=1)
    means: Array = (chosen @ differences)[counts > 0] / counts[counts > 0]
    return means


def _labellings(n: int, m: int) -> Array:
    """All ways to label n of n + m values, one a row of 0 and 1: [C(n + m, n), n + m]."""
    patterns = np.zeros((1, 0))
    counts = np.zeros(1)
    for i in range(n + m):
        left = n + m - i - 1
        grown = [np.column_stack([patterns, np.full(len(patterns), bit)]) for bit in (0.0, 1.0)]
        patterns, counts = np.concatenate(grown), np.concatenate([counts, counts + 1])
        keep = (counts <= n) & (counts + left >= n)
        patterns, counts = patterns[keep], counts[keep]
    return patterns


def _drawn_labels(n: int, m: int, rng: np.random.Generator, draws: int) -> Array:
    order = rng.random((draws, n + m)).argsort(axis=1)
    labels: Array = (order < n).astype(float)
    return labels


def paired_differences(arm: Floats, baseline: Floats) -> Array:
    x, y = np.asarray(arm, dtype=float), np.asarray(baseline, dtype=float)
    if x.shape != y.shape:
        raise ValueError(f"arm and baseline: {len(x)} and {len(y)} values given, pairs are needed")
    differences: Array = x - y
    return differences
