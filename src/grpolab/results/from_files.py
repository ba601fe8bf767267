"""Read runs from the files they wrote: `<output_dir>/<study>/<job_id>/` and the sweep manifests."""

from __future__ import annotations

import json
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from itertools import count
from pathlib import Path
from typing import Any

from grpolab.results.frames import ResultsError, RunRecord, factor_text, refuse
from grpolab.results.points import NONE, Points, points

UNKNOWN_ARM = "unknown"
_SETTLED_SECONDS = 2.0
_MARKS = (
    "STATUS",
    "run.json",
    "config.yaml",
    "metrics.jsonl",
)  # any of them makes a folder a job's folder


def read(output_dir: Path, sweep: str | None, study: str | None) -> list[RunRecord]:
    """Records of one sweep (its manifest's jobs), of a study, or of everything there.

    Raises ResultsError if the folder, the study or the sweep does not exist.
    """
    if not output_dir.is_dir():
        raise ResultsError(f"output_dir={output_dir}: no such folder")
    studies = _studies(output_dir)
    if study is not None:
        if study not in studies:
            raise refuse("study", study, f"no such study in {output_dir}", studies)
        studies = [study]
    manifests = [m for name in studies for m in _manifests(output_dir / name)]
    if sweep is None:
        return [r for name in studies for r in _study_records(output_dir / name, manifests)]
    chosen = _choose(manifests, sweep, output_dir)
    return [r for manifest in chosen for r in _sweep_records(output_dir, manifest)]


def _studies(output_dir: Path) -> list[str]:
    return sorted(
        path.name
        for path in output_dir.iterdir()
        if path.is_dir() and ((path / "sweeps").is_dir() or any(_job_folders(path)))
    )


def _job_folders(study: Path) -> Iterator[Path]:
    for path in sorted(study.iterdir()):
        if path.is_dir() and any((path / mark).exists() for mark in _MARKS):
            yield path


def _manifests(study: Path) -> list[dict[str, Any]]:
    found = []
    for path in sorted((study / "sweeps").glob("*.json")):
        manifest = json_object(path)
        if manifest is None:
            raise ResultsError(f"sweep={path.stem}: its manifest {path} is not a JSON object")
        name = str(manifest.get("sweep", path.stem))
        found.append({**manifest, "sweep": name, "study": study.name})
    return found


def _choose(
    manifests: Sequence[dict[str, Any]], sweep: str, output_dir: Path
) -> list[dict[str, Any]]:
    if sweep == "latest":
        if not manifests:
            raise refuse("sweep", sweep, f"no sweep was run in {output_dir}", [])
        return [max(manifests, key=lambda manifest: str(manifest.get("created", "")))]
    chosen = [manifest for manifest in manifests if manifest["sweep"] == sweep]
    if not chosen:
        names = sorted({str(manifest["sweep"]) for manifest in manifests})
        raise refuse("sweep", sweep, f"no such sweep in {output_dir}", names)
    return chosen


def _sweep_records(output_dir: Path, manifest: Mapping[str, Any]) -> list[RunRecord]:
    """One record a listed job, whichever sweep of the study ran it; the manifest names its arm."""
    folder = output_dir / str(manifest["study"])
    factors = [str(key) for key in manifest.get("factors", [])]
    return [
        _record(folder / str(job["job_id"]), str(manifest["sweep"]), job, factors)
        for job in manifest.get("jobs", [])
    ]


def _study_records(study: Path, manifests: Sequence[Mapping[str, Any]]) -> list[RunRecord]:
    """Every job folder of the study, and every job a manifest lists that has no folder."""
    records = []
    runs = {folder: json_object(folder / "run.json") or {} for folder in _job_folders(study)}
    factors = sorted({str(key) for run in runs.values() for key in run.get("factors", {})})
    for folder, run in runs.items():
        sweep = run.get("sweep")
        records.append(_record(folder, None if sweep is None else str(sweep), run, factors))
    seen = {record.job_id for record in records}
    for manifest in manifests:
        if manifest["study"] == study.name:
            absent = [job for job in manifest.get("jobs", []) if str(job["job_id"]) not in seen]
            seen |= {str(job["job_id"]) for job in absent}
            records += _sweep_records(study.parent, {**manifest, "jobs": absent})
    return records


def _record(
    folder: Path, sweep: str | None, job: Mapping[str, Any], factors: Sequence[str]
) -> RunRecord:
    """`job` is a manifest's entry or a run.json."""
    run = json_object(folder / "run.json") or {}
    status, reason = _status(folder)
    metrics = folder / "metrics.jsonl"
    return RunRecord(
        study=folder.parent.name,
        sweep=sweep,
        job_id=folder.name,
        arm=str(job.get("arm", UNKNOWN_ARM)),
        baseline=bool(job.get("baseline", False)),
        seed=int(job.get("seed", -1)),
        status=status,
        reason=reason,
        factors={key: _factor(key, folder, run, job) for key in factors if key != "seed"},
        read=lambda: read_metrics(metrics),
        fingerprint=_fingerprint(metrics),
    )


def _status(folder: Path) -> tuple[str, str | None]:
    if not folder.is_dir():
        return "missing", None
    status = json_object(folder / "STATUS")
    if status is None:
        return "pending", "its STATUS is missing or unreadable"
    reason = status.get("reason")
    return str(status.get("state", "pending")), None if reason is None else str(reason)


def _factor(key: str, folder: Path, run: Mapping[str, Any], job: Mapping[str, Any]) -> str | None:
    """A swept key's value: as the sweep has it, else run.json, the job's overrides or its config.

    The run may belong to an earlier sweep over other factors, so run.json need not know the key,
    or may know it in another spelling.
    """
    if job.get("factors", {}).get(key) is not None:
        return factor_text(job["factors"][key])
    if key in run.get("factors", {}):
        return factor_text(run["factors"][key])
    for override in job.get("overrides", []):
        name, separator, value = str(override).lstrip("+").partition("=")
        if separator and name == key:
            return factor_text(value)
    return _from_config(folder / "config.yaml", key)


def _from_config(path: Path, key: str) -> str | None:
    from omegaconf import DictConfig, OmegaConf

    if not path.is_file():
        return None
    value = OmegaConf.select(OmegaConf.load(path), key)
    return factor_text(value.get("name") if isinstance(value, DictConfig) else value)


def read_metrics(path: Path) -> Points:
    """The numbers of `metrics.jsonl`; of a step logged twice the later value counts.

    A kill tears the last line: it is left out. A resumed run that appended right behind a torn
    line is recovered from the start of its own line. Any other unreadable line raises ResultsError.
    """
    if not path.is_file():
        return NONE
    places: dict[str, int] = defaultdict(count().__next__)
    codes: list[int] = []
    steps: list[int] = []
    values: list[float] = []
    lines = path.read_bytes().rstrip(b"\n").split(b"\n")  # only a newline ends a line
    for number, raw in enumerate(lines, start=1):
        if not raw.strip():
            continue
        entry = _entry(raw.decode("utf-8", errors="replace"))
        if entry is None:
            if number == len(lines):
                break
            raise ResultsError(f"{path}:{number}: not a JSON line of step and metrics")
        step = int(entry["step"])
        for name, value in entry["metrics"].items():
            if value is not None:
                codes.append(places[name])
                steps.append(step)
                # float() reads the "NaN", "Infinity" and "-Infinity" that JSON has no number for
                values.append(float(value))
    return points(list(places), codes, steps, values)


def _fingerprint(path: Path) -> str | None:
    """Of a file that could still change within its clock's tick there is none."""
    try:
        found = path.stat()
    except OSError:
        return None
    if time.time() - max(found.st_mtime, found.st_ctime) < _SETTLED_SECONDS:
        return None
    return f"{found.st_ino}:{found.st_size}:{found.st_mtime_ns}:{found.st_ctime_ns}"


def _entry(line: str) -> dict[str, Any] | None:
    for text in (line, line[max(line.rfind('{"step"'), 0) :]):
        try:
            entry = json.loads(text)
        except json.JSONDecodeError:
            continue
        if isinstance(entry, dict) and "step" in entry and isinstance(entry.get("metrics"), dict):
            return entry
    return None


def json_object(path: Path) -> dict[str, Any] | None:
    """A file's JSON object; None where it is missing, unreadable or something else."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return content if isinstance(content, dict) else None
