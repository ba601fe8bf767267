"""What a number of paired seeds can show: said before a sweep, not after it.

The effect is a difference of means in standard deviations of a single run over seeds; pairs with
correlation ρ differ by sd·√(2(1 − ρ)), which is what pairing gains.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass
from math import isnan, sqrt

import numpy as np
from scipy import optimize, stats

from grpolab.results.statistics import minimum_sign_flip_p

ALPHA = 0.05
WANTED_POWER = 0.8
MOST_SEEDS = 10_000


@dataclass(frozen=True)
class Seeds:
    """What n paired seeds can show about m comparisons with one baseline, two-sided.

    After Holm the smallest of m p values counts m times: `_holm` is the hardest case, that of the
    first arm to be called different.
    """

    n: int
    comparisons: int
    alpha: float
    effect: float
    correlation: float
    minimum_p: float
    """The smallest p of the exact sign-flip test."""
    minimum_p_holm: float
    n_for_minimum_p: int
    """The fewest seeds with a minimum_p_holm below alpha."""
    power: float | None
    """Of the paired t test of one comparison; None with fewer than two seeds."""
    power_holm: float | None
    n_for_power: int | None
    """The fewest seeds with a power of .8; None where 10,000 are too few."""
    n_for_power_holm: int | None


def seeds(
    n: int, comparisons: int, effect: float, correlation: float, alpha: float = ALPHA
) -> Seeds:
    """What n seeds per arm can show; comparisons of 0 count as one."""
    m = max(1, comparisons)
    return Seeds(
        n=n,
        comparisons=comparisons,
        alpha=alpha,
        effect=effect,
        correlation=correlation,
        minimum_p=minimum_sign_flip_p(n),
        minimum_p_holm=min(1.0, m * minimum_sign_flip_p(n)),
        n_for_minimum_p=seeds_for_sign_flip(m, alpha),
        power=paired_power(n, effect, correlation, alpha),
        power_holm=paired_power(n, effect, correlation, alpha / m),
        n_for_power=seeds_for_power(effect, correlation, alpha),
        n_for_power_holm=seeds_for_power(effect, correlation, alpha / m),
    )


def paired_power(n: int, effect: float, correlation: float, alpha: float = ALPHA) -> float | None:
    """Power of the two-sided paired t test of n pairs, exact; None for n < 2.

    P(|T| > t_{1 − α/2, n−1}) with T noncentral t of n − 1 degrees of freedom, whose noncentrality
    is √n · effect / √(2(1 − ρ)).
    """
    if n < 2:
        return None
    shift = sqrt(n) * effect / sqrt(2 * (1 - correlation))
    critical = float(stats.t.isf(alpha / 2, n - 1))
    upper = float(stats.nct.sf(critical, n - 1, shift))
    lower = float(stats.nct.cdf(-critical, n - 1, shift))
    # both become NaN where shift is so large that the one is 1 and the other 0
    return (1.0 if isnan(upper) else upper) + (0.0 if isnan(lower) else lower)


def seeds_for_power(
    effect: float, correlation: float, alpha: float = ALPHA, power: float = WANTED_POWER
) -> int | None:
    """The fewest pairs that reach a power; None beyond 10,000."""
    low, high = 1, 2
    while (paired_power(high, effect, correlation, alpha) or 0.0) < power:
        if high >= MOST_SEEDS:
            return None
        low, high = high, min(2 * high, MOST_SEEDS)
    while high - low > 1:
        middle = (low + high) // 2
        enough = (paired_power(middle, effect, correlation, alpha) or 0.0) >= power
        low, high = (low, middle) if enough else (middle, high)
    return high


def minimum_detectable_effect(
    n: int, correlation: float, alpha: float = ALPHA, power: float = WANTED_POWER
) -> float | None:
    """The smallest effect that n pairs find with that power, in deviations of a run; None: n < 2.

    A study that found nothing says so only about effects of this size and more.
    """
    if n < 2:
        return None
    high = 1.0
    while (paired_power(n, high, correlation, alpha) or 0.0) < power:
        high *= 2

    def short(effect: float) -> float:
        return (paired_power(n, effect, correlation, alpha) or 0.0) - power

    return float(optimize.brentq(short, 1e-9, high))


def equivalence_power(n: int, difference: float, margin: float, alpha: float = ALPHA) -> float:
    """Power of the two one-sided paired t tests of n pairs within a margin; 0 for n < 2.

    Difference and margin in standard deviations of the paired differences. Given the error's ratio
    s both reject where |mean| < margin − t_{1−α} s/√n; the rest is an integral over s's chi.
    """
    if n < 2:
        return 0.0
    s = stats.chi.ppf((np.arange(2000) + 0.5) / 2000, n - 1) / sqrt(n - 1)  # equal shares of it
    room = sqrt(n) * margin - stats.t.ppf(1 - alpha, n - 1) * s
    shift = sqrt(n) * difference
    inside = stats.norm.cdf(room - shift) - stats.norm.cdf(-room - shift)
    return float(np.where(room > 0, inside, 0.0).mean())


def seeds_for_equivalence(
    difference: float, margin: float, alpha: float = ALPHA, power: float = WANTED_POWER
) -> int | None:
    """The fewest pairs that reach a power of equivalence; None beyond 10,000 or out of the margin.

    Difference and margin in standard deviations of the paired differences.
    """

    def enough(n: int) -> bool:
        return equivalence_power(n, difference, margin, alpha) >= power

    if abs(difference) >= margin or not enough(MOST_SEEDS):
        return None
    return bisect_left(range(MOST_SEEDS), True, lo=2, key=enough)


def seeds_for_sign_flip(comparisons: int, alpha: float = ALPHA) -> int:
    """The fewest pairs whose smallest sign-flip p, after Holm over the comparisons, is below
    alpha: 6 for one, 9 for ten."""
    n = 1
    while comparisons * minimum_sign_flip_p(n) >= alpha:
        n += 1
    return n
