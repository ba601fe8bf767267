"""The driver of a search: draws trials, runs their seeds, ends those that fall behind.

The study and the run folders hold everything: a driver that was killed is followed by another one
with the same command, which takes the trials under way up where their runs stand. With one worker
the trials are those of a search that nobody killed, number by number. With several, a trial is
drawn from what happens to be known by then, so that only `search.sampler=random` without a pruner
gives the same trials again; a trial's own value depends on its settings and seeds alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from grpolab.component import ConfigError
from grpolab.config import bind_run, job_id
from grpolab.sweep.compose import Job
from grpolab.sweep.drive import DEATHS, Driver
from grpolab.sweep.launchers.base import DIED, Ended, Pool
from grpolab.sweep.manifest import run_folder
from grpolab.sweep.search.prepare import Search
from grpolab.sweep.search.study import Study
from grpolab.tracking.folder import RunFolder, lease_is_live
from grpolab.training import checkpoint


@dataclass
class Attempt:
    """A trial under way."""

    number: int
    values: dict[str, str]
    jobs: list[Job]
    keys: list[str]
    place: int = 0
    """The seed it is at."""
    seen: int = -1
    """Bytes of that seed's metrics.jsonl when they were read last."""
    reported: int = 0
    """The resource of the last value handed on."""
    finals: list[list[float]] = field(default_factory=list)
    """[seed][objective] of the seeds that are done."""


class SearchDriver(Driver):
    """Runs a search through a pool.

    Args:
        search: what is asked for.
        study: its trials.
        pool: where runs happen; it holds as many trials at once as it has places.
        sweep_id: of the sweep that the runs belong to.
        changed: called with the trials under way whenever one begins or ends.
        show: as `Driver`'s.
    """

    def __init__(
        self,
        search: Search,
        study: Study,
        pool: Pool,
        sweep_id: str,
        *,
        changed: Callable[[Attempt], None],
        show: Callable[[list[str]], None] = lambda running: None,
    ) -> None:
        super().__init__({}, pool, stop_on_error=search.run.on_error == "stop", show=show)
        self.search, self.study, self.sweep_id, self.changed = search, study, sweep_id, changed
        self.jobs: dict[str, dict[str, Any]] = {}
        self.attempts: dict[int, Attempt] = {}
        self.left_alone: set[int] = set()
        """Trials whose runs were interrupted, or killed their processes: for the next command."""
        self.pruned: dict[str, str] = study.pruned()
        """{job: why} of runs that are to end early and have not been marked so yet."""
        for number in study.begun():
            self._take_up(number)

    # -- trials ----------------------------------------------------------------------------------

    def _goes_on(self) -> bool:
        self._mark_pruned()
        more = not self.stopping and bool(self.attempts or self.study.left())
        return super()._goes_on() or more or bool(self.pruned)

    def _start_some(self) -> None:
        self._look_at_trials()
        while not self.stopping and len(self.attempts) < self.pool.size and self.study.left():
            self._take_up(self.study.draw())
        super()._start_some()

    def _take_up(self, number: int) -> None:
        """Begins a trial, or goes on with one that a killed driver began."""
        values = self.study.overrides(number)
        try:
            jobs = self.search.compose(values)
            for job in jobs:
                bind_run(job.raw)
        except ConfigError as error:  # choices that do not go together
            self.study.note(number, "overrides", values)
            self.study.fail(number, str(error))
            self.changed(Attempt(number, values, [], []))
            return
        attempt = Attempt(number, values, jobs, [job_id(job.raw) for job in jobs])
        self.attempts[number] = attempt
        for key, job in zip(attempt.keys, jobs, strict=True):
            tracking = {**job.raw["tracking"], "sweep": self.sweep_id}
            self.jobs[key] = {**job.raw, "tracking": tracking}
            self.folders[key] = run_folder(job.raw)
        self.changed(attempt)
        self._advance(attempt)

    def _advance(self, attempt: Attempt) -> None:
        """Looks at the trial's runs, and starts the next one that is not done."""
        while attempt.number in self.attempts:
            if attempt.place == len(attempt.keys):
                self._complete(attempt)
                return
            key = attempt.keys[attempt.place]
            folder = self.folders[key]
            state = folder.status()["state"]
            self._report(attempt)
            if attempt.number not in self.attempts:
                return
            if state == "done":
                self._next_seed(attempt)
                continue
            if state == "failed":
                self.study.fail(attempt.number, str(folder.status()["reason"]))
                self._end(attempt)
            elif self.deaths[key] >= DEATHS:
                self._leave_alone(attempt)
            elif not any(key in keys for keys in (self.running, self.waiting, self.elsewhere)):
                self.waiting.append(key)
            return

    def _next_seed(self, attempt: Attempt) -> None:
        """Notes the values of a seed that is done."""
        from grpolab.results.statistics import final_value

        key = attempt.keys[attempt.place]
        series = [self._series(key, g.metric) for g in self.search.settings.goals]
        for goal, points in zip(self.search.settings.goals, series, strict=True):
            if not points:
                reason = f"{self.folders[key].path} logged no {goal.metric}"
                self.study.fail(attempt.number, reason)
                self._end(attempt)
                return
        attempt.finals.append([final_value(np.array([v for _, v in points])) for points in series])
        attempt.place, attempt.seen = attempt.place + 1, -1

    def _complete(self, attempt: Attempt) -> None:
        values = [sum(column) / len(column) for column in zip(*attempt.finals, strict=True)]
        if all(math.isfinite(v) for v in values):
            self.study.complete(attempt.number, values)
        else:
            self.study.fail(attempt.number, f"its value is {values}")
        self._end(attempt)

    def _end(self, attempt: Attempt) -> None:
        del self.attempts[attempt.number]
        self.changed(attempt)

    def _leave_alone(self, attempt: Attempt) -> None:
        del self.attempts[attempt.number]
        self.left_alone.add(attempt.number)

    def _series(self, key: str, metric: str) -> list[tuple[int, float]]:
        return [(s, m[metric]) for s, m in self.folders[key].metrics() if metric in m]

    # -- pruning ---------------------------------------------------------------------------------

    def _report(self, attempt: Attempt) -> None:
        """Hands on what the trial's present run has logged since, and ends the trial if it falls
        behind. The value at a step is the mean over the seeds so far, each one's own being that of
        the last 10 % of its evaluations up to there."""
        from grpolab.results.statistics import final_value

        key = attempt.keys[attempt.place]
        size = _size(self.folders[key].path / "metrics.jsonl")
        if self.study.pruner is None or size == attempt.seen:
            return
        attempt.seen = size
        before = [finals[0] for finals in attempt.finals]
        points = self._series(key, self.search.settings.goals[0].metric)
        for count, (step, _) in enumerate(points, start=1):
            resource = attempt.place * self.search.run.steps + step
            if step == 0 or resource <= attempt.reported:
                continue  # step 0 is before training, and for a later seed the end of the last one
            now = final_value(np.array([v for _, v in points[:count]]))
            value = (sum(before) + now) / (len(before) + 1)
            attempt.reported = resource
            if self.study.report(attempt.number, resource, value):
                self._prune(attempt, key, step, value)
                return

    def _prune(self, attempt: Attempt, key: str, step: int, value: float) -> None:
        metric = self.search.settings.goals[0].metric
        reason = (
            f"pruned by the search at step {step} (trial {attempt.number}, {metric} {value:.4g})"
        )
        self.study.note(attempt.number, "pruned_job", key)
        self.study.prune(attempt.number, reason)
        self._end(attempt)
        if any(key in other.keys[other.place :] for other in self.attempts.values()):
            return  # a trial of the same settings still wants it
        if key in self.waiting:
            self.waiting.remove(key)
        self.elsewhere.discard(key)
        self.pruned[key] = reason
        self.pool.stop([key])

    def _mark_pruned(self) -> None:
        """Says in STATUS, and to MLflow, that a run was pruned, once nobody is at work on it."""
        for key, reason in list(self.pruned.items()):
            folder = self.folders.get(key) or RunFolder(self._study_folder() / key)
            status = folder.status()
            if key in self.running or lease_is_live(status):
                continue
            del self.pruned[key]
            if status["state"] in ("pending", "running"):
                folder.set_status("pruned", reason)
                checkpoint.remove(folder.path)
                mark_in_mlflow(folder, reason)

    def _study_folder(self) -> Path:
        return Path(self.search.run.output_dir) / self.search.run.study

    # -- what the pool says ----------------------------------------------------------------------

    def _look_at_trials(self) -> None:
        for attempt in list(self.attempts.values()):
            self._advance(attempt)

    def _settle(self, ended: Ended) -> None:
        if ended.key in self.pruned and ended.state in (DIED, "interrupted", "busy"):
            self.running.remove(ended.key)
        else:
            super()._settle(ended)
        for attempt in list(self.attempts.values()):
            at_it = attempt.place < len(attempt.keys) and attempt.keys[attempt.place] == ended.key
            if at_it and ended.state in ("interrupted", "pending"):
                self._leave_alone(attempt)


def mark_in_mlflow(folder: RunFolder, reason: str) -> None:
    """Tags the run in its store; a store that is away does without."""
    known = folder.read_json("mlflow.json")
    if known is None:
        return
    from mlflow import MlflowClient

    try:
        client = MlflowClient(tracking_uri=known["uri"])
        client.set_tag(known["run_id"], "grpolab.pruned", reason)
        if client.get_run(known["run_id"]).info.status == "RUNNING":
            client.set_terminated(known["run_id"], status="KILLED")
    except Exception as error:
        print(f"MLflow does not know that {folder.path} was pruned ({type(error).__name__}).")


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
