"""What a sweep consists of: its jobs, arms and baseline, in one file."""

from __future__ import annotations

import json
import re
import secrets
import shlex
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError, nearest
from grpolab.config import UNHASHED, UNHASHED_KEY, job_id
from grpolab.sweep.compose import Job, Sweep
from grpolab.sweep.factors import as_override, matching
from grpolab.tracking.folder import RunFolder, write_atomically

BASELINE = "baseline"


@dataclass(frozen=True)
class Member:
    """One job of a sweep."""

    job_id: str
    overrides: list[str]
    arm: str
    seed: int
    baseline: bool
    factors: dict[str, Any]
    steps: int


def run_folder(raw: Mapping[str, Any]) -> RunFolder:
    """Where a resolved configuration's run lies."""
    return RunFolder(Path(raw["output_dir"]) / raw["study"] / job_id(raw))


def new_sweep_id() -> str:
    """Sorts by time, and never meets another of the same second."""
    return time.strftime("%Y%m%d-%H%M%S-", time.gmtime()) + secrets.token_hex(2)


def members(sweep: Sweep, baseline: Mapping[str, Any] | None) -> list[Member]:
    """The jobs with their arms: what differs from the baseline, as sorted overrides."""
    factors = [f for f in sweep.factors if f != "seed"]
    for key in factors:
        if key.split(".")[0] in (*UNHASHED, "checkpoint") or key == UNHASHED_KEY:
            raise ConfigError(
                f"{key}: several values given, but they change where or how a run is recorded and "
                "not what it computes, so its arms would be one run; allowed: one value."
            )
    values = [{f: job_value(job, f) for f in factors} for job in sweep.jobs]
    base = dict(values[0]) if values else {}
    for key, value in (baseline or {}).items():
        if key not in base and job_value(sweep.jobs[0], key):
            continue  # an experiment's factor that the command line fixed
        if key not in base:
            raise ConfigError(
                f"tracking.baseline: {key!r} is no swept factor; allowed: {', '.join(factors)}."
            )
        swept = list(dict.fromkeys(own[key] for own in values))
        found = matching(value, swept)
        if found is None:
            given = as_override(value)
            raise ConfigError(
                f"tracking.baseline.{key}: {given!r} is not swept; allowed: {', '.join(swept)}"
                f"{nearest(given, swept) or '.'}"
            )
        base[key] = found
    made = []
    for job, own in zip(sweep.jobs, values, strict=True):
        arm = ",".join(f"{k}={own[k]}" for k in sorted(own) if own[k] != base[k])
        made.append(
            Member(
                job_id(job.raw), list(job.overrides), arm or BASELINE, int(job.raw["seed"]),
                not arm, own, int(job.raw["steps"]),
            )
        )  # fmt: skip
    return made


def job_value(job: Job, factor: str) -> str:
    """The value a job's overrides give a swept key, without the backslashes that Hydra adds."""
    for override in reversed(job.overrides):
        key, _, value = override.lstrip("+").partition("=")
        if key == factor:
            return value if value[:1] in ("'", '"') else re.sub(r"\\(.)", r"\1", value)
    return ""


def manifest_path(output_dir: str, study: str, sweep_id: str) -> Path:
    """Where a sweep's manifest lies."""
    return Path(output_dir) / study / "sweeps" / f"{sweep_id}.json"


def new_manifest(
    *,
    sweep_id: str,
    study: str,
    command: Sequence[str],
    factors: Sequence[str],
    jobs: Sequence[Member],
    search: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """A sweep's manifest, as of now and without an MLflow run.

    `search` is what `grpolab.sweep.search.record` says of one.
    """
    baseline = next((m.arm for m in jobs if m.baseline), BASELINE)
    return {
        "sweep": sweep_id,
        "study": study,
        "created": datetime.now(UTC).isoformat(),
        "parent_run_id": None,
        "command": shlex.join(command),
        "folder": str(Path.cwd()),
        "factors": list(factors),
        "baseline_arm": baseline,
        "jobs": [vars(m) for m in jobs],
    } | ({"search": dict(search)} if search is not None else {})


def write_manifest(path: Path, content: Mapping[str, Any]) -> None:
    """Puts a manifest in its place, whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, json.dumps(content, indent=2) + "\n")


def write_parent(path: Path, run_id: str) -> None:
    """Names the sweep's MLflow run in its manifest."""
    write_manifest(path, read_manifest(path) | {"parent_run_id": run_id})


def reused(output_dir: str | Path, manifest: Mapping[str, Any]) -> set[str]:
    """The manifest's jobs that another sweep of the study, or a run alone, has finished."""
    found = set()
    for job in manifest["jobs"]:
        folder = RunFolder(Path(output_dir) / manifest["study"] / job["job_id"])
        if folder.status()["state"] == "done":
            run = folder.read_json("run.json") or {}
            if run.get("sweep") != manifest["sweep"]:
                found.add(str(job["job_id"]))
    return found


def find_manifest(output_dir: str, study: str, jobs: Sequence[Member]) -> dict[str, Any] | None:
    """The newest manifest of exactly these jobs under these arms: the same sweep, asked for again,
    stays one sweep."""
    wanted = {(m.job_id, m.arm) for m in jobs}
    paths = sorted((Path(output_dir) / study / "sweeps").glob("*.json"), reverse=True)
    for found in map(read_manifest, paths):
        if "search" in found:
            continue
        if {(m["job_id"], m["arm"]) for m in found["jobs"]} == wanted:
            return found
    return None


def read_manifest(path: Path) -> dict[str, Any]:
    """A sweep's manifest."""
    found: dict[str, Any] = json.loads(path.read_text())
    return found
