"""A local sqlite store read by SQL: some thirty times as fast as through MLflow's client.

The file is opened read-only. Each query is a run's, so that no lock is held for longer than some
milliseconds, and who trains meanwhile is not held up. What only a writer may do first (roll back
what a kill left half done) is done to a copy.
"""

from __future__ import annotations

import shutil
import sqlite3
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import numpy as np

from grpolab.results.points import Points, points
from grpolab.results.store import JOB, SWEEP, StoredRun, metric_name, numbers

_NEEDED = (
    "select r.run_uuid, r.status, r.start_time, r.experiment_id, r.lifecycle_stage, e.name, "
    "e.lifecycle_stage, t.key, t.value, t.run_uuid, p.key, p.value, p.run_uuid, m.run_uuid, m.key, "
    "m.step, m.timestamp, m.value, m.is_nan "
    "from runs r, experiments e, tags t, params p, metrics m where 0"
)
"""Fails where a table or column is missing: the store is of a version not known here."""
_VARIABLES = 900  # of a statement; sqlite's limit was 999 for long
_ROW = np.dtype([("step", "i8"), ("value", "f8"), ("is_nan", "?")])


def sqlite_path(uri: str) -> Path | None:
    """The file of a URI like sqlite:///outputs/mlflow.db; None for any other store."""
    scheme, separator, rest = uri.partition(":///")
    if not separator or scheme.split("+")[0] != "sqlite":
        return None
    return Path(rest.split("?")[0])


class SqlStore:
    """An MLflow store in a sqlite file."""

    workers = 1

    def __init__(self, path: Path) -> None:
        """Raises sqlite3.Error where the file is no store whose tables are known."""
        self._open = ExitStack()
        try:
            try:
                self.connection = self._connect(path)
            except sqlite3.OperationalError:
                self.connection = self._connect(self._copy(path))
        except BaseException:
            self.close()
            raise

    def _connect(self, path: Path) -> sqlite3.Connection:
        made = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=60, isolation_level=None
        )
        self._open.callback(made.close)
        made.execute("pragma cache_size = -65536")  # KiB; an index and its rows lie far apart
        made.execute(_NEEDED).fetchall()
        return made

    def _copy(self, path: Path) -> Path:
        folder = Path(self._open.enter_context(tempfile.TemporaryDirectory()))
        for suffix in ("", "-journal", "-wal"):
            if Path(f"{path}{suffix}").is_file():
                shutil.copy(f"{path}{suffix}", folder / f"{path.name}{suffix}")
        copy = folder / path.name
        repaired = sqlite3.connect(copy)
        repaired.execute("select count(*) from sqlite_master").fetchall()
        repaired.close()
        return copy

    def close(self) -> None:
        """Ends the connection."""
        self._open.close()

    def experiments(self) -> dict[str, str]:
        """{id: name} of those that are not deleted."""
        found = self._rows(
            "select experiment_id, name from experiments where lifecycle_stage = 'active'"
        )
        return {str(number): str(name) for number, name in found}

    def runs(
        self, experiments: Sequence[str], sweep: str | None, having: str = JOB
    ) -> list[StoredRun]:
        """Those with a job id (or the tag `having`), of any sweep or of this one; deleted ones are
        left out."""
        found = self._rows(
            "select r.run_uuid, r.experiment_id, r.status, coalesce(r.start_time, 0) from runs r "
            "join tags t on t.run_uuid = r.run_uuid and t.key = ? where r.lifecycle_stage = "
            "'active' and (? is null or exists (select 1 from tags s where s.run_uuid = r.run_uuid "
            "and s.key = ? and s.value = ?))",
            [having, sweep, SWEEP, sweep],
        )
        wanted = set(experiments)
        kept = [row for row in found if str(row[1]) in wanted]
        ids = [str(row[0]) for row in kept]
        tags, params = self._pairs("tags", ids), self._pairs("params", ids)
        held = dict(self._in("select run_uuid, count(*) || ':' || max(rowid) from metrics where "
                             "run_uuid in ({}) group by run_uuid", ids))  # fmt: skip
        return [
            StoredRun(
                str(run), str(experiment), str(status), int(start), tags[run], params[run], (),
                f"{run}:{held.get(run)}",
            )
            for run, experiment, status, start in kept
        ]  # fmt: skip

    def _pairs(self, table: str, ids: Sequence[str]) -> dict[str, dict[str, str]]:
        found: dict[str, dict[str, str]] = defaultdict(dict)
        for run, key, value in self._in(
            f"select run_uuid, key, value from {table} where run_uuid in ({{}})", ids
        ):
            found[run][str(key)] = str(value)
        return found

    def _in(self, query: str, ids: Sequence[str]) -> Iterator[Any]:
        for start in range(0, len(ids), _VARIABLES):
            part = ids[start : start + _VARIABLES]
            yield from self._rows(query.format(",".join("?" * len(part))), part)

    def _rows(self, query: str, values: Iterable[Any] = ()) -> list[Any]:
        return self.connection.execute(query, list(values)).fetchall()

    def points(self, run: StoredRun) -> Points:
        """What it logged."""
        self.connection.execute("begin")  # both queries see one state, whoever writes meanwhile
        try:
            # the + keeps sqlite from counting along the index over all runs' keys
            counted = self._rows(
                "select key, count(*) from metrics where run_uuid = ? group by +key order by +key",
                [run.run_id],
            )
            codes = np.repeat(np.arange(len(counted)), [number for _, number in counted])
            found = self._numbers(run, len(codes), "key, step")
            again = (codes[1:] == codes[:-1]) & (found["step"][1:] == found["step"][:-1])
            if again.any():
                # at one time the larger value, which is what MLflow takes for the latest
                found = self._numbers(run, len(codes), "key, step, timestamp, value")
        finally:
            self.connection.execute("rollback")
        values = numbers(found["value"])
        values[found["is_nan"]] = np.nan
        return points([metric_name(str(key)) for key, _ in counted], codes, found["step"], values)

    def _numbers(self, run: StoredRun, number: int, order: str) -> Any:
        """[number] records straight from the cursor: no list of tuples, no text a row."""
        cursor = self.connection.execute(
            f"select step, value, is_nan from metrics where run_uuid = ? order by {order}",
            (run.run_id,),
        )
        return np.fromiter(cursor, dtype=_ROW, count=number)
