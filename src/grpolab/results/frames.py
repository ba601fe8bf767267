"""The two tidy frames every analysis starts from, and how a source's records become them."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pandas as pd

RUN_COLUMNS = ("study", "sweep", "job_id", "arm", "baseline", "seed", "status", "reason")
HISTORY_COLUMNS = ("study", "job_id", "arm", "seed", "step", "metric", "value", "tokens", "wall")
FACTOR_PREFIX = "factor."
# Cumulative metrics that become the x columns of the history.
X_SOURCES = {"tokens": "tokens/generated", "wall": "time/wall"}


class ResultsError(ValueError):
    """A request for results that cannot be met: one sentence, the key first."""


def refuse(
    key: str, given: object, problem: str, there: Sequence[str], name: str | None = None
) -> ResultsError:
    """The error for `key=given`: the problem, what there is, and what is nearest to `name`.

    `name` is the given value unless told (a key that does not exist is its own name).
    """
    listed = ", ".join(there[:8]) + (f" and {len(there) - 8} more" if len(there) > 8 else "")
    near = difflib.get_close_matches(name or str(given), there, n=1, cutoff=0.4)
    hint = f"; nearest: {near[0]}" if near else ""
    return ResultsError(f"{key}={given}: {problem}; there is: {listed or 'nothing'}{hint}")


@dataclass(frozen=True)
class Results:
    """Logged runs as two tidy frames.

    `runs` has one row a run, failed, unfinished and missing ones included: study, sweep, job_id,
    arm, baseline (bool), seed (int), status (done, running, failed, pending, missing), reason, and
    `factor.<key>` (text) for each swept config key.
    `history` has one row a logged number: study, job_id, arm, seed, step, metric, value, and the
    x columns `tokens` (generated so far) and `wall` (seconds so far) at that step.
    """

    runs: pd.DataFrame
    history: pd.DataFrame


@dataclass(frozen=True)
class RunRecord:
    """One run as a source gives it; `points` is {metric: {step: value}}, so a later value wins."""

    study: str
    sweep: str | None
    job_id: str
    arm: str
    baseline: bool
    seed: int
    status: str
    reason: str | None = None
    factors: dict[str, str | None] = field(default_factory=dict)
    points: dict[str, dict[int, float]] = field(default_factory=dict)


def factor_text(value: object) -> str | None:
    """A factor's value as text, the same from JSON, YAML, an override and an MLflow parameter."""
    if value is None:
        return None
    text = str(value)
    return {"True": "true", "False": "false", "None": "null"}.get(text, text)


def build(records: Iterable[RunRecord]) -> Results:
    """Records to frames: rows ordered by study, sweep, baseline first, arm, seed."""
    ordered = sorted(
        records, key=lambda r: (r.study, r.sweep or "", not r.baseline, r.arm, r.seed, r.job_id)
    )
    return Results(_runs_frame(ordered), _history_frame(ordered))


def _runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    keys = sorted({key for record in records for key in record.factors})
    rows = [
        {
            **{column: getattr(record, column) for column in RUN_COLUMNS},
            **{FACTOR_PREFIX + key: record.factors.get(key) for key in keys},
        }
        for record in records
    ]
    columns = [*RUN_COLUMNS, *(FACTOR_PREFIX + key for key in keys)]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"baseline": bool, "seed": "int64"})


def _history_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    blocks = [
        _metric_block(record, metric) for record in records for metric in sorted(record.points)
    ]
    if not blocks:
        return pd.DataFrame({name: [] for name in HISTORY_COLUMNS}).astype(
            {"seed": "int64", "step": "int64", "value": float, "tokens": float, "wall": float}
        )
    return pd.concat(blocks, ignore_index=True)[list(HISTORY_COLUMNS)]


def _metric_block(record: RunRecord, metric: str) -> pd.DataFrame:
    points = record.points[metric]
    steps = np.fromiter(sorted(points), dtype=np.int64, count=len(points))
    data: dict[str, object] = {
        "study": record.study,
        "job_id": record.job_id,
        "arm": record.arm,
        "seed": record.seed,
        "step": steps,
        "metric": metric,
        "value": np.array([points[int(step)] for step in steps], dtype=float),
    }
    for column, source in X_SOURCES.items():
        data[column] = _carried(record.points.get(source), steps)
    return pd.DataFrame(data)


def _carried(
    points: dict[int, float] | None, steps: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """A cumulative metric at `steps`: its last value up to then, 0 before its first, NaN if never.

    An evaluation may stand at a step that logged no tokens (step 0: nothing generated yet).
    """
    if not points:
        return np.full(len(steps), np.nan)
    known = np.array(sorted(points), dtype=np.int64)
    values = np.array([0.0] + [points[int(step)] for step in known])
    carried: npt.NDArray[np.float64] = values[np.searchsorted(known, steps, side="right")]
    return carried
