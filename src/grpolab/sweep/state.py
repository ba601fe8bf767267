"""How runs and sweeps stand, from their folders alone."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from grpolab.sweep.manifest import read_manifest
from grpolab.tracking.folder import RunFolder, lease_is_live

TAIL_BYTES = 1 << 16
STATES = ("done", "running", "pending", "failed", "pruned")


@dataclass(frozen=True)
class JobState:
    """One run. `state` is done, running (some live process holds its lease), failed, pruned (a
    search ended it early), or pending: never started, interrupted, or left behind by a kill."""

    job_id: str
    arm: str
    seed: int
    baseline: bool
    state: str
    reason: str | None
    step: int
    steps: int
    reward: float | None
    """Mean training reward of the last step."""
    accuracy: float | None
    """Of the last held-out evaluation."""
    seconds: float
    """Trained so far."""
    seconds_left: float | None
    """At the pace so far; None where nothing is known."""


@dataclass(frozen=True)
class SweepState:
    """A sweep and its runs, or a study's runs outside of any sweep (`sweep` None)."""

    sweep: str | None
    study: str
    command: str
    folder: str
    """Where the command was given."""
    jobs: list[JobState]
    seconds_left: float | None
    """With as many runs at once as there are now (one, if none is)."""
    search: dict[str, Any] | None = None
    """What a search's manifest says of its trials; None for other sweeps."""

    @property
    def counts(self) -> dict[str, int]:
        """Runs by state; the trials that a search has not drawn yet count as a pending run each."""
        found = {s: sum(j.state == s for j in self.jobs) for s in STATES}
        if self.search is not None and not any(found[s] for s in ("running", "pending")):
            found["pending"] += self.search["left"]
        return found

    @property
    def finished(self) -> bool:
        """Whether every run is done, or was ended by its search."""
        counts = self.counts
        return not any(counts[s] for s in ("running", "pending", "failed"))


def job_state(folder: RunFolder, member: Mapping[str, Any]) -> JobState:
    """How a run stands; `member` is its entry in a manifest, or its run.json."""
    status = folder.status()
    state, reason = status["state"], status["reason"]
    if state == "running" and not lease_is_live(status):
        state, reason = "pending", "its process is gone"
    last, accuracy = tail(folder.path / "metrics.jsonl")
    step, steps = int(last.get("step", 0)), int(member.get("steps") or 0)
    seconds = float(last.get("time/wall", 0.0))
    left = None
    if state in ("done", "pruned"):
        left = 0.0
    elif step:
        left = seconds / step * max(0, steps - step)
    return JobState(
        job_id=folder.path.name,
        arm=str(member["arm"]),
        seed=int(member["seed"]),
        baseline=bool(member["baseline"]),
        state="pending" if state == "missing" else state,
        reason=reason,
        step=step,
        steps=steps,
        reward=last.get("reward/mean"),
        accuracy=accuracy,
        seconds=seconds,
        seconds_left=left,
    )


def tail(path: Path) -> tuple[dict[str, float], float | None]:
    """(the metrics of the last whole line, with its step; the last held-out accuracy) of a
    metrics.jsonl, from its last kilobytes."""
    try:
        with path.open("rb") as file:
            file.seek(0, 2)
            start = max(0, file.tell() - TAIL_BYTES)
            file.seek(start)
            lines = file.read().split(b"\n")
    except OSError:
        return {}, None
    last: dict[str, float] = {}
    for line in reversed(lines[1:] if start else lines):
        try:
            record = json.loads(line)
        except ValueError:
            continue
        found = {k: float(v) for k, v in record["metrics"].items()}
        last = last or {"step": float(record["step"]), **found}
        if "eval/accuracy" in found:
            return last, found["eval/accuracy"]
    return last, None


def sweep_state(path: Path) -> SweepState:
    """Of the sweep whose manifest that is."""
    manifest = read_manifest(path)
    study = path.parents[1]
    jobs = [job_state(RunFolder(study / m["job_id"]), m) for m in manifest["jobs"]]
    return SweepState(
        sweep=manifest["sweep"],
        study=manifest["study"],
        command=manifest["command"],
        folder=manifest.get("folder", "."),
        jobs=with_guesses(jobs),
        seconds_left=time_left(jobs),
        search=manifest.get("search"),
    )


def with_guesses(jobs: Sequence[JobState]) -> list[JobState]:
    """Runs that have not begun will take as long as the others."""
    known = [j.seconds + j.seconds_left for j in jobs if j.seconds_left is not None and j.seconds]
    if not known:
        return list(jobs)
    typical = statistics.median(known)
    return [j if j.seconds_left is not None else replace(j, seconds_left=typical) for j in jobs]


def time_left(jobs: Sequence[JobState]) -> float | None:
    """Seconds until all that can go on are through."""
    open_jobs = [j for j in with_guesses(jobs) if j.state in ("running", "pending")]
    left = [j.seconds_left for j in open_jobs]
    if any(seconds is None for seconds in left):
        return None
    known = [seconds for seconds in left if seconds is not None]
    at_once = max(1, sum(j.state == "running" for j in jobs))
    return max([*known, 0.0, sum(known) / at_once])


def all_sweeps(output_dir: Path, study: str | None = None) -> list[SweepState]:
    """Every sweep under an output folder, newest first."""
    paths = sorted(output_dir.glob(f"{study or '*'}/sweeps/*.json"), key=lambda p: p.stem)
    return [sweep_state(path) for path in reversed(paths)]


def single_runs(output_dir: Path, study: str | None = None) -> list[SweepState]:
    """The runs that no sweep lists, a group for each study."""
    listed = {
        (path.parents[1], member["job_id"])
        for path in output_dir.glob("*/sweeps/*.json")
        for member in read_manifest(path)["jobs"]
    }
    groups: dict[Path, list[JobState]] = {}
    for path in sorted(output_dir.glob(f"{study or '*'}/*/run.json")):
        folder = RunFolder(path.parent)
        identity = folder.read_json("run.json")
        if (path.parents[1], path.parent.name) not in listed:
            groups.setdefault(path.parents[1], []).append(job_state(folder, identity))
    return [
        SweepState(None, study.name, "", ".", jobs, time_left(jobs))
        for study, jobs in groups.items()
    ]


def newest(states: Iterable[SweepState]) -> SweepState | None:
    """The first that is not finished, else the first."""
    found = list(states)
    return next((s for s in found if not s.finished), found[0] if found else None)
