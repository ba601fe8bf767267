"""What a number of seeds can show: published values, simulation, and limits."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import integrate, stats

from grpolab.results.power import paired_power, seeds, seeds_for_power, seeds_for_sign_flip
from grpolab.results.statistics import holm, minimum_sign_flip_p, sign_flip


@pytest.mark.parametrize(
    ("n", "effect", "power"), [(34, 0.5, 0.8078), (10, 1.0, 0.8031), (15, 0.8, 0.8213)]
)
def test_published_values(n: int, effect: float, power: float) -> None:
    # G*Power 3.1, two dependent means; its dz is the effect at a correlation of .5
    assert paired_power(n, effect, 0.5) == pytest.approx(power, abs=1e-4)


@pytest.mark.parametrize("n", [2, 3, 5, 20])
@pytest.mark.parametrize(("effect", "alpha"), [(0.3, 0.05), (1.0, 0.005), (2.5, 0.05)])
def test_the_noncentral_t_by_its_definition(n: int, effect: float, alpha: float) -> None:
    # T = (Z + δ) / S, with S² ~ χ²/ν independent of Z
    shift, critical = np.sqrt(n) * effect, stats.t.isf(alpha / 2, n - 1)

    def weighted(s: float) -> float:
        found = stats.norm.sf(critical * s - shift) + stats.norm.cdf(-critical * s - shift)
        density = stats.chi.pdf(s * np.sqrt(n - 1), n - 1) * np.sqrt(n - 1)
        return float(found * density)

    expected, _ = integrate.quad(weighted, 0, 12, limit=400)
    assert paired_power(n, effect, 0.5, alpha) == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize(
    ("n", "effect", "correlation", "alpha"),
    [(5, 1.0, 0.5, 0.05), (8, 0.7, 0.0, 0.05), (6, 1.0, 0.8, 0.05 / 3), (2, 3.0, 0.5, 0.05)],
)
def test_power_is_how_often_the_test_finds_it(
    n: int, effect: float, correlation: float, alpha: float
) -> None:
    source = np.random.default_rng(7)
    covariance = [[1.0, correlation], [correlation, 1.0]]
    pairs = source.multivariate_normal([0.0, effect], covariance, (40_000, n))  # [R, n, 2]
    found = stats.ttest_rel(pairs[..., 1], pairs[..., 0], axis=1).pvalue < alpha
    expected = paired_power(n, effect, correlation, alpha)
    assert expected is not None
    error = np.sqrt(expected * (1 - expected) / len(found))
    assert abs(found.mean() - expected) < 4 * error


@pytest.mark.parametrize(("correlation", "n"), [(0.5, 10), (0.8, 6), (0.0, 18)])
def test_pairing_saves_seeds(correlation: float, n: int) -> None:
    assert seeds_for_power(1.0, correlation) == n
    before, there = (paired_power(k, 1.0, correlation) for k in (n - 1, n))
    assert before is not None
    assert there is not None
    assert before < 0.8 <= there


@pytest.mark.parametrize(("comparisons", "n"), [(1, 6), (2, 7), (3, 7), (10, 9)])
def test_the_fewest_seeds_that_the_sign_flip_needs(comparisons: int, n: int) -> None:
    assert seeds_for_sign_flip(comparisons) == n
    # the best case of that many seeds, through the tests that the verdicts use
    best = sign_flip(np.ones(n))
    assert best == minimum_sign_flip_p(n)
    rest = np.ones(comparisons - 1)
    assert holm([best, *rest])[0] < 0.05
    assert holm([sign_flip(np.ones(n - 1)), *rest])[0] >= 0.05


def test_large_and_tiny_effects() -> None:
    for n in (2, 10, 1000):
        assert paired_power(n, 1e4, 0.5) == pytest.approx(1.0, abs=1e-3)
        assert paired_power(n, 1e-9, 0.5) == pytest.approx(0.05, abs=1e-4)
    assert paired_power(1, 1.0, 0.5) is None
    assert seeds_for_power(1e-4, 0.5) is None
    assert seeds_for_power(100.0, 0.5) == 2


def test_together() -> None:
    found = seeds(5, 3, 1.0, 0.5)
    assert (found.minimum_p, found.minimum_p_holm, found.n_for_minimum_p) == (0.0625, 0.1875, 7)
    assert found.power == paired_power(5, 1.0, 0.5)
    assert found.power_holm == paired_power(5, 1.0, 0.5, 0.05 / 3)
    assert (found.n_for_power, found.n_for_power_holm) == (10, seeds_for_power(1.0, 0.5, 0.05 / 3))
    alone = seeds(1, 10, 1.0, 0.5)
    assert (alone.minimum_p, alone.minimum_p_holm, alone.power, alone.n_for_minimum_p) == (
        1.0, 1.0, None, 9,
    )  # fmt: skip
