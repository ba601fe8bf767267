"""What the analysis asks of an MLflow store, and the answer of its public client.

The numbers MLflow changes are changed back: NaN comes flagged, an infinity as the largest double,
a step logged twice (a resumed run) keeps both points, and `@` is illegal in a metric's name, so
`eval/pass@8` stands there as `eval/pass_at_8`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from grpolab.results.points import Floats, Points, points

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run

SWEEP, JOB = "grpolab.sweep", "grpolab.job_id"
PAGE = 1000
ENDED = ("FINISHED", "FAILED", "KILLED")


@dataclass(frozen=True)
class StoredRun:
    """A run of a store, without its numbers."""

    run_id: str
    experiment_id: str
    status: str
    start: int
    tags: dict[str, str] = field(default_factory=dict)
    params: dict[str, str] = field(default_factory=dict)
    metrics: tuple[str, ...] = ()
    fingerprint: str | None = None


class Store(Protocol):
    """An MLflow store, read only."""

    workers: int
    """How many may read points at once."""

    def experiments(self) -> dict[str, str]:
        """{id: name} of those that are not deleted."""

    def runs(
        self, experiments: Sequence[str], sweep: str | None, having: str = JOB
    ) -> list[StoredRun]:
        """Those with a job id (or the tag `having`), of any sweep or of this one; deleted ones are
        left out."""

    def points(self, run: StoredRun) -> Points:
        """What it logged."""

    def close(self) -> None:
        """Ends the connection."""


class ClientStore:
    """Any store MLflow's client can read: a server, a database, a hosted one."""

    workers = 8

    def __init__(self, uri: str) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
        from mlflow import MlflowClient  # 1.3 s to import

        self.client: MlflowClient = MlflowClient(tracking_uri=uri)

    def experiments(self) -> dict[str, str]:
        """{id: name} of those that are not deleted."""
        from mlflow.entities import ViewType

        found: dict[str, str] = {}
        token: str | None = None
        while True:
            page = self.client.search_experiments(
                ViewType.ACTIVE_ONLY, max_results=PAGE, page_token=token
            )
            found |= {str(e.experiment_id): str(e.name) for e in page}
            token = page.token
            if not token:
                return found

    def runs(
        self, experiments: Sequence[str], sweep: str | None, having: str = JOB
    ) -> list[StoredRun]:
        """Those with a job id (or the tag `having`), of any sweep or of this one; deleted ones are
        left out."""
        where = f"tags.`{having}` LIKE '%'"
        if sweep is not None and "'" not in sweep:  # else all are asked for, and none matches
            where += f" and tags.`{SWEEP}` = '{sweep}'"
        found: list[StoredRun] = []
        token: str | None = None
        while experiments:
            page = self.client.search_runs(
                list(experiments), where, max_results=PAGE, page_token=token
            )
            found += map(_stored, page)
            token = page.token
            if not token:
                break
        return [run for run in found if sweep in (None, run.tags.get(SWEEP))]

    def points(self, run: StoredRun) -> Points:
        """What it logged."""
        codes, steps, values = [], [], []
        for code, name in enumerate(run.metrics):
            history = self.client.get_metric_history(run.run_id, name)
            # at one time the larger value, which is what MLflow takes for the latest
            history = sorted(history, key=lambda p: (p.step, p.timestamp, p.value))
            codes += [code] * len(history)
            steps += [int(p.step) for p in history]
            values += [float(p.value) for p in history]
        names = [metric_name(name) for name in run.metrics]
        return points(names, codes, steps, numbers(np.array(values, dtype=np.float64)))

    def close(self) -> None:
        """Nothing is held."""


def _stored(run: Run) -> StoredRun:
    """The store says what it logged last, but not how much: a run that has ended and gets numbers
    of earlier steps without being opened again (as `grpolab sync` does) is not seen to change."""
    info, data = run.info, run.data
    last = sorted((name, str(value)) for name, value in data.metrics.items())
    ended = info.status in ENDED
    return StoredRun(
        str(info.run_id),
        str(info.experiment_id),
        str(info.status),
        int(info.start_time or 0),
        dict(data.tags),
        dict(data.params),
        tuple(sorted(data.metrics)),
        f"{info.run_id}:{info.end_time}:{last}" if ended else None,
    )


def numbers(values: Floats) -> Floats:
    """MLflow's SQL stores keep an infinity as the largest finite double."""
    return np.where(np.abs(values) == sys.float_info.max, np.copysign(np.inf, values), values)


def metric_name(stored: str) -> str:
    """The name under which a metric was logged."""
    return re.sub(r"^eval/pass_at_(\d+)$", r"eval/pass@\1", stored)
