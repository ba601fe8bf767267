"""One value a run, one row an arm: the definitions fixed before any result was seen.

The final value of a metric is the mean of the last 10 % of its evaluations (rounded up, at least
one). Only finished runs have one: a failed or unfinished run stays a row without it.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pandas as pd

from grpolab.results import statistics
from grpolab.results.frames import Results, ResultsError, refuse

ARM_COLUMNS = (
    "study", "metric", "arm", "baseline", "runs", "done", "n", "start", "final", "low", "high",
    "rise",
)  # fmt: skip
LEVEL = 0.95


def check_metric(results: Results, metric: str) -> None:
    """Raise ResultsError if no run logged `metric`, or there is no run."""
    if results.runs.empty:
        raise ResultsError(f"metric={metric}: no run logged it, since there are no runs")
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
                "final": statistics.final_value(series) if run.status == "done" else np.nan,
            }
        )
    added = pd.DataFrame(rows, columns=["metric", "evaluations", "last_step", "start", "final"])
    added["last_step"] = added["last_step"].astype("Int64")
    return pd.concat([results.runs.reset_index(drop=True), added], axis="columns")


def arm_table(results: Results, metric: str) -> pd.DataFrame:
    """One row an arm, baseline first: runs planned and done, n, start, final ± interval, rise.

    n counts the runs with a finite final value; start, final, its Student-t 95 % interval (low,
    high) and rise (final - start) are means over those n runs.
    """
    rows = []
    for study, arm, baseline, group in arms_of(run_values(results, metric)):
        used = usable(group)
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


def usable(group: pd.DataFrame) -> pd.DataFrame:
    """Runs with a finite final value. Two of one seed would count one replicate twice: refused."""
    used: pd.DataFrame = group[np.isfinite(group["final"].to_numpy(dtype=float))]
    twice = used[used["seed"].duplicated()]
    if len(twice):
        run = twice.iloc[0]
        sweeps = sorted({str(sweep) for sweep in used["sweep"].dropna()})
        problem = f"study {run['study']} holds several runs of arm {run['arm']}, seed {run['seed']}"
        raise refuse("sweep", "null", f"{problem}, choose one sweep", sweeps)
    return used


def arms_of(values: pd.DataFrame) -> Iterator[tuple[str, str, bool, pd.DataFrame]]:
    """(study, arm, is baseline, its runs): studies in order, the baseline first, arms sorted."""
    for study, runs in values.groupby("study"):
        # False sorts before True, so grouping by "not the baseline" puts the baseline first
        for (other, arm), chosen in runs.groupby([~runs["baseline"], "arm"]):
            yield str(study), str(arm), not other, chosen
