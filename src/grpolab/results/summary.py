"""One value a run, one verdict an arm: the definitions fixed before any result was seen.

The final value of a metric is the mean of the last 10 % of its evaluations (rounded up, at least
one). Only finished runs have one: a failed or unfinished run stays a row without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from grpolab.results import statistics
from grpolab.results.frames import Results, refuse
from grpolab.results.metrics import describe

VERDICT_COLUMNS = (
    "study", "metric", "arm", "baseline", "n", "mean", "baseline_mean", "delta", "low", "high",
    "interval", "test", "p", "p_corrected", "correction", "verdict",
)  # fmt: skip
ARM_COLUMNS = (
    "study", "metric", "arm", "baseline", "runs", "done", "n", "start", "final", "low", "high",
    "rise",
)  # fmt: skip
LEVEL = 0.95
FINAL_SHARE_PERCENT = 10


def check_metric(results: Results, metric: str) -> None:
    """Raise ResultsError if no run logged `metric`."""
    logged = sorted(results.history["metric"].unique())
    if metric not in logged:
        raise refuse("metric", metric, "no run logged it", logged)


def check_one_study(results: Results) -> None:
    """Raise ResultsError if the runs belong to several studies: their arms do not compare."""
    studies = sorted(results.runs["study"].unique())
    if len(studies) > 1:
        raise refuse("study", "null", "the runs belong to several studies, choose one", studies)


def run_values(results: Results, metric: str) -> pd.DataFrame:
    """`results.runs` with, for each run, its first and final value of `metric`.

    Added columns: metric, evaluations (how many), last_step, start (the first evaluation, before
    training), final (NaN unless the run is done).
    """
    check_metric(results, metric)
    chosen = results.history[results.history["metric"] == metric].sort_values("step")
    values = {
        key: (group["value"].to_numpy(dtype=float), int(group["step"].iloc[-1]))
        for key, group in chosen.groupby(["study", "job_id"])
    }
    rows = []
    for run in results.runs.itertuples(index=False):
        series, last_step = values.get((run.study, run.job_id), (np.empty(0), None))
        rows.append(
            {
                "metric": metric,
                "evaluations": len(series),
                "last_step": last_step,
                "start": series[0] if len(series) else np.nan,
                "final": final_value(series) if run.status == "done" else np.nan,
            }
        )
    added = pd.DataFrame(rows, columns=["metric", "evaluations", "last_step", "start", "final"])
    added["last_step"] = added["last_step"].astype("Int64")
    return pd.concat([results.runs.reset_index(drop=True), added], axis="columns")


def final_value(values: statistics.Floats) -> float:
    """Mean of the last 10 % of `values` [evaluations], rounded up to whole ones; NaN if empty."""
    series = np.asarray(values, dtype=float)
    last = -(-len(series) * FINAL_SHARE_PERCENT // 100)
    return float(series[-last:].mean()) if last else float("nan")


def arm_table(results: Results, metric: str) -> pd.DataFrame:
    """One row an arm, baseline first: runs planned and done, n, start, final ± interval, rise.

    n counts the runs with a finite final value; start, final, its Student-t 95 % interval (low,
    high) and rise (final - start) are means over those n runs.
    """
    rows = []
    for study, arm, baseline, group in _arms(run_values(results, metric)):
        used = _usable(group)
        final = statistics.mean_interval(used["final"].to_numpy(dtype=float), LEVEL)
        start = statistics.mean_interval(used["start"].to_numpy(dtype=float), LEVEL)
        rows.append(
            {
                "study": study,
                "metric": metric,
                "arm": arm,
                "baseline": baseline,
                "runs": len(group),
                "done": int((group["status"] == "done").sum()),
                "n": final.n,
                "start": start.mean,
                "final": final.mean,
                "low": final.low,
                "high": final.high,
                "rise": final.mean - start.mean,
            }
        )
    return pd.DataFrame(rows, columns=list(ARM_COLUMNS))


def verdicts(results: Results, metric: str, alpha: float = 0.05) -> pd.DataFrame:
    """Each arm's final value against its study's baseline: columns VERDICT_COLUMNS.

    Runs are paired by seed where at least two seeds are shared, else compared by Welch's test.
    Holm corrects over all arms of a study. `better` or `worse` needs a corrected p below `alpha`;
    everything else is `undecided` (`equivalent` needs an equivalence test, not made here).
    `baseline` names the baseline arm; a study without baseline runs has no verdicts.
    """
    values = run_values(results, metric)
    tables = [_study_verdicts(group, metric, alpha) for _, group in values.groupby("study")]
    filled = [table for table in tables if len(table)]
    if not filled:
        return pd.DataFrame(columns=list(VERDICT_COLUMNS))
    return pd.concat(filled, ignore_index=True)


def _study_verdicts(values: pd.DataFrame, metric: str, alpha: float) -> pd.DataFrame:
    arms = list(_arms(values))
    base = [(arm, group) for _, arm, baseline, group in arms if baseline]
    if not base:
        return pd.DataFrame(columns=list(VERDICT_COLUMNS))
    name, baseline_runs = base[0]
    rows = [
        {"study": study, "metric": metric, "arm": arm, "baseline": name}
        | _compare(group, baseline_runs)
        for study, arm, baseline, group in arms
        if not baseline
    ]
    table = pd.DataFrame(rows, columns=list(VERDICT_COLUMNS))
    table["p_corrected"] = statistics.holm(table["p"].to_numpy(dtype=float))
    table["correction"] = "holm"
    sign = 1.0 if describe(metric).higher_is_better else -1.0
    table["verdict"] = [
        _verdict(sign * delta, p, alpha)
        for delta, p in zip(table["delta"], table["p_corrected"], strict=True)
    ]
    return table


def _verdict(gain: float, p: float, alpha: float) -> str:
    if not p < alpha:  # NaN included
        return "undecided"
    return "better" if gain > 0 else "worse"


def _compare(arm: pd.DataFrame, baseline: pd.DataFrame) -> dict[str, object]:
    """Mean, baseline mean, difference, interval and p of two arms' final values."""
    x, y = _by_seed(arm), _by_seed(baseline)
    shared = x.index.intersection(y.index)
    # one shared seed still gives a paired difference where Welch has too few runs to do better
    if len(shared) >= 2 or (len(shared) == 1 and min(len(x), len(y)) < 2):
        x, y = x.loc[shared], y.loc[shared]
        found = statistics.paired(x.to_numpy(dtype=float), y.to_numpy(dtype=float), LEVEL)
    else:
        found = statistics.welch(x.to_numpy(dtype=float), y.to_numpy(dtype=float), LEVEL)
    return {
        "n": found.n,
        "mean": x.mean(),
        "baseline_mean": y.mean(),
        "delta": found.delta,
        "low": found.low,
        "high": found.high,
        "interval": "student-t 95%",
        "test": found.test,
        "p": found.p,
    }


def _by_seed(group: pd.DataFrame) -> pd.Series[float]:
    return _usable(group).set_index("seed")["final"].sort_index()


def _usable(group: pd.DataFrame) -> pd.DataFrame:
    """Runs with a finite final value. Two of one seed would count one replicate twice: refused."""
    used: pd.DataFrame = group[np.isfinite(group["final"].to_numpy(dtype=float))]
    twice = used[used["seed"].duplicated()]
    if len(twice):
        run = twice.iloc[0]
        sweeps = sorted({str(sweep) for sweep in used["sweep"].dropna()})
        problem = f"study {run['study']} holds several runs of arm {run['arm']}, seed {run['seed']}"
        raise refuse("sweep", "null", f"{problem}, choose one sweep", sweeps)
    return used


def _arms(values: pd.DataFrame) -> Iterator[tuple[str, str, bool, pd.DataFrame]]:
    """(study, arm, is baseline, its runs): studies in order, the baseline first, arms sorted."""
    for study, runs in values.groupby("study"):
        # False sorts before True, so grouping by "not the baseline" puts the baseline first
        for (other, arm), chosen in runs.groupby([~runs["baseline"], "arm"]):
            yield str(study), str(arm), not other, chosen
