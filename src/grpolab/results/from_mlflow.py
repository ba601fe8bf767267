"""Read runs from any MLflow store whose runs carry the `grpolab.*` tags and the metrics.

A local sqlite file is read by SQL, any other store through MLflow's client; both give the same.
"""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime

from grpolab.results.frames import ResultsError, RunRecord, factor_text, refuse
from grpolab.results.points import Points, merged
from grpolab.results.sql_store import SqlStore, sqlite_path
from grpolab.results.store import JOB, SWEEP, ClientStore, Store, StoredRun
from grpolab.tracking.listing import COUNT, ListedJob, Listing, listing_of

LATEST = "latest"

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

    Only child runs count, those with a job_id, and the jobs that a sweep's own run lists. Raises
    ResultsError for an unknown study or sweep.
    """
    experiments = _experiments(store, study)
    named = None if sweep == LATEST else sweep
    runs = store.runs(list(experiments), named)
    listings = _listings(store, experiments, named)
    if sweep is None:
        return _study_records(store, experiments, runs, listings)
    names = {run.tags[SWEEP] for run in runs if SWEEP in run.tags} | {name for _, name in listings}
    if not names:
        raise _no_sweep(store, experiments, sweep)
    newest = _newest(runs, listings) if sweep == LATEST else sweep
    own = [run for run in runs if run.tags.get(SWEEP) == newest]
    found = {key: listing for key, listing in listings.items() if key[1] == newest}
    wanted = {job.job_id for listing in found.values() for job in listing.jobs}
    if wanted - {run.tags[JOB] for run in own}:  # earlier sweeps of the study ran some of them
        every = runs if named is None else store.runs(list(experiments), None)
        own += [r for r in every if r.tags[JOB] in wanted and r.tags.get(SWEEP) != newest]
    return _sweep_records(store, experiments, own, newest, found)


def _experiments(store: Store, study: str | None) -> dict[str, str]:
    found = store.experiments()
    chosen = {number: name for number, name in found.items() if study in (None, name)}
    if not chosen and study is not None:
        raise refuse("study", study, "no such experiment in the store", sorted(found.values()))
    return chosen


def _listings(
    store: Store, experiments: Mapping[str, str], sweep: str | None
) -> dict[tuple[str, str], Listing]:
    """{(study, sweep): what it consists of}, where the sweep's own run says so."""
    found: dict[tuple[str, str], Listing] = {}
    for run in store.runs(list(experiments), sweep, COUNT):
        listing, name = listing_of(run.tags), run.tags.get(SWEEP)
        key = (_study(run, experiments), str(name))
        if listing is None or name is None:
            continue
        if key not in found or found[key].created < listing.created:
            found[key] = listing
    return found


def _study(run: StoredRun, experiments: Mapping[str, str]) -> str:
    return run.tags.get("grpolab.study", experiments[run.experiment_id])


def _newest(runs: Sequence[StoredRun], listings: Mapping[tuple[str, str], Listing]) -> str:
    """The sweep asked for last, as the manifests have it; where a store does not say when that was,
    its newest run does."""
    when: dict[str, float] = {}
    for run in runs:
        if SWEEP in run.tags:
            name = run.tags[SWEEP]
            when[name] = max(when.get(name, 0.0), run.start / 1000)
    told: dict[str, float] = {}
    for (_, name), listing in listings.items():
        with suppress(ValueError):
            at = datetime.fromisoformat(listing.created).timestamp()
            told[name] = max(told.get(name, 0.0), at)
    when = {name: 0.0 for _, name in listings} | when | told
    return max(when, key=lambda name: (when[name], name))


def _no_sweep(store: Store, experiments: Mapping[str, str], sweep: str) -> ResultsError:
    swept = [run for run in store.runs(list(experiments), None) if SWEEP in run.tags]
    names = {run.tags[SWEEP] for run in swept}
    names |= {name for _, name in _listings(store, experiments, None)}
    return refuse("sweep", sweep, "no such sweep in the store", sorted(names))


def _attempts(
    runs: Iterable[StoredRun], experiments: Mapping[str, str]
) -> dict[tuple[str, str], list[StoredRun]]:
    """{(study, job id): attempts at it}, the oldest first, so that a later one overrides it."""
    found: dict[tuple[str, str], list[StoredRun]] = {}
    for run in sorted(runs, key=lambda run: (run.start, run.run_id)):
        found.setdefault((_study(run, experiments), run.tags[JOB]), []).append(run)
    return found


def _study_records(
    store: Store,
    experiments: Mapping[str, str],
    runs: Sequence[StoredRun],
    listings: Mapping[tuple[str, str], Listing],
) -> list[RunRecord]:
    """Every run, and every listed job that has none, as of the first sweep that lists it."""
    keys = _factor_keys(runs)
    attempts = _attempts(runs, experiments)
    found = [_record(store, study, own, keys) for (study, _), own in attempts.items()]
    seen = set(attempts)
    for (study, sweep), listing in sorted(listings.items()):
        for job in listing.jobs:
            if (study, job.job_id) not in seen:
                seen.add((study, job.job_id))
                found.append(_listed(None, study, sweep, listing, job))
    return found


def _sweep_records(
    store: Store,
    experiments: Mapping[str, str],
    runs: Sequence[StoredRun],
    sweep: str,
    listings: Mapping[tuple[str, str], Listing],
) -> list[RunRecord]:
    """A record a listed job, whichever sweep of the study ran it, then those of the sweep's runs
    that are not listed: of a search that was killed, or of a store without lists."""
    keys = _factor_keys(runs)
    attempts = _attempts(runs, experiments)
    found = []
    for (study, _), listing in listings.items():
        for job in listing.jobs:
            own = attempts.pop((study, job.job_id), None)
            record = _record(store, study, own, keys) if own else None
            found.append(_listed(record, study, sweep, listing, job))
    of_sweep = {
        key: [r for r in own if r.tags.get(SWEEP) == sweep] for key, own in attempts.items()
    }
    found += [_record(store, study, own, keys) for (study, _), own in of_sweep.items() if own]
    return found


def _listed(
    record: RunRecord | None, study: str, sweep: str, listing: Listing, job: ListedJob
) -> RunRecord:
    """A job as the sweep that lists it sees it; `record` is what was run of it."""
    if record is None:
        record = RunRecord(study, sweep, job.job_id, job.arm, job.baseline, job.seed, "missing")
    known = {key: factor_text(job.factors.get(key)) for key in listing.factors if key != "seed"}
    factors = {k: record.factors.get(k) if text is None else text for k, text in known.items()}
    return replace(
        record, sweep=sweep, arm=job.arm, baseline=job.baseline, seed=job.seed, factors=factors
    )


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
        factors={key: _factor(key, run, dict(overrides(arm))) for key in keys},
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
    return sorted({key for arm in arms for key, _ in overrides(arm)})


def overrides(arm: str) -> list[tuple[str, str]]:
    """`clip=cispo,sampler.stop=[a,b]` as pairs; a comma inside brackets belongs to its value."""
    parts = re.split(r",(?=[^,=\[\]{}()]+=)(?![^\[{(]*[\]})])", arm)
    pairs = [part.partition("=") for part in parts]
    return [(key, value) for key, separator, value in pairs if separator]
