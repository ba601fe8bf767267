"""Intervals, exact tests, corrections and equivalence: by hand, by SciPy, by brute force."""

from __future__ import annotations

import itertools
import math
from typing import Literal

import numpy as np
import pytest
from scipy import stats

from grpolab.results.statistics import (
    benjamini_hochberg,
    bonferroni,
    bootstrap_interval,
    dunnett_blocked,
    dunnett_unpaired,
    holm,
    interval,
    interval_alphas,
    mean_interval,
    permutation_test,
    sign_flip,
    sign_flip_test,
    tost_paired,
    tost_permutation,
    tost_sign_flip,
    tost_welch,
)
from grpolab.results.statistics.dunnett import Dunnett, exceeds


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


@pytest.mark.parametrize("method", ["percentile", "bca"])
def test_bootstrap_agrees_with_scipy(method: Literal["percentile", "bca"]) -> None:
    data = rng(3).exponential(1.0, 25)
    theirs = stats.bootstrap(
        (data,), np.mean, method=method, n_resamples=20_000, rng=rng(1)
    ).confidence_interval
    ours = bootstrap_interval(data, rng(2), method=method, resamples=20_000)
    # Monte Carlo error of a 2.5 % quantile over 20,000 draws is about .01 here
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.03)
    assert ours.mean == data.mean()


def test_bca_of_another_statistic_moves_with_scipy() -> None:
    data = rng(4).lognormal(0.0, 1.0, 30)

    def deviation(values: np.ndarray) -> np.ndarray:
        return np.asarray(values.std(axis=-1))

    theirs = stats.bootstrap(
        (data,), lambda v, axis: v.std(axis=axis), n_resamples=20_000, rng=rng(1)
    ).confidence_interval
    ours = bootstrap_interval(data, rng(2), deviation, resamples=20_000)
    assert ours.low == pytest.approx(theirs.low, rel=0.05)
    assert ours.high == pytest.approx(theirs.high, rel=0.05)


def test_the_default_interval_follows_n() -> None:
    data = rng(5).normal(size=50)
    assert interval(data[:49], rng()) == mean_interval(data[:49])
    assert interval(data, rng()).kind == "bca"
    assert interval(data, rng()) == interval(data, rng())
    assert math.isnan(bootstrap_interval([1.0], rng()).low)
    alike = bootstrap_interval([2.0, 2.0, 2.0], rng())
    assert (alike.low, alike.high) == (2.0, 2.0)


@pytest.mark.parametrize("n", [1, 4, 7, 9])
def test_the_sign_flip_interval_holds_the_shifts_that_are_not_rejected(n: int) -> None:
    d = rng(n).normal(0.4, 1.0, n)
    found = sign_flip_test(d, np.zeros(n), rng(), level=0.9)
    assert found.p == pytest.approx(sign_flip(d))
    if 2.0 ** (1 - n) > 0.1:
        assert math.isnan(found.low)
        return
    for shift in np.linspace(found.low - 0.5, found.high + 0.5, 101):
        inside = found.low + 1e-9 < shift < found.high - 1e-9
        outside = shift < found.low - 1e-9 or shift > found.high + 1e-9
        if inside or outside:
            assert (sign_flip(d - shift) > 0.1 - 1e-12) == inside


def test_sign_flip_of_many_seeds_is_drawn() -> None:
    d = rng(8).normal(0.3, 1.0, 40)
    found = sign_flip_test(d, np.zeros(40), rng(1))
    assert found.test == "sign-flip Monte Carlo"
    assert found.p == pytest.approx(stats.ttest_1samp(d, 0).pvalue, abs=0.02)
    assert found == sign_flip_test(d, np.zeros(40), rng(1))


def brute(x: list[float], y: list[float]) -> float:
    """Twice the smaller tail over all labellings."""
    both, delta = [*x, *y], np.mean(x) - np.mean(y)
    others = []
    for chosen in itertools.combinations(range(len(both)), len(x)):
        ours = [both[i] for i in chosen]
        others.append(np.mean(ours) - (sum(both) - sum(ours)) / len(y))
    tails = [
        np.mean([o >= delta - 1e-9 for o in others]),
        np.mean([o <= delta + 1e-9 for o in others]),
    ]
    return float(min(1.0, 2 * min(tails)))


def test_permutation_by_brute_force_and_its_interval() -> None:
    x, y = [1.0, 2.5, 3.1, 4.0], [0.2, 0.9, 1.4, 0.1, 2.0]
    found = permutation_test(x, y, rng())
    assert found.test == "permutation"
    assert found.p == pytest.approx(brute(x, y))
    for shift in np.linspace(found.low - 1, found.high + 1, 41):
        p = brute([v - shift for v in x], y)
        if found.low + 1e-9 < shift < found.high - 1e-9:
            assert p > 0.05
        elif not found.low - 1e-9 <= shift <= found.high + 1e-9:
            assert p <= 0.05


def test_drawn_permutations_agree_with_counted_ones() -> None:
    x, y = rng(1).normal(0.8, 1, 7), rng(2).normal(0, 1, 7)
    counted = permutation_test(x, y, rng())
    drawn = permutation_test(x, y, rng(), draws=3000)
    assert drawn.test == "permutation Monte Carlo"
    assert drawn.p == pytest.approx(counted.p, abs=0.02)


def test_bonferroni_and_benjamini_hochberg_by_hand() -> None:
    p = [0.01, 0.04, 0.03, 0.005]
    assert bonferroni(p) == pytest.approx([0.04, 0.16, 0.12, 0.02])
    # sorted .005 .01 .03 .04 × 4/1 4/2 4/3 4/4 = .02 .02 .04 .04
    assert benjamini_hochberg(p) == pytest.approx([0.02, 0.04, 0.04, 0.02])
    values = rng(1).uniform(size=12) ** 3
    assert benjamini_hochberg(values) == pytest.approx(stats.false_discovery_control(values))
    assert np.isnan(benjamini_hochberg([0.01, math.nan])[1])


def test_levels_of_intervals_by_hand() -> None:
    # Holm of .005 .02 .03 .5 at .05: .02 < .05, .06, .06, .5: only the first, at α/4
    p = np.array([0.005, 0.02, 0.03, 0.5])
    assert interval_alphas(p, holm(p), "holm", 0.05) == pytest.approx([0.0125] * 4)
    # .001 .018 .02: ×3 ×2 ×1 = .003 .036 .036: the second is found at α/2, the third by .036
    p = np.array([0.001, 0.018, 0.02])
    expected = [0.05 / 3, 0.05 / 2, 0.05 * 0.02 / 0.036]
    assert interval_alphas(p, holm(p), "holm", 0.05) == pytest.approx(expected)
    assert interval_alphas(p, p, "none", 0.05) == pytest.approx([0.05] * 3)
    # all three found: each interval at 3α/3
    assert interval_alphas(p, benjamini_hochberg(p), "bh", 0.05) == pytest.approx([0.05] * 3)


def test_tost_by_hand() -> None:
    # differences 1, 2, 3, mean 2, error 1/√3: against 4, t = -2 √3 at 2 degrees, p = .0371
    found = tost_paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0], margin=4.0)
    assert found.p == pytest.approx(stats.t.cdf(-2 * math.sqrt(3), 2))
    assert found.p == pytest.approx(0.0370899, abs=1e-6)
    low, high = stats.t.interval(0.90, 2, loc=2, scale=1 / math.sqrt(3))
    assert (found.low, found.high) == pytest.approx((low, high))
    assert -4 < low < high < 4
    with pytest.raises(ValueError, match="margin"):
        tost_paired([1.0], [1.0], margin=0.0)


@pytest.mark.parametrize("margin", [0.2, 0.6, 1.5])
def test_equivalence_is_two_one_sided_tests(margin: float) -> None:
    x, y = rng(1).normal(0.1, 0.5, 9), rng(2).normal(0, 0.5, 9)
    above = stats.ttest_ind(x, y - margin, equal_var=False, alternative="greater").pvalue
    below = stats.ttest_ind(x, y + margin, equal_var=False, alternative="less").pvalue
    assert tost_welch(x, y, margin).p == pytest.approx(max(above, below))
    sides = []
    for shift, alternative in ((margin, "less"), (-margin, "greater")):
        sides.append(
            stats.permutation_test(
                (x - y - shift,), np.mean, permutation_type="samples", alternative=alternative,
                n_resamples=np.inf,
            ).pvalue
        )  # fmt: skip
    assert tost_sign_flip(x, y, margin, rng()) == pytest.approx(max(sides))


def test_permutation_equivalence_is_how_its_interval_says() -> None:
    x, y = rng(1).normal(0.1, 0.5, 6), rng(2).normal(0, 0.5, 6)
    for margin in np.linspace(0.1, 1.5, 29):
        found = permutation_test(x, y, rng(), level=0.9)
        inside = -margin < found.low and found.high < margin
        assert (tost_permutation(x, y, float(margin), rng()) <= 0.05) == inside


@pytest.mark.parametrize(
    ("m", "degrees", "bound"), [(2, 10, 2.57), (3, 20, 2.54), (4, 30, 2.58), (5, 60, 2.58)]
)
def test_dunnetts_table(m: int, degrees: int, bound: float) -> None:
    # two-sided 5 % points (Dunnett 1964; read off by two decimals)
    weights = np.full(m, math.sqrt(0.5))
    assert Dunnett(weights, weights, degrees, weights).quantile(0.95) == pytest.approx(
        bound, abs=0.006
    )


def test_dunnett_of_one_arm_is_t_and_of_many_is_scipys() -> None:
    one = np.array([0.7])
    for degrees, bound in ((1, 2.0), (5, 10.0), (30, 3.0)):
        assert exceeds(bound, one, degrees) == pytest.approx(
            2 * stats.t.sf(bound, degrees), rel=1e-6
        )
    source = rng(0)
    groups = [source.normal(0.3 * i, 1, 5 + i) for i in range(4)]
    ours = dunnett_unpaired(groups[1:], groups[0])
    assert ours is not None
    theirs = stats.dunnett(*groups[1:], control=groups[0], rng=0)
    assert ours.corrected() == pytest.approx(theirs.pvalue, abs=3e-4)
    # one arm beside a baseline in blocks is the paired t test
    x, y = groups[1][:5], groups[0][:5]
    pair = dunnett_blocked(x[None], y)
    assert pair is not None
    assert pair.corrected()[0] == pytest.approx(stats.ttest_rel(x, y).pvalue)
