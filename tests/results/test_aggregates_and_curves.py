"""Aggregates, effect sizes, pass@k, clustered errors, curves and rates, on numbers by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from grpolab.results.power import (
    equivalence_power,
    minimum_detectable_effect,
    paired_power,
    seeds_for_equivalence,
)
from grpolab.results.statistics import (
    Crossing,
    area_per_token,
    crossing,
    fisher,
    hedges_g,
    improvement,
    improvement_interval,
    interquartile_mean,
    mcnemar,
    median_crossing,
    paired_by_prompt,
    paired_effect,
    pass_at_k,
    pass_at_k_interval,
    performance_profile,
    profile_band,
    stratified_interval,
    wilson,
)


def test_interquartile_mean_by_hand() -> None:
    # of 8 values 2 go at each end, of 6 one (a quarter rounded down)
    assert interquartile_mean([0, 0, 1, 2, 3, 4, 100, 200]) == 2.5
    assert interquartile_mean([[-9, 1, 2], [3, 4, 99]]) == 2.5
    assert math.isnan(interquartile_mean([]))


def test_improvement_by_hand() -> None:
    # task 1: 3 beats 1 and 2, 2 beats 1 and ties 2: 3.5 of 4; task 2: 0 of 4
    assert improvement([[3, 0], [2, 0]], [[1, 5], [2, 5]]) == (3.5 / 4 + 0) / 2
    x, y = np.random.default_rng(1).normal(size=(2, 9))
    u = stats.mannwhitneyu(x, y).statistic
    assert improvement(x, y) == pytest.approx(u / 81)
    with pytest.raises(ValueError, match="tasks"):
        improvement([[1, 2]], [[1]])


def test_profile_by_hand() -> None:
    scores = [[0.1, 0.5], [0.4, 0.9]]
    assert list(performance_profile(scores, [0.0, 0.4, 0.5, 0.9])) == [1.0, 0.5, 0.25, 0.0]
    # above .3 are all draws of the second task, none to both of the first
    low, high = profile_band(scores, [0.0, 0.3], np.random.default_rng(0), resamples=200)
    assert (list(low), list(high)) == ([1.0, 0.5], [1.0, 1.0])


def test_stratified_draws_leave_tasks_apart() -> None:
    # tasks without spread between runs: whatever is drawn, the aggregate is the same
    scores = np.tile([0.1, 0.5, 0.9], (4, 1))
    found = stratified_interval(scores, np.random.default_rng(0), np.mean, resamples=50)
    assert (found.low, found.high) == pytest.approx((0.5, 0.5))
    assert found.n == 4
    # one task: the percentile bootstrap of its mean, whose standard error is sd/√n
    one = np.random.default_rng(1).normal(size=(60, 1))
    found = stratified_interval(one, np.random.default_rng(2), np.mean, resamples=4000)
    half = 1.96 * one.std() / math.sqrt(60)
    assert (found.high - found.low) / 2 == pytest.approx(half, rel=0.06)
    wins = improvement_interval(one + 9, one, np.random.default_rng(3), resamples=20)
    assert (wins.mean, wins.low, wins.high) == (1.0, 1.0, 1.0)


def test_effects_by_hand() -> None:
    # differences 1, 2, 3: mean 2, deviation 1
    assert paired_effect([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(2.0)
    # means 4 and 2, pooled variance (8 + 2) / 4; J(4) = Γ(2) / (√2 Γ(1.5)) = .797885
    expected = 0.7978846 * 2 / math.sqrt(2.5)
    assert hedges_g([2.0, 4.0, 6.0], [1.0, 2.0, 3.0]) == pytest.approx(expected, rel=1e-6)
    assert math.isnan(hedges_g([1.0], [2.0]))
    assert math.isnan(paired_effect([1.0, 1.0], [1.0, 1.0]))


def test_hedges_g_is_unbiased() -> None:
    source = np.random.default_rng(0)
    found = [hedges_g(source.normal(0.8, 1, 4), source.normal(0, 1, 4)) for _ in range(6000)]
    assert np.mean(found) == pytest.approx(0.8, abs=4 * float(np.std(found)) / math.sqrt(6000))


def test_pass_at_k_counts_subsets() -> None:
    for n, c, k in ((5, 2, 1), (5, 2, 3), (6, 0, 2), (6, 6, 6), (7, 1, 4)):
        answers = [1] * c + [0] * (n - c)
        subsets = list(itertools.combinations(answers, k))
        expected = sum(any(s) for s in subsets) / len(subsets)
        assert pass_at_k([c], n, k)[0] == pytest.approx(expected)
    # 1 − C(900, 10) / C(1000, 10), in logarithms
    logs = [math.lgamma(m + 1) - math.lgamma(m - 9) for m in (900, 1000)]
    assert pass_at_k([100], 1000, 10)[0] == pytest.approx(1 - math.exp(logs[0] - logs[1]))
    found = pass_at_k_interval([0, 2, 4], 4, 1)
    assert found.mean == 0.5
    assert found.high - 0.5 == pytest.approx(stats.t.isf(0.025, 2) * 0.5 / math.sqrt(3))
    with pytest.raises(ValueError, match=r"^k: 5 given, 1 to 4"):
        pass_at_k([1], 4, 5)


def test_clustered_errors_by_hand() -> None:
    # differences 1 1 0 -1 -1 0 in clusters aa b cc b: sums about the mean 0 are 2, 0, -2
    d = np.array([1.0, 1.0, 0.0, -1.0, -1.0, 0.0])
    found = paired_by_prompt(d, np.zeros(6), list("aabccb"))
    error = math.sqrt(8 * 3 / 2) / 6
    assert (found.delta, found.n, found.p) == (0.0, 6, 1.0)
    assert found.high == pytest.approx(stats.t.isf(0.025, 2) * error)
    x, y = np.random.default_rng(0).normal(size=(2, 12))
    assert paired_by_prompt(x, y).p == pytest.approx(stats.ttest_rel(x, y).pvalue)
    with pytest.raises(ValueError, match="clusters: 2 given"):
        paired_by_prompt(d, np.zeros(6), [1, 2])
    assert math.isnan(paired_by_prompt(d, np.zeros(6), [0] * 6).p)


def test_area_and_crossing_by_hand() -> None:
    # trapezoids 0→100: .1 · 100, 100→300: .3 · 200, over 300 tokens
    assert area_per_token([0, 100, 300], [0.0, 0.2, 0.4]) == pytest.approx(70 / 300)
    assert math.isnan(area_per_token([5.0], [1.0]))
    assert crossing([0, 5, 10], [0.1, 0.5, 0.4], 0.5) == Crossing(5.0, True)
    assert crossing([0, 5, 10], [0.1, 0.3, 0.4], 0.5) == Crossing(10.0, False)
    assert crossing([0, 5, 10], [3.0, 2.0, 1.0], 2.0, higher=False) == Crossing(5.0, True)
    assert not crossing([0, 5], [math.nan, math.nan], 0.5).reached
    with pytest.raises(ValueError, match="ascending"):
        area_per_token([2.0, 1.0], [0.0, 0.0])


def test_median_time_with_censoring_by_hand() -> None:
    done = [Crossing(x, True) for x in (10.0, 20.0, 30.0)]
    assert median_crossing(done) == 20.0
    # 2 of 4 got there: S = 3/4 at 10, 1/2 at 20
    assert median_crossing([*done[:2], Crossing(50.0, False), Crossing(50.0, False)]) == 20.0
    assert median_crossing([done[0], Crossing(50.0, False), Crossing(50.0, False)]) == math.inf
    # one left at 15: S = 3/4 at 10, 3/4 · 1/2 at 20
    assert median_crossing([*done, Crossing(15.0, False)]) == 20.0
    assert math.isnan(median_crossing([]))


def test_rates_by_hand() -> None:
    # Wilson, 95 %: of 10 none 0 to .2775, 5 .2366 to .7634
    assert (wilson(0, 10).low, wilson(0, 10).high) == pytest.approx((0.0, 0.27753), abs=1e-5)
    assert (wilson(5, 10).low, wilson(5, 10).high) == pytest.approx((0.23659, 0.76341), abs=1e-5)
    theirs = stats.binomtest(3, 17).proportion_ci(method="wilson")
    assert (wilson(3, 17).low, wilson(3, 17).high) == pytest.approx((theirs.low, theirs.high))
    assert math.isnan(wilson(0, 0).mean)
    # all of 4 against none of 4: 2 of the 70 tables are as far out
    assert fisher(4, 4, 0, 4) == pytest.approx(2 / 70)
    # 5 seeds on which only the arm diverged: 2 / 2^5
    assert mcnemar([1] * 6, [0] * 5 + [1]) == pytest.approx(2 / 32)
    assert mcnemar([1, 0], [1, 0]) == 1.0


def test_minimum_detectable_effect_is_what_power_says() -> None:
    found = minimum_detectable_effect(10, 0.5)
    assert found is not None
    assert paired_power(10, found, 0.5) == pytest.approx(0.8, abs=1e-9)
    # G*Power: 10 pairs find d_z = 1 with .8031
    assert 0.99 < found < 1.0
    assert minimum_detectable_effect(1, 0.5) is None
    tiny = minimum_detectable_effect(2, 0.9, 0.05 / 12)
    assert tiny is not None
    assert tiny > 10


@pytest.mark.parametrize(("difference", "margin"), [(0.0, 1.0), (0.3, 1.0), (0.0, 0.5)])
def test_seeds_for_equivalence_find_it_as_often_as_asked(difference: float, margin: float) -> None:
    n = seeds_for_equivalence(difference, margin)
    assert n is not None
    d = np.random.default_rng(n).normal(difference, 1.0, (20_000, n))
    error = d.std(axis=1, ddof=1) / math.sqrt(n)
    bound = stats.t.ppf(0.95, n - 1) * error
    found = ((d.mean(axis=1) + bound < margin) & (d.mean(axis=1) - bound > -margin)).mean()
    promised = equivalence_power(n, difference, margin)
    # 4 standard errors of a share of .8 over 20,000 draws
    assert found == pytest.approx(promised, abs=0.0113)
    assert equivalence_power(n - 1, difference, margin) < 0.8 <= promised


def test_no_number_of_seeds_shows_equivalence_at_the_margin() -> None:
    assert seeds_for_equivalence(1.0, 1.0) is None
    assert seeds_for_equivalence(0.0, 0.001) is None
