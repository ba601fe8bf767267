"""A sweep's analysis as artifacts of its MLflow run, beside what its jobs logged.

A convenience that never fails what it follows: where a store is away, has no such run or no room is
left, that is said in a sentence, and the files lie in their folder all the same.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlparse
from urllib.request import url2pathname

from grpolab.results.from_files import json_object
from grpolab.tracking.disk import staged
from grpolab.tracking.parents import find_parent

FOLDER = "analysis"
"""Where they lie among the run's artifacts."""


def log_analysis(
    files: Mapping[str, Path],
    *,
    output_dir: str | Path,
    study: str,
    sweep: str,
    uri: str | None = None,
    parent: tuple[Any, str] | None = None,
    again: str | None = None,
) -> str | None:
    """Logs files of a sweep's analysis to the sweep's MLflow run, if it has one.

    Args:
        files: {name below FOLDER, with slashes: the file}.
        output_dir: where the runs lie; their store is found through them.
        study: of the sweep.
        sweep: its id.
        uri: of the store, where it is not the one that the runs were logged to.
        parent: (client, run id), where they are known.
        again: what logs it again, where that is not `grpolab report`.

    Returns:
        Why it could not be done, in a sentence; None if it was, or there is no such run.
    """
    try:
        target = uri or _store_of(Path(output_dir), study, sweep)
        if target is None or not _is_there(target):
            return None
        found = parent or _parent(target, Path(output_dir), study, sweep)
        if found is None:
            return None
        client, run_id = found
        place = _local(client.get_run(run_id).info.artifact_uri)
        if place is None:
            _upload(client, run_id, files)
        elif problem := _elsewhere(place, Path(output_dir), target):
            return f"MLflow has not got the analysis: {problem}."
        else:
            with staged(place / FOLDER) as scratch:  # whole, or not at all
                _copy(files, scratch)
    except Exception as error:  # whatever a store may raise
        problem = (str(error).splitlines() or [""])[0]
        return (
            f"MLflow has not got the analysis ({type(error).__name__}: {problem}); "
            f"{again or f'grpolab report sweep={sweep}'} logs it again."
        )
    return None


def _store_of(output_dir: Path, study: str, sweep: str) -> str | None:
    """The store that the sweep's runs were logged to; None where they were to none."""
    from omegaconf import OmegaConf

    from grpolab.tracking.mlflow import default_uri

    manifest = json_object(output_dir / study / "sweeps" / f"{sweep}.json") or {}
    if not manifest.get("parent_run_id"):
        return None
    for job in manifest.get("jobs", []):
        path = output_dir / study / str(job["job_id"]) / "config.yaml"
        if path.is_file():
            found = OmegaConf.select(OmegaConf.load(path), "tracking.uri")
            return str(found) if found else default_uri(output_dir)
    return default_uri(output_dir)


def _is_there(uri: str) -> bool:
    """Whether there is a store: of a file that does not exist, MLflow would make one.

    Raises:
        ConfigError: nobody listens there.
    """
    from grpolab.results.sql_store import sqlite_path
    from grpolab.tracking.mlflow import check_reachable

    path = sqlite_path(uri)
    check_reachable(uri)
    return path is None or path.is_file()


def _parent(uri: str, output_dir: Path, study: str, sweep: str) -> tuple[Any, str] | None:
    """(client, id) of the sweep's run in that store; None if it has none."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(study)
    place = None if experiment is None else experiment.experiment_id  # renamed, maybe
    manifest = json_object(output_dir / study / "sweeps" / f"{sweep}.json") or {}
    known = manifest.get("parent_run_id")
    run_id = find_parent(client, place, sweep, known)
    return None if run_id is None else (client, run_id)


def _local(uri: str) -> Path | None:
    """The folder that artifacts lie in; None where they are kept by a server or in a cloud."""
    parts = urlparse(uri)
    if parts.scheme not in ("", "file"):
        return None
    return Path(url2pathname(parts.path))


def _elsewhere(place: Path, output_dir: Path, uri: str) -> str | None:
    """Whether a folder of artifacts is not this machine's, or the store was moved away from it."""
    from grpolab.tracking.mlflow import default_uri

    if uri != default_uri(output_dir):
        there = place.parents[1].is_dir()  # of the study
        return None if there else f"its artifacts would lie in {place}, which is not here"
    if not place.resolve().is_relative_to(output_dir.resolve()):
        return f"its artifacts would lie in {place}, outside of output_dir={output_dir}"
    return None


def _upload(client: Any, run_id: str, files: Mapping[str, Path]) -> None:
    """Through MLflow, which names an artifact as its file is named."""
    with tempfile.TemporaryDirectory() as scratch:
        _copy(files, Path(scratch))
        client.log_artifacts(run_id, scratch, FOLDER)


def _copy(files: Mapping[str, Path], folder: Path) -> None:
    """Each file under its name below the folder."""
    for name, path in files.items():
        copy = folder / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
