"""Verdicts on studies whose effects are planted: what holds, what does not, what was lost."""

from __future__ import annotations

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from grpolab.results.analyze import analyze
from grpolab.results.frames import Results, ResultsError
from grpolab.results.load import load
from grpolab.results.summary import run_values
from grpolab.results.verdicts import VERDICT_COLUMNS, in_words, verdicts

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
    interval = theirs.confidence_interval(1 - 0.05 / 3)
    assert (row["test"], row["interval"], row["n"]) == ("paired t", "student-t 98.3333%", 6)
    assert row["p"] == pytest.approx(theirs.pvalue)
    assert (row["low"], row["high"]) == pytest.approx((interval.low, interval.high))
    assert row["delta"] == pytest.approx(row["mean"] - row["baseline_mean"])
    assert (table["p_corrected"] >= table["p"]).all()


def test_lower_is_better_where_the_metric_says_so(tmp_path: Path) -> None:
    results = sweep(tmp_path, {"baseline": 0.0, "clip=a": 0.1})
    renamed = results.history[results.history["metric"] == "eval/accuracy"]
    renamed = renamed.assign(metric="reward/unscorable_share")
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


BASE = (0.50, 0.52, 0.47, 0.51, 0.55, 0.49, 0.53, 0.48)
NOISE = (0.004, -0.003, 0.001, -0.006, 0.005, 0.002, -0.004, 0.003)


def study(
    arms: Mapping[str, Sequence[float | str | None]], metric: str = "eval/accuracy"
) -> Results:
    """One evaluation a run; None is a run that failed, a text its status."""
    runs, history = [], []
    for arm, finals in arms.items():
        for seed, final in enumerate(finals):
            status = final if isinstance(final, str) else "failed" if final is None else "done"
            key = {"study": "s", "job_id": f"{arm}-{seed}", "arm": arm, "seed": seed}
            runs.append(
                key | {"sweep": "w", "baseline": arm == "baseline", "status": status, "reason": ""}
            )
            if status == "done":
                history.append(
                    key | {"step": 9, "metric": metric, "value": final, "tokens": 1.0, "wall": 1.0}
                )
    logged = pd.DataFrame(history).astype({"value": float})
    return Results(pd.DataFrame(runs), logged)


def shifted(by: float, factor: float = 1.0) -> list[float | str | None]:
    return [b + by + factor * e for b, e in zip(BASE, NOISE, strict=True)]


PLANTED: dict[str, list[float | str | None]] = {
    "baseline": list(BASE),
    "a": shifted(0.05),
    "b": shifted(-0.05),
    "c": shifted(0.0),
    "d": shifted(0.004, 8.0),
}


def test_four_kinds_of_verdict() -> None:
    table = verdicts(study(PLANTED), equivalence=0.01).set_index("arm")
    assert dict(table["verdict"]) == {
        "a": "better", "b": "worse", "c": "equivalent", "d": "undecided",
    }  # fmt: skip
    # no margin, no claim of equivalence
    assert verdicts(study(PLANTED)).set_index("arm").loc["c", "verdict"] == "undecided"


@pytest.mark.parametrize("test", ["auto", "paired_t", "sign_flip", "welch", "permutation"])
@pytest.mark.parametrize("correction", ["holm", "bonferroni", "bh", "none", "dunnett"])
def test_intervals_say_what_the_verdicts_say(test: str, correction: str) -> None:
    if correction == "dunnett" and test != "auto":
        with pytest.raises(ResultsError, match=rf"^test={test}: correction=dunnett has a test of"):
            verdicts(study(PLANTED), correction=correction, test=test)
        return
    table = verdicts(study(PLANTED), equivalence=0.012, correction=correction, test=test)
    assert set(table["correction"]) == {correction}
    for row in table.to_dict("records"):
        if row["verdict"] == "equivalent":
            assert -0.012 < row["low"] <= row["high"] < 0.012
        elif row["p_corrected"] < 0.05:
            assert row["low"] > 0 or row["high"] < 0
        else:
            assert row["low"] <= 0 <= row["high"] or math.isnan(row["low"])


def test_interval_levels_under_holm_by_hand() -> None:
    # m = 4: a and b are found at α/4 and stay there; the others are undecided, at α/4 too
    table = verdicts(study(PLANTED)).set_index("arm")
    assert set(table["interval"]) == {"student-t 98.75%"}
    d = np.array(PLANTED["a"], dtype=float) - np.array(BASE)
    low, high = stats.t.interval(1 - 0.05 / 4, 7, loc=d.mean(), scale=stats.sem(d))
    assert (table.loc["a", "low"], table.loc["a", "high"]) == pytest.approx((low, high))
    assert set(verdicts(study(PLANTED), correction="none")["interval"]) == {"student-t 95%"}


def test_an_equivalent_arms_interval_is_that_of_its_test_by_hand() -> None:
    arms: dict[str, Sequence[float | str | None]] = {"baseline": BASE, "c": shifted(0.0)}
    row = verdicts(study(arms), equivalence=0.01).iloc[0]
    d = np.array(arms["c"], dtype=float) - np.array(BASE)
    low, high = stats.t.interval(0.90, 7, loc=d.mean(), scale=stats.sem(d))
    assert row["interval"] == "student-t 90%"
    assert (row["low"], row["high"]) == pytest.approx((low, high))


def test_dunnett_in_blocks_of_seeds_by_hand() -> None:
    # residuals of value = arm + seed over 5 arms and 8 seeds: 28 degrees
    table = verdicts(study(PLANTED), correction="dunnett").set_index("arm")
    data = np.array(list(PLANTED.values()), dtype=float)
    left = data - data.mean(1, keepdims=True) - data.mean(0) + data.mean()
    error = np.sqrt((left**2).sum() / 28 * 2 / 8)
    delta = data[1:].mean(1) - data[0].mean()
    assert set(table["test"]) == {"Dunnett t by seed"}
    assert set(table["interval"]) == {"dunnett 95%"}
    assert table["delta"].to_numpy() == pytest.approx(delta)
    assert table["p"].to_numpy() == pytest.approx(2 * stats.t.sf(np.abs(delta) / error, 28))
    # two-sided 5 % point for 4 comparisons, by table: 2.58 at 30 degrees, 2.61 at 24; here 28
    half = (table["high"] - table["low"]).to_numpy() / 2
    assert 2.58 < half[0] / error < 2.61
    assert half == pytest.approx(np.full(4, half[0]))
    assert (table["p_corrected"] >= table["p"]).all()


def test_dunnett_without_shared_seeds_is_scipys_and_counts_who_is_missing() -> None:
    arms: dict[str, list[float | str | None]] = {
        "baseline": [*BASE, *["missing"] * 8],
        "a": [*["missing"] * 8, 0.6, 0.62, 0.58],
        "b": [*["missing"] * 12, 0.51, 0.5, 0.55, 0.46],
    }
    table = verdicts(study(arms), correction="dunnett")
    theirs = stats.dunnett([0.6, 0.62, 0.58], [0.51, 0.5, 0.55, 0.46], control=BASE, rng=0)
    assert set(table["test"]) == {"Dunnett t"}
    assert table["p_corrected"].to_numpy() == pytest.approx(theirs.pvalue, abs=2e-4)
    none: list[float | str | None] = ["missing"] * 12
    more = verdicts(study({**arms, "c": none}), correction="dunnett").set_index("arm")
    assert math.isnan(more["p"].to_numpy(dtype=float)[2])
    assert (more["p_corrected"].to_numpy()[:2] > table["p_corrected"].to_numpy()).all()


def test_a_sure_difference_below_the_margin_is_equivalent() -> None:
    arms: dict[str, Sequence[float | str | None]] = {"baseline": BASE, "a": shifted(0.006)}
    assert verdicts(study(arms)).iloc[0]["verdict"] == "better"
    assert verdicts(study(arms), equivalence=0.02).iloc[0]["verdict"] == "equivalent"


def test_metrics_and_arms_are_one_family() -> None:
    results = study(PLANTED)
    again = results.history.assign(metric="eval/pass@8")
    both = Results(results.runs, pd.concat([results.history, again], ignore_index=True))
    table = verdicts(both, ["eval/accuracy", "eval/pass@8"], correction="bonferroni")
    assert list(table["metric"]) == ["eval/accuracy"] * 4 + ["eval/pass@8"] * 4
    assert table["p_corrected"].to_numpy() == pytest.approx(np.minimum(1, 8 * table["p"]))


def test_an_arm_of_survivors_is_not_called_better() -> None:
    whole, lost = shifted(0.05), shifted(0.05)
    lost[2] = None
    table = verdicts(study({"baseline": list(BASE), "a": whole, "b": lost})).set_index("arm")
    assert dict(table["verdict"]) == {"a": "better", "b": "undecided"}
    assert table.loc["b", "n"] == 7
    assert table.loc["b", "test"] == "paired t; failed: 1 of 8, baseline 0 of 8"
    assert (table["p_corrected"] < 0.05).all()
    # worse although its worst run is gone: that holds all the more
    lost = shifted(-0.05)
    lost[2] = None
    assert verdicts(study({"baseline": list(BASE), "b": lost})).iloc[0]["verdict"] == "worse"
    # near the baseline, but not all of it
    lost = shifted(0.0)
    lost[2] = None
    near = study({"baseline": list(BASE), "b": lost})
    assert verdicts(near, equivalence=0.02).iloc[0]["verdict"] == "undecided"


def test_a_baseline_of_survivors_makes_no_arm_worse() -> None:
    base: list[float | str | None] = list(BASE)
    base[0] = None
    table = verdicts(study({"baseline": base, "a": shifted(0.05), "b": shifted(-0.05)}))
    assert list(table["verdict"]) == ["better", "undecided"]
    assert set(table["test"]) == {"paired t; failed: 0 of 8, baseline 1 of 8"}


@pytest.mark.parametrize("end", [math.nan, math.inf, "pruned"])
def test_a_run_without_a_finite_final_value_counts_as_failed(end: float | str) -> None:
    diverged = shifted(0.05)
    diverged[0] = end
    row = verdicts(study({"baseline": list(BASE), "a": diverged})).iloc[0]
    assert (row["n"], row["verdict"]) == (7, "undecided")
    assert row["test"].endswith("failed: 1 of 8, baseline 0 of 8")


def test_runs_that_are_not_over_only_lower_n() -> None:
    some = shifted(0.05)
    some[0], some[1] = "running", "missing"
    row = verdicts(study({"baseline": list(BASE), "a": some})).iloc[0]
    assert (row["n"], row["verdict"], row["test"]) == (6, "better", "paired t")


def test_every_evaluation_equal_is_no_certainty() -> None:
    few = {"baseline": [0.5] * 3, "a": [0.5] * 3}
    assert verdicts(study(few), equivalence=0.1).iloc[0]["verdict"] == "undecided"
    many = {"baseline": [0.5] * 8, "a": [0.5] * 8}
    row = verdicts(study(many), equivalence=0.1).iloc[0]
    # eight signs of d - δ the same: p = 1/256
    assert (row["verdict"], row["delta"], row["low"], row["high"]) == ("equivalent", 0, 0, 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"alpha": "2"}, r"^alpha=2: a number above 0 and below \.5 is needed$"),
        ({"alpha": "x"}, r"^alpha=x: "),
        ({"equivalence": "-0.1"}, r"^equivalence=-0\.1: a difference that would matter"),
        ({"equivalence": "nan"}, r"^equivalence=nan: "),
        ({"correction": "hollm"}, r"^correction=hollm: .*nearest: holm$"),
        ({"test": "paired"}, r"^test=paired: .*nearest: paired_t$"),
        ({"metrics": "eval/acc"}, r"^metric=eval/acc: "),
    ],
)
def test_rules_that_are_none_are_refused(given: dict[str, str], message: str) -> None:
    with pytest.raises(ResultsError, match=message):
        verdicts(study(PLANTED), **given)  # type: ignore[arg-type]


def test_the_command_writes_them_whole(output_dir: Path, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match=r"^alpha=0: "):
        analyze(output_dir=output_dir, sweep="first", out=tmp_path / "o", alpha="0")
    assert not (tmp_path / "o").exists()
    made = analyze(
        output_dir=output_dir, sweep="first", out=tmp_path / "o", alpha="0.1", equivalence="0.5",
        correction="none", test="welch", figures="final_comparison",
    )  # fmt: skip
    rows = list(csv.DictReader(made.verdicts_csv.open()))
    assert tuple(rows[0]) == VERDICT_COLUMNS
    assert {row["correction"] for row in rows} == {"none"}
    assert {row["test"].partition(";")[0] for row in rows} == {"Welch t"}
    assert not list((tmp_path / "o").glob("*.tmp"))


def test_in_words() -> None:
    table = verdicts(study(PLANTED), equivalence=0.01)
    a, b, c, d = in_words(table)
    assert a.startswith("a against baseline on eval/accuracy: better holds (difference +0.05")
    assert ": worse holds (" in b
    assert "a difference of 0.01 or more is ruled out" in c
    assert ": undecided (" in d
    assert re.search(r"needs about \d+ seeds, or about \d+ seeds to rule out 0\.01, for a power", d)
    # what comes back from a file says the same, but for the margin
    written = pd.read_csv(io.StringIO(table.to_csv(index=False)))
    assert in_words(written)[0] == a


def test_the_seeds_that_words_ask_for_by_hand() -> None:
    # differences 1, 0, 2, -1 (sd 1.29, d_z .387): G*Power asks for 55 pairs at α .05, power .8
    base = [0.0, 0.0, 0.0, 0.0]
    row = verdicts(study({"baseline": list(base), "a": [1.0, 0.0, 2.0, -1.0]}))
    assert "needs about 55 seeds, for a power of 0.8" in in_words(row)[0]


def test_words_for_what_was_lost_and_what_was_not_compared() -> None:
    lost = shifted(0.05)
    lost[2] = None
    none: list[float | str | None] = [None] * 8
    survivors, gone = in_words(verdicts(study({"baseline": list(BASE), "a": lost, "b": none})))
    assert "only surviving runs" in survivors
    assert survivors.endswith("Failed runs: 1 of 8, baseline 0 of 8 (Fisher's exact p=1).")
    assert "no comparison could be made (n=0)" in gone
    # 2 of the C(16, 8) tables
    assert gone.endswith("Failed runs: 8 of 8, baseline 0 of 8 (Fisher's exact p=0.00016).")
