"""Read runs from any MLflow store whose runs carry the `grpolab.*` tags and the metrics.

A local sqlite file is read by SQL, any other store through MLflow's client; both give the same.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from grpolab.results.frames import ResultsError, RunRecord, factor_text, refuse
from grpolab.results.points import Points, merged
from grpolab.results.sql_store import SqlStore, sqlite_path
from grpolab.results.store import JOB, SWEEP, ClientStore, Store, StoredRun

_STATUS = {
    "FINISHED": "done",
    "RUNNING": "running",
    "FAILED": "failed",
    "KILLED": "pending",  # interrupted: the same command goes on with it
    "SCHEDULED": "pending",
}
_REASON = "grpolab.reason"  # optional: MLflow has no field for why a run failed


def read(uri: str, sweep: str | None, study: str | None) -> list[RunRecord]:
    """Records of `records`, of a store that is opened for it; their points cannot be read."""
    with opened(uri) as store:
        return records(store, sweep, study)


@contextmanager
def opened(uri: str) -> Iterator[Store]:
    """The store at that URI, read only.

    Raises:
        ResultsError: a file that does not exist, which MLflow would make, or nobody there.
    """
    from grpolab.component import ConfigError
    from grpolab.tracking.mlflow import check_reachable

    path = sqlite_path(uri)
    if path is not None and not path.is_file():
        raise ResultsError(f"uri={uri}: no such file")
    try:
        check_reachable(uri)
    except ConfigError as error:
        raise ResultsError(f"uri={uri}: {str(error).removeprefix('tracking.uri: ')}") from error
    try:
        store: Store = ClientStore(uri) if path is None else SqlStore(path)
    except sqlite3.DatabaseError as error:
        if not isinstance(error, sqlite3.OperationalError):
            raise ResultsError(f"uri={uri}: is no sqlite database ({error})") from error
        store = ClientStore(uri)  # an older or newer schema: MLflow says what it makes of it
    try:
        yield store
    finally:
        store.close()


def records(store: Store, sweep: str | None, study: str | None) -> list[RunRecord]:
    """Records of one sweep, of one study (= experiment), or of every grpolab run of the store.

    Only child runs count, those with a job_id. Raises ResultsError for an unknown study or sweep.
    """
    experiments = _experiments(store, study)
    runs = sorted(_runs(store, list(experiments), sweep), key=lambda run: (run.start, run.run_id))
    attempts: dict[tuple[str, str], list[StoredRun]] = {}
    for run in runs:  # the oldest first, so that a later attempt overrides an earlier one
        own = run.tags.get("grpolab.study", experiments[run.experiment_id])
        attempts.setdefault((own, run.tags[JOB]), []).append(run)
    keys = _factor_keys(runs)
    return [_record(store, name, group, keys) for (name, _), group in attempts.items()]


def _experiments(store: Store, study: str | None) -> dict[str, str]:
    found = store.experiments()
    chosen = {number: name for number, name in found.items() if study in (None, name)}
    if not chosen and study is not None:
        raise refuse("study", study, "no such experiment in the store", sorted(found.values()))
    return chosen


def _runs(store: Store, experiments: Sequence[str], sweep: str | None) -> list[StoredRun]:
    """Child runs of `sweep`; `latest`: that of the newest run."""
    if sweep is None:
        return store.runs(experiments, None)
    if sweep != "latest":
        found = store.runs(experiments, sweep)
        if found:
            return found
    swept = [run for run in store.runs(experiments, None) if SWEEP in run.tags]
    if sweep == "latest" and swept:
        newest = max(swept, key=lambda run: (run.start, run.run_id)).tags[SWEEP]
        return [run for run in swept if run.tags[SWEEP] == newest]
    names = sorted({run.tags[SWEEP] for run in swept})
    raise refuse("sweep", sweep, "no such sweep in the store", names)


def _record(
    store: Store, study: str, attempts: Sequence[StoredRun], keys: Sequence[str]
) -> RunRecord:
    """One record a job: attempts at it are merged, a finished one gives the status."""
    # the newest attempt stands for the job, unless only an earlier one finished
    finished = [run for run in attempts if run.status == "FINISHED"]
    run = (finished or attempts)[-1]
    tags = run.tags
    arm = tags.get("grpolab.arm", "unknown")
    prints = [attempt.fingerprint for attempt in attempts]
    known = [found for found in prints if found is not None]
    return RunRecord(
        study=study,
        sweep=tags.get(SWEEP),
        job_id=tags[JOB],
        arm=arm,
        baseline=tags.get("grpolab.baseline", "").lower() == "true",
        seed=int(tags.get("grpolab.seed", -1)),
        status=_status(run),
        reason=tags.get(_REASON) if run.status != "FINISHED" else None,  # of an earlier try
        factors={key: _factor(key, run, dict(_overrides(arm))) for key in keys},
        read=_reader(store, attempts),
        fingerprint=";".join(known) if len(known) == len(prints) else None,
    )


def _status(run: StoredRun) -> str:
    if run.status == "KILLED" and "grpolab.pruned" in run.tags:
        return "pruned"  # a search ended it early
    return _STATUS.get(run.status, "pending")


def _reader(store: Store, attempts: Sequence[StoredRun]) -> Callable[[], Points]:
    return lambda: merged([store.points(attempt) for attempt in attempts])


def _factor(key: str, run: StoredRun, swept: dict[str, str]) -> str | None:
    """A swept key's value; a group that another sweep swept is known by its name."""
    return factor_text(run.params.get(key, swept.get(key, run.params.get(f"{key}.name"))))


def _factor_keys(runs: Iterable[StoredRun]) -> list[str]:
    """The swept keys: those by which some arm differs from the baseline."""
    arms = {run.tags.get("grpolab.arm", "") for run in runs}
    return sorted({key for arm in arms for key, _ in _overrides(arm)})


def _overrides(arm: str) -> list[tuple[str, str]]:
    """`clip=cispo,sampler.stop=[a,b]` as pairs; a comma inside brackets belongs to its value."""
    parts = re.split(r",(?=[^,=\[\]{}()]+=)(?![^\[{(]*[\]})])", arm)
    pairs = [part.partition("=") for part in parts]
    return [(key, value) for key, separator, value in pairs if separator]
