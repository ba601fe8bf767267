"""Small versions of experiments/statistics: coverage, wrong verdicts, power, planted effects."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.statistics import simulate
from grpolab.results import statistics


@pytest.mark.parametrize("n", [3, 5, 10])
def test_student_t_covers_what_it_says(n: int) -> None:
    # 4 standard errors of a share of .95 over 8,000 draws are .0097
    found = simulate.coverage(np.random.default_rng(n), n, 8000)
    assert found["share"] == pytest.approx(0.95, abs=0.0097)


def test_the_bootstrap_of_five_does_not() -> None:
    found = simulate.coverage(np.random.default_rng(0), 5, 1000, "percentile")
    assert 0.78 < found["share"] < 0.90


@pytest.mark.parametrize("n", [3, 5])
def test_twelve_arms_that_do_nothing(n: int) -> None:
    found = simulate.family_wise(np.random.default_rng(n), 6000, 12, n)
    assert found["none"]["share"] > 0.25
    for correction in ("holm", "bonferroni", "dunnett", "holm, sign_flip"):
        assert found[correction]["share"] <= 0.05 + 4 * found[correction]["error"]


def test_twelve_arms_that_do_nothing_on_accuracies() -> None:
    found = simulate.family_wise_accuracies(np.random.default_rng(0), 6000, 5)
    assert found["share"] <= 0.05 + 4 * found["error"]


def test_the_table_says_what_the_simulation_counts() -> None:
    assert simulate.agreement(np.random.default_rng(1), 25, 12, 5)["share"] == 1.0
    # both ways of counting sign flips
    values = simulate.studies(np.random.default_rng(2), 3, [0.5, 1.0], 6)
    expected = [[statistics.sign_flip(arm - s[0]) for arm in s[1:]] for s in values]
    assert simulate.sign_flip_p(values) == pytest.approx(np.array(expected))


def test_power_is_what_was_promised() -> None:
    for effect, n, arms in ((1.0, 10, 3), (2.0, 5, 6)):
        found = simulate.power(np.random.default_rng(n), 6000, effect, n, arms)
        assert found["alone"]["share"] == pytest.approx(found["alone promised"], abs=0.03)
        assert found["holm"]["share"] == pytest.approx(found["holm promised"], abs=0.05)


def test_planted_effects_on_accuracies() -> None:
    found = simulate.planted(np.random.default_rng(3), 40, 12)
    assert found["+.05"]["better"] > 0.8
    assert found["-.05"]["worse"] > 0.6
    for name, wrong in (("+.05", "worse"), ("-.05", "better"), ("-.03", "better")):
        assert found[name][wrong] == 0
    # 40 draws of a chance of at most .05: more than 7 happen once in 500 times
    assert found["-.03"]["equivalent"] <= 7 / 40
    assert found["0"]["better"] + found["0"]["worse"] <= 7 / 40


def test_survivors_are_not_called_better() -> None:
    found = simulate.survivors(np.random.default_rng(4), 60, 16)
    assert found["survivors only"]["share"] > 0.2
    assert found["verdicts"]["share"] == 0
