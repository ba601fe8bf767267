"""Fits find the law they were given, components and effects those that were planted."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from scipy import stats

from grpolab.results.statistics import (
    factorial_effects,
    fit_entropy_law,
    fit_sigmoid,
    variance_components,
)


@pytest.mark.parametrize(
    ("asymptote", "efficiency", "midpoint"),
    [(0.9, 1.5, 40.0), (0.6, 0.7, 300.0), (0.05, 3.0, 10.0)],
)
def test_a_sigmoid_is_found_again(asymptote: float, efficiency: float, midpoint: float) -> None:
    compute = np.geomspace(1, 1000, 30)
    reward = 0.2 + (asymptote - 0.2) / (1 + (midpoint / compute) ** efficiency)
    found = fit_sigmoid(compute, reward, 0.2)
    expected = (asymptote, efficiency, midpoint)
    assert (found.asymptote, found.efficiency, found.midpoint) == pytest.approx(expected, rel=1e-4)
    assert found.error < 1e-8
    # by definition half of the gain is made at the midpoint
    assert found([midpoint])[0] == pytest.approx((0.2 + asymptote) / 2, rel=1e-4)


def test_a_noisy_sigmoid_predicts_what_it_has_not_seen() -> None:
    compute = np.arange(5.0, 400, 5)
    truth = 0.1 + 0.7 / (1 + (60 / compute) ** 2)
    noisy = truth + np.random.default_rng(0).normal(0, 0.01, len(compute))
    seen = compute <= 250
    found = fit_sigmoid(compute[seen], noisy[seen], 0.1)
    assert found(compute[~seen]) == pytest.approx(truth[~seen], abs=0.02)
    assert found.error == pytest.approx(0.01, rel=0.3)


def test_the_entropy_law_is_found_again() -> None:
    entropy = np.linspace(0.05, 1.5, 12)
    found = fit_entropy_law(entropy, -0.2 * np.exp(entropy) + 0.9)
    assert (found.a, found.b) == pytest.approx((0.2, 0.9))
    assert found([0.0])[0] == pytest.approx(0.7)
    theirs = stats.linregress(np.exp(entropy), noisy := entropy**2)
    ours = fit_entropy_law(entropy, noisy)
    assert (-ours.a, ours.b) == pytest.approx((theirs.slope, theirs.intercept))


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="4 points above 0"):
        fit_sigmoid([1, 2, 3], [0, 0, 0], 0.0)
    with pytest.raises(ValueError, match="4 points above 0"):
        fit_sigmoid([0, 1, 2, 3], [0, 0, 0, 0], 0.0)
    with pytest.raises(ValueError, match="2 that differ"):
        fit_entropy_law([1.0, 1.0], [0.1, 0.2])
    with pytest.raises(ValueError, match="2 arms and 2 seeds"):
        variance_components([[1.0, 2.0]])


def test_components_by_hand_and_by_simulation() -> None:
    # arms 0 and 1, seeds 0 2 4 and no rest: MS_seed = 2 · 8 / 2, so σ² = 8 / 2
    found = variance_components([[0, 2, 4], [1, 3, 5]])
    assert (found.seed, found.residual, found.correlation) == pytest.approx((4.0, 0.0, 1.0))
    assert math.isnan(variance_components([[1, 1], [1, 1]]).correlation)
    source = np.random.default_rng(0)
    values = source.normal(0, 2, (1, 4000)) + source.normal(0, 1, (5, 4000))
    found = variance_components(values)
    assert (found.seed, found.residual) == pytest.approx((4.0, 1.0), rel=0.1)
    assert found.correlation == pytest.approx(0.8, abs=0.02)


def test_factorial_effects_are_those_planted() -> None:
    source = np.random.default_rng(1)
    levels = np.array(list(itertools.product((-1, 1), repeat=3)))
    a, b, c = levels.T
    # an effect is from −1 to +1: twice the coefficient
    truth = 0.05 * a - 0.02 * b + 0.03 * a * c
    values = truth[:, None] + source.normal(0, 0.01, (8, 6)) + source.normal(0, 0.1, 6)
    found = factorial_effects(levels, values, ["a", "b", "c"])
    assert set(found) == {"a", "b", "c", "a×b", "a×c", "b×c"}
    for name, effect in {"a": 0.1, "b": -0.04, "a×c": 0.06}.items():
        assert found[name].delta == pytest.approx(effect, abs=0.01)
        assert found[name].p < 0.01
    assert all(abs(found[name].delta) < 0.01 for name in ("c", "a×b", "b×c"))
    per_seed = (values[a > 0].mean(0), values[a < 0].mean(0))
    assert found["a"].p == pytest.approx(stats.ttest_rel(*per_seed).pvalue)


def test_aliases_of_a_fraction_come_out_equal() -> None:
    a, b = np.array(list(itertools.product((-1, 1), repeat=2))).T
    levels = np.column_stack([a, b, a * b])
    values = np.random.default_rng(2).normal(size=(4, 5))
    found = factorial_effects(levels, values, ["a", "b", "c"])
    assert found["c"] == found["a×b"]
    assert factorial_effects(np.column_stack([a, a]), values, ["a", "d"]).keys() == {"a", "d"}
    with pytest.raises(ValueError, match="a is not at"):
        factorial_effects([[1], [1]], values[:2], ["a"])
    with pytest.raises(ValueError, match="−1 and \\+1"):
        factorial_effects([[2], [1]], values[:2], ["a"])
