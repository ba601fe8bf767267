"""Logged runs as tidy frames, from the files a sweep wrote or from an MLflow store."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from grpolab.results import cache, from_files, from_mlflow
from grpolab.results import kept as kept_files
from grpolab.results.frames import (
    Results,
    ResultsError,
    RunRecord,
    history_frame,
    ordered,
    refuse,
    runs_frame,
)
from grpolab.results.points import Points
from grpolab.results.where import Where

__all__ = ["Results", "ResultsError", "load"]


def load(
    *,
    output_dir: str | Path = "outputs",
    sweep: str | None = None,
    study: str | None = None,
    runs: str | Sequence[str] | None = None,
    uri: str | None = None,
    where: str | None = None,
    kept: str | Path | None = None,
) -> Results:
    """The runs of a sweep (`latest`: the newest), of a study, or of everything logged.

    With `uri` the runs come from that MLflow store, else from the files under `output_dir`; both
    give the same frames. A sweep's runs are those its manifest lists, wherever in the study they
    were run, and a listed job that never started is a row with status `missing`; `latest` is the
    sweep that was asked for last. (A store knows the manifest from the sweep's own run; of one
    without it the runs count that carry the sweep's tag, and `latest` is that of the newest.)
    Numbers that were read before come from a cache, where their run has not changed since.

    Args:
        output_dir: where the run folders lie.
        sweep: only the runs of this one.
        study: only the runs of this one.
        runs: only these job ids, as a list or separated by commas.
        uri: of an MLflow store. A local sqlite file is opened read-only.
        where: a filter like `status == 'done' and factor.clip in ['ppo', 'cispo'] and step > 10`;
            columns of `runs` choose runs, those only `history` has choose numbers (see `Where`).
        kept: a folder of the parquet files that `experiments/keep.py` writes, instead of both.

    Raises:
        ResultsError: nothing matches; one sentence with the nearest name.
    """
    condition = Where(where) if where is not None else None
    with _source(output_dir, sweep, study, uri, kept) as (found, workers):
        records = _chosen(ordered(found), runs)
        frame = runs_frame(records)
        if condition is not None:
            meant = condition.of_runs(frame)
            records = [record for record, keep in zip(records, meant, strict=True) if keep]
            frame = frame[meant].reset_index(drop=True)
        source = uri if uri is not None else Path(kept or output_dir).resolve()
        points = _points(records, workers, cache.path_of(source, sweep, study, runs, where))
    history = history_frame(records, points)
    if condition is not None and condition.history:
        history = history[condition.of_history(history)].reset_index(drop=True)
    return Results(frame, history)


@contextmanager
def _source(
    output_dir: str | Path,
    sweep: str | None,
    study: str | None,
    uri: str | None,
    kept: str | Path | None,
) -> Iterator[tuple[list[RunRecord], int]]:
    """The records, and how many of them may be read at once."""
    if kept is not None:
        if uri is not None:
            raise ResultsError(f"kept={kept}: uri={uri} is given, too; allowed: one of them")
        yield kept_files.records(kept, sweep, study), 1
        return
    if uri is None:
        yield from_files.read(Path(output_dir), sweep, study), 1
        return
    with from_mlflow.opened(uri) as store:
        yield from_mlflow.records(store, sweep, study), store.workers


def _chosen(records: list[RunRecord], runs: str | Sequence[str] | None) -> list[RunRecord]:
    if runs is None:
        return records
    wanted = [name for name in (runs.split(",") if isinstance(runs, str) else runs) if name]
    there = {record.job_id for record in records}
    for name in wanted:
        if name not in there:
            raise refuse("runs", name, "no such job id", sorted(there))
    return [record for record in records if record.job_id in set(wanted)]


def _points(records: Sequence[RunRecord], workers: int, path: Path) -> list[Points]:
    """Each record's points: from the cache if nothing has changed, else from the source."""
    known = cache.read(path) if records else {}

    def one(record: RunRecord) -> Points:
        found = known.get(record.fingerprint) if record.fingerprint is not None else None
        return record.read() if found is None else found

    if workers > 1 and len(records) > 1:
        with ThreadPoolExecutor(workers) as pool:
            points = list(pool.map(one, records))
    else:
        points = [one(record) for record in records]
    prints = [record.fingerprint for record in records]
    if {p for p in prints if p is not None} - set(known):
        pairs = [(p, own) for p, own in zip(prints, points, strict=True) if p is not None]
        cache.write(path, [p for p, _ in pairs], [own for _, own in pairs])
    return points


class _Callable(ModuleType):
    """The package's `load` is this module as soon as anything imports it: it can be called, so that
    `grpolab.results.load(sweep="latest")` works either way."""

    __call__ = staticmethod(load)


sys.modules[__name__].__class__ = _Callable
