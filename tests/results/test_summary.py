"""Final values, the table of arms and the verdicts, on numbers known beforehand."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from scipy import stats

from grpolab.results.load import Results, ResultsError, load
from grpolab.results.summary import arm_table, final_value, run_values, verdicts

if TYPE_CHECKING:  # the same file under the name the type checker knows it by
    from tests.results.synthetic_sweep import Job, write_files
else:
    from synthetic_sweep import Job, write_files

VERDICT_HEADER = (
    "study,metric,arm,baseline,n,mean,baseline_mean,delta,low,high,interval,test,p,p_corrected,"
    "correction,verdict"
)
JITTER = (0.0, 0.011, -0.007, 0.004, 0.019, -0.013)


def sweep(root: Path, arms: dict[str, float], seeds: range = range(6)) -> Results:
    """Arms whose effect is known; jitter differs between arms, so differences have a spread."""
    jobs = [
        Job(arm, seed, 0.5 + effect + 0.02 * seed + JITTER[(seed * (i + 1)) % 6])
        for i, (arm, effect) in enumerate(arms.items())
        for seed in seeds
    ]
    write_files(root, jobs, "s", "2026-01-01")
    return load(output_dir=root, sweep="s")


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


def test_verdicts_have_exactly_the_promised_columns(first: Results) -> None:
    table = verdicts(first, "eval/accuracy")
    assert ",".join(table.columns) == VERDICT_HEADER
    assert list(table["arm"]) == ["clip=cispo,kl=k3", "clip=none"]
    assert set(table["baseline"]) == {"baseline"}
    assert set(table["correction"]) == {"holm"}
    assert set(table["verdict"]) == {"undecided"}


def test_verdicts_are_paired_by_seed(tmp_path: Path) -> None:
    results = sweep(tmp_path, {"baseline": 0.0, "clip=a": 0.1, "clip=b": -0.1, "clip=c": 0.0})
    table = verdicts(results, "eval/accuracy").set_index("arm")
    assert dict(table["verdict"]) == {"clip=a": "better", "clip=b": "worse", "clip=c": "undecided"}
    finals = run_values(results, "eval/accuracy").pivot_table("final", "seed", "arm")
    theirs = stats.ttest_rel(finals["clip=a"], finals["baseline"])
    row = table.loc["clip=a"]
    interval = theirs.confidence_interval(0.95)
    assert (row["test"], row["interval"], row["n"]) == ("paired t", "student-t 95%", 6)
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["delta"] == pytest.approx(row["mean"] - row["baseline_mean"])
    assert (table["p_corrected"] >= table["p"]).all()


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    results = sweep(tmp_path, {"baseline": 0.0, "clip=a": 0.1})
    renamed = results.history.replace({"metric": {"eval/accuracy": "reward/unscorable_share"}})
    assert list(verdicts(Results(results.runs, renamed), "reward/unscorable_share")["verdict"]) == [
        "worse"
    ]


def test_seeds_that_do_not_match_are_compared_by_welch(tmp_path: Path) -> None:
    jobs = [Job("baseline", s, f) for s, f in ((0, 0.5), (1, 0.52), (2, 0.55))]
    jobs += [Job("clip=a", s, f) for s, f in ((7, 0.6), (8, 0.65))]
    write_files(tmp_path, jobs, "s", "2026-01-01")
    results = load(output_dir=tmp_path, sweep="s")
    row = verdicts(results, "eval/accuracy").iloc[0]
    finals = run_values(results, "eval/accuracy")
    arm, base = (finals.loc[finals["baseline"] == flag, "final"] for flag in (False, True))
    assert row["test"] == "Welch t"
    assert row["p"] == pytest.approx(stats.ttest_ind(arm, base, equal_var=False).pvalue)


def test_missing_runs_shrink_n_and_an_arm_without_runs_stays_a_row(tmp_path: Path) -> None:
    jobs = [Job("baseline", s, 0.5 + 0.01 * s) for s in range(3)]
    jobs += [Job("clip=a", s, 0.6 + 0.02 * s) for s in range(2)] + [
        Job("clip=a", 2, 0.6, "missing")
    ]
    jobs += [Job("clip=b", s, 0.6, "failed") for s in range(3)]
    write_files(tmp_path, jobs, "s", "2026-01-01")
    table = verdicts(load(output_dir=tmp_path, sweep="s"), "eval/accuracy").set_index("arm")
    assert list(table["n"]) == [2, 0]
    # both means are over the two shared seeds, so that their difference is delta
    a = table.loc["clip=a"]
    assert a["delta"] == pytest.approx(a["mean"] - a["baseline_mean"])
    assert table["p"].isna()["clip=b"]
    assert table.loc["clip=b", "verdict"] == "undecided"
    # the comparison that could not be made still counts for Holm
    assert a["p_corrected"] == pytest.approx(min(1.0, 2 * a["p"]))


def test_no_baseline_no_verdicts(tmp_path: Path) -> None:
    write_files(tmp_path, [Job("clip=a", 0, 0.5)], "s", "2026-01-01")
    table = verdicts(load(output_dir=tmp_path, sweep="s"), "eval/accuracy")
    assert ",".join(table.columns) == VERDICT_HEADER
    assert len(table) == 0


def test_a_seed_counted_twice_is_refused(first: Results) -> None:
    runs = first.runs.copy()
    runs.loc[runs["job_id"] == "baseline-1", "seed"] = 0
    with pytest.raises(ResultsError, match=r"^sweep=null: .*several runs of arm baseline, seed 0"):
        verdicts(Results(runs, first.history), "eval/accuracy")


def test_unknown_metric_is_refused_with_the_nearest(first: Results) -> None:
    with pytest.raises(ResultsError, match=r"^metric=eval/acuracy: .*nearest: eval/accuracy$"):
        verdicts(first, "eval/acuracy")
