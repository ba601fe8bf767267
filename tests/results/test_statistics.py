"""Known answers worked by hand, SciPy's as a second opinion, and coverage by simulation."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from grpolab.results.statistics import (
    holm,
    mean_interval,
    minimum_sign_flip_p,
    paired,
    sign_flip,
    welch,
)


def test_mean_interval_by_hand() -> None:
    # mean 2, sd 1, n 3: 2 ± 4.302653 / √3 (Student-t, 2 degrees of freedom)
    found = mean_interval([1.0, 2.0, 3.0])
    assert (found.mean, found.n) == (2.0, 3)
    assert found.low == pytest.approx(2 - 2.484138, abs=1e-6)
    assert found.high == pytest.approx(2 + 2.484138, abs=1e-6)


def test_one_value_has_a_mean_and_no_interval() -> None:
    found = mean_interval([0.4])
    assert (found.mean, found.n) == (0.4, 1)
    assert math.isnan(found.low)
    assert math.isnan(found.high)
    assert math.isnan(mean_interval([]).mean)


@pytest.mark.parametrize("n", [2, 3, 5, 10])
def test_interval_covers_95_percent(n: int) -> None:
    samples = np.random.default_rng(n).normal(1.0, 2.0, size=(4000, n))
    found = [mean_interval(sample) for sample in samples]
    covered = np.mean([interval.low <= 1.0 <= interval.high for interval in found])
    # standard error of a share of .95 over 4000 draws is .0034: three of them
    assert covered == pytest.approx(0.95, abs=0.0103)


def test_paired_by_hand() -> None:
    # differences 1, 2, 3: t = 2 / (1 / √3) = 3.4641, two-sided p at 2 degrees .0742
    found = paired([2.0, 4.0, 6.0], [1.0, 2.0, 3.0])
    assert (found.delta, found.n, found.test) == (2.0, 3, "paired t")
    assert found.p == pytest.approx(0.0741799, abs=1e-6)
    assert (found.low, found.high) == pytest.approx((-0.484138, 4.484138), abs=1e-6)


def test_paired_and_welch_agree_with_scipy() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(0.3, 1, 8), rng.normal(0, 2, 8)
    theirs = stats.ttest_rel(x, y)
    ours = paired(x, y)
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))
    theirs = stats.ttest_ind(x, y[:5], equal_var=False)
    ours = welch(x, y[:5])
    assert ours.p == pytest.approx(theirs.pvalue)
    interval = theirs.confidence_interval(0.95)
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high))


def test_equal_differences_are_not_certainty() -> None:
    # t would divide by a spread of zero (or of rounding) and claim p = 0 from two seeds
    found = paired([0.3, 0.4], [0.2, 0.3])
    assert found.test == "sign-flip"
    assert found.p == 0.5
    assert math.isnan(found.low)
    assert paired([0.5, 0.5, 0.5], [0.5, 0.5, 0.5]).p == 1.0


def test_too_few_or_not_finite_values_give_no_p() -> None:
    assert math.isnan(paired([1.0], [0.5]).p)
    assert paired([1.0], [0.5]).delta == 0.5
    assert math.isnan(paired([1.0, math.nan], [0.5, 0.5]).p)
    assert math.isnan(welch([1.0], [0.5, 0.6]).p)
    assert math.isnan(welch([1.0, 1.0], [0.5, 0.5]).p)


def test_unequal_lengths_are_not_pairs() -> None:
    with pytest.raises(ValueError, match="2 and 1 values given"):
        paired([1.0, 2.0], [1.0])


def test_sign_flip_by_hand() -> None:
    # of the 8 signed sums of 1, 2, 3 (±6, ±4, ±2, 0, 0) two reach 6; of -1, 2, 3 four reach 4
    assert sign_flip([1.0, 2.0, 3.0]) == 2 / 8
    assert sign_flip([-1.0, 2.0, 3.0]) == 4 / 8
    assert sign_flip([0.0, 0.0]) == 1.0


def test_sign_flip_agrees_with_scipy_and_has_a_minimum() -> None:
    differences = np.random.default_rng(1).normal(0.5, 1, 9)
    theirs = stats.permutation_test(
        (differences,), np.mean, permutation_type="samples", n_resamples=np.inf
    )
    assert sign_flip(differences) == pytest.approx(theirs.pvalue)
    for n in range(1, 9):
        assert sign_flip(np.arange(1.0, n + 1)) == minimum_sign_flip_p(n)
    assert (minimum_sign_flip_p(5), minimum_sign_flip_p(6)) == (0.0625, 0.03125)


def test_sign_flip_refuses_what_it_cannot_enumerate() -> None:
    with pytest.raises(ValueError, match="1 to 20"):
        sign_flip(np.ones(21))
    with pytest.raises(ValueError, match="at least 1"):
        minimum_sign_flip_p(0)


def test_holm_by_hand() -> None:
    # sorted .005 .01 .03 .04 × 4 3 2 1 = .02 .03 .06 .04, made monotone .02 .03 .06 .06
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.6, 0.9]) == pytest.approx([1.0, 1.0])
    assert len(holm([])) == 0


def test_holm_counts_a_comparison_that_could_not_be_made() -> None:
    corrected = holm([0.01, math.nan])
    assert corrected[0] == pytest.approx(0.02)
    assert math.isnan(corrected[1])


def test_holm_holds_the_family_error_rate() -> None:
    p = np.random.default_rng(2).uniform(size=(4000, 5))
    wrong = np.mean([(holm(row) < 0.05).any() for row in p])
    assert wrong == pytest.approx(0.05, abs=0.011)
