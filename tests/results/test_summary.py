"""Final values and the table of arms, on numbers known beforehand."""

from __future__ import annotations

import math

import pytest
from scipy import stats

from grpolab.results.load import Results, ResultsError
from grpolab.results.statistics import final_value
from grpolab.results.summary import arm_table, run_values


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([1.0], 1.0),
        ([1.0] * 9 + [3.0], 3.0),
        ([0.0] * 9 + [1.0, 3.0], 2.0),
        ([1.0, math.inf], math.inf),
    ],
)
def test_final_value_is_the_mean_of_the_last_tenth(values: list[float], expected: float) -> None:
    assert final_value(values) == expected


def test_final_value_of_nothing_is_nan_and_nan_is_not_repaired() -> None:
    assert math.isnan(final_value([]))
    assert math.isnan(final_value([0.5, math.nan]))


def test_every_run_is_a_row_and_only_done_runs_have_a_final_value(first: Results) -> None:
    values = run_values(first, "eval/accuracy").set_index("job_id")
    assert len(values) == len(first.runs)
    # 11 evaluations: the last two, at steps 45 and 50
    before = 0.2 + 0.4 * (1 - math.exp(-4.5))
    assert values.loc["baseline-0", "final"] == pytest.approx((before + 0.6) / 2)
    assert values.loc["baseline-0", "start"] == 0.2
    assert values["final"].isna()["clip-none-1"]
    assert values.loc["clip-none-1", "last_step"] == 25
    assert values.loc["clip-none-1", "evaluations"] == 6


def test_arm_table(first: Results) -> None:
    table = arm_table(first, "eval/accuracy").set_index("arm")
    assert list(table.index) == ["baseline", "clip=cispo,kl=k3", "clip=none"]
    finals = run_values(first, "eval/accuracy").set_index("job_id")["final"]
    pair = finals.loc[["baseline-0", "baseline-1"]].to_numpy()
    assert table.loc["baseline", "final"] == pytest.approx(pair.mean())
    assert table.loc["baseline", "rise"] == pytest.approx(pair.mean() - 0.2)
    low, high = stats.t.interval(0.95, 1, loc=pair.mean(), scale=stats.sem(pair))
    assert (table.loc["baseline", "low"], table.loc["baseline", "high"]) == pytest.approx(
        (low, high)
    )
    assert list(table.loc["clip=none", ["runs", "done", "n"]]) == [2, 1, 1]
    assert table["low"].isna()["clip=none"]


def test_unknown_metric_is_refused_with_the_nearest(first: Results) -> None:
    with pytest.raises(ResultsError, match=r"^metric=eval/acuracy: .*nearest: eval/accuracy$"):
        run_values(first, "eval/acuracy")
