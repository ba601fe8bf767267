"""Read runs from any MLflow store whose runs carry the `grpolab.*` tags and the metrics.

The numbers MLflow changes are changed back: NaN comes flagged, an infinity as the largest double,
a step logged twice (a resumed run) keeps both points, and `@` is illegal in a metric's name, so
`eval/pass@8` stands there as `eval/pass_at_8`.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from grpolab.results.frames import RunRecord, factor_text, refuse

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

_STATUS = {
    "FINISHED": "done",
    "RUNNING": "running",
    "FAILED": "failed",
    "KILLED": "pending",  # interrupted: the same command goes on with it
    "SCHEDULED": "pending",
}
_SWEEP, _JOB = "grpolab.sweep", "grpolab.job_id"
_PAGE = 1000
_REASON = "grpolab.reason"  # optional: MLflow has no field for why a run failed


def read(uri: str, sweep: str | None, study: str | None) -> list[RunRecord]:
    """Records of one sweep, of one study (= experiment), or of every grpolab run of the store.

    Only child runs count, those with a job_id. Raises ResultsError for an unknown study or sweep.
    """
    from mlflow import MlflowClient  # 1.3 s to import

    client = MlflowClient(tracking_uri=uri)
    experiments = _experiments(client, study)
    runs = _runs(client, experiments, sweep)
    names = {experiment.experiment_id: str(experiment.name) for experiment in experiments}
    return _records(client, runs, names)


def _experiments(client: MlflowClient, study: str | None) -> list[Experiment]:
    from mlflow.entities import ViewType

    found: list[Experiment] = []
    token: str | None = None
    while True:
        page = client.search_experiments(ViewType.ACTIVE_ONLY, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    if study is None:
        return found
    chosen = [experiment for experiment in found if experiment.name == study]
    if not chosen:
        names = sorted(str(experiment.name) for experiment in found)
        raise refuse("study", study, "no such experiment in the store", names)
    return chosen


def _runs(client: MlflowClient, experiments: Sequence[Experiment], sweep: str | None) -> list[Run]:
    """Child runs of `sweep` (`latest`: that of the newest run), oldest first."""
    where = f"tags.`{_JOB}` LIKE '%'"
    if sweep is None:
        return _search(client, experiments, where)
    if sweep != "latest" and "'" not in sweep:
        found = _search(client, experiments, f"{where} and tags.`{_SWEEP}` = '{sweep}'")
        if found:
            return found
    swept = _search(client, experiments, f"{where} and tags.`{_SWEEP}` LIKE '%'")
    if sweep == "latest" and swept:
        newest = swept[-1].data.tags[_SWEEP]
        return [run for run in swept if run.data.tags[_SWEEP] == newest]
    names = sorted({run.data.tags[_SWEEP] for run in swept})
    raise refuse("sweep", sweep, "no such sweep in the store", names)


def _search(client: MlflowClient, experiments: Sequence[Experiment], where: str) -> list[Run]:
    """All matching runs, oldest first, so that a later attempt at a job overrides an earlier."""
    ids = [experiment.experiment_id for experiment in experiments]
    found: list[Run] = []
    token: str | None = None
    while ids:
        page = client.search_runs(ids, where, max_results=_PAGE, page_token=token)
        found += page
        token = page.token
        if not token:
            break
    return sorted(found, key=lambda run: (run.info.start_time or 0, run.info.run_id))


def _records(
    client: MlflowClient, runs: Iterable[Run], names: Mapping[str, str]
) -> list[RunRecord]:
    """One record a job: attempts at the same job are merged, a finished one gives the status."""
    attempts: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        study = run.data.tags.get("grpolab.study", names[run.info.experiment_id])
        attempts.setdefault((study, run.data.tags[_JOB]), []).append(run)
    keys = _factor_keys(run for group in attempts.values() for run in group)
    return [_record(client, study, group, keys) for (study, _), group in attempts.items()]


def _record(
    client: MlflowClient, study: str, attempts: Sequence[Run], keys: Sequence[str]
) -> RunRecord:
    # the newest attempt stands for the job, unless only an earlier one finished
    finished = [run for run in attempts if run.info.status == "FINISHED"]
    run = (finished or attempts)[-1]
    tags = run.data.tags
    points: dict[str, dict[int, float]] = {}
    for attempt in attempts:
        for metric in attempt.data.metrics:
            points.setdefault(_metric_name(metric), {}).update(_points(client, attempt, metric))
    arm = tags.get("grpolab.arm", "unknown")
    swept = dict(_overrides(arm))
    return RunRecord(
        study=study,
        sweep=tags.get(_SWEEP),
        job_id=tags[_JOB],
        arm=arm,
        baseline=tags.get("grpolab.baseline", "").lower() == "true",
        seed=int(tags.get("grpolab.seed", -1)),
        status=_STATUS.get(run.info.status, "pending"),
        reason=tags.get(_REASON),
        factors={key: factor_text(run.data.params.get(key, swept.get(key))) for key in keys},
        points=points,
    )


def _points(client: MlflowClient, run: Run, metric: str) -> dict[int, float]:
    """{step: value} of one metric; of a step logged twice the later point counts."""
    history = client.get_metric_history(run.info.run_id, metric)
    ordered = sorted(history, key=lambda point: int(point.timestamp))
    return {int(point.step): _number(float(point.value)) for point in ordered}


def _number(value: float) -> float:
    """MLflow's SQL stores keep an infinity as the largest finite double."""
    return value * 2 if abs(value) == sys.float_info.max else value


def _metric_name(stored: str) -> str:
    return re.sub(r"^eval/pass_at_(\d+)$", r"eval/pass@\1", stored)


def _factor_keys(runs: Iterable[Run]) -> list[str]:
    """The swept keys: those by which some arm differs from the baseline."""
    arms = {run.data.tags.get("grpolab.arm", "") for run in runs}
    return sorted({key for arm in arms for key, _ in _overrides(arm)})


def _overrides(arm: str) -> list[tuple[str, str]]:
    """`clip=cispo,sampler.stop=[a,b]` as pairs; a comma inside brackets belongs to its value."""
    parts = re.split(r",(?=[^,=\[\]{}()]+=)(?![^\[{(]*[\]})])", arm)
    pairs = [part.partition("=") for part in parts]
    return [(key, value) for key, separator, value in pairs if separator]
