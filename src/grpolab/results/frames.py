"""The two tidy frames every analysis starts from, and how a source's records become them."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.results.points import NONE, Floats, Points, narrow

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
    arm, baseline (bool), seed (int), status (done, running, failed, pending, missing, or pruned by
    a search), reason, and `factor.<key>` (text) for each swept config key, the seed among them
    where there are several.
    `history` has one row a logged number: study, job_id, arm, seed, step, metric, value, and the
    x columns `tokens` (generated so far) and `wall` (seconds so far) at that step; its text columns
    are categories, since a text a row would be most of the memory, and steps and seeds take 32
    bits where they fit.
    """

    runs: pd.DataFrame
    history: pd.DataFrame


@dataclass(frozen=True)
class RunRecord:
    """One run as a source gives it; its points are read later, and only if they are wanted."""

    study: str
    sweep: str | None
    job_id: str
    arm: str
    baseline: bool
    seed: int
    status: str
    reason: str | None = None
    factors: dict[str, str | None] = field(default_factory=dict)
    read: Callable[[], Points] = lambda: NONE
    fingerprint: str | None = None
    """Changes whenever the points do; None where that cannot be told, and nothing is cached."""


def factor_text(value: object) -> str | None:
    """A factor's value as text, the same from JSON, YAML, an override and an MLflow parameter."""
    if value is None:
        return None
    text = str(value)
    return {"True": "true", "False": "false", "None": "null"}.get(text, text)


def ordered(records: Iterable[RunRecord]) -> list[RunRecord]:
    """Records by study, sweep, baseline first, arm, seed: the rows of the frames."""
    return sorted(
        records, key=lambda r: (r.study, r.sweep or "", not r.baseline, r.arm, r.seed, r.job_id)
    )


def runs_frame(records: Sequence[RunRecord]) -> pd.DataFrame:
    """One row a record. A source says nothing of `factor.seed`, which follows from the seeds."""
    keys = {key for record in records for key in record.factors} - {"seed"}
    with_seed = len({record.seed for record in records}) > 1
    names = sorted(keys | {"seed"} if with_seed else keys)
    rows = [
        {column: getattr(record, column) for column in RUN_COLUMNS}
        | {
            FACTOR_PREFIX + key: str(record.seed) if key == "seed" else record.factors.get(key)
            for key in names
        }
        for record in records
    ]
    columns = [*RUN_COLUMNS, *(FACTOR_PREFIX + key for key in names)]
    frame = pd.DataFrame(rows, columns=columns)
    return frame.astype({"baseline": bool, "seed": "int64"})


def history_frame(records: Sequence[RunRecord], points: Sequence[Points]) -> pd.DataFrame:
    """The points of the records, in their order; a run's by metric, then step.

    Each column is made once and whole: the cost is linear in the number of points.
    """
    counts = np.array([len(own) for own in points], dtype=np.int64)
    names = sorted({name for own in points for name in own.used()})
    place = {name: i for i, name in enumerate(names)}
    small = np.min_scalar_type(-max(1, len(names)))
    metrics = [own.coded(place).astype(small) for own in points]

    def repeated(values: Sequence[str]) -> pd.Categorical:
        there = [v for v, count in zip(values, counts, strict=True) if count]
        categories = sorted(set(there))
        place = {v: i for i, v in enumerate(categories)}
        codes = np.array([place[v] for v in there], np.min_scalar_type(-max(1, len(categories))))
        return pd.Categorical.from_codes(
            np.repeat(codes, counts[counts > 0]), pd.Index(categories, dtype="str")
        )

    seeds = narrow(np.array([record.seed for record in records], dtype=np.int64))
    columns = {
        "study": repeated([record.study for record in records]),
        "job_id": repeated([record.job_id for record in records]),
        "arm": repeated([record.arm for record in records]),
        "seed": np.repeat(seeds, counts),
        "step": _joined([own.steps for own in points], np.int32),
        "metric": pd.Categorical.from_codes(_joined(metrics, small), pd.Index(names, dtype="str")),
        "value": _joined([own.values for own in points], np.float64),  # noqa: PD011
    }
    del metrics
    for column, source in X_SOURCES.items():
        columns[column] = _carried(points, counts, source)
    return pd.DataFrame(columns, copy=False)[list(HISTORY_COLUMNS)]


def _joined(parts: Sequence[np.ndarray], kind: npt.DTypeLike) -> np.ndarray:
    return np.concatenate(parts) if len(parts) else np.empty(0, dtype=kind)


def _carried(points: Sequence[Points], counts: np.ndarray, source: str) -> Floats:
    """A cumulative metric at every point: its last value up to then, 0 before, NaN if never.

    An evaluation may stand at a step that logged no tokens (step 0: nothing generated yet).
    """
    column = np.empty(int(counts.sum()))
    edges = np.concatenate([[0], np.cumsum(counts)])
    for own, (start, end) in zip(points, pairwise(edges), strict=True):
        known, values = own.of(source)
        if not len(known):
            column[start:end] = np.nan
            continue
        padded = np.concatenate([[0.0], values])
        column[start:end] = padded[np.searchsorted(known, own.steps, side="right")]
    return column
