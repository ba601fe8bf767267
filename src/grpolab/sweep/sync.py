"""metrics.jsonl replayed into MLflow: what a store missed while it was away, or the whole of a
sweep into another store. Each number once, however often it is asked."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpolab.sweep.manifest import read_manifest, reused, write_parent
from grpolab.sweep.search import parent as search_parent
from grpolab.sweep.trackers import log_artifacts, open_run
from grpolab.tracking.folder import RunFolder, lease_is_live
from grpolab.tracking.listing import listing_tags
from grpolab.tracking.mlflow import Point, connect, default_uri, reopen, start_run
from grpolab.tracking.parents import find_parent

ENDS = {"done": "FINISHED", "failed": "FAILED"}
"""STATUS → the state of the MLflow run; any other is KILLED, since nothing is at work on it."""


@dataclass
class Synced:
    """What was done for one run."""

    folder: Path
    sent: int = 0
    """Numbers that the store lacked."""
    error: str | None = None


def run_folders(output_dir: Path, study: str | None = None) -> list[RunFolder]:
    """The runs that no process is at work on."""
    paths = sorted(output_dir.glob(f"{study or '*'}/*/run.json"))
    folders = [RunFolder(path.parent) for path in paths]
    return [f for f in folders if not lease_is_live(f.status())]


def needs_sync(folder: RunFolder) -> bool:
    """Whether its last process could not send everything, as it noted itself."""
    note = folder.read_json("tracking.json")
    return bool(note and note.get("unsent"))


def sync(output_dir: Path, *, study: str | None = None, uri: str | None = None) -> Iterator[Synced]:
    """Brings the store up to date with each run folder, then with the sweeps' parents.

    Args:
        output_dir: where the runs lie.
        study: only this one.
        uri: of the store; None: the one each run was configured with, and only those that were
            to be logged to MLflow.
    """
    parents: dict[tuple[str, str], str] = {}
    for folder in run_folders(output_dir, study):
        raw = read_config(folder)
        if raw is None or (uri is None and not raw["tracking"]["mlflow"]):
            continue
        target = uri or raw["tracking"]["uri"] or default_uri(output_dir)
        found = Synced(folder.path)
        try:
            found.sent = _sync_run(folder, raw, target, output_dir, parents)
        except Exception as error:  # one store or run must not keep the others from theirs
            found.error = f"{type(error).__name__}: {error}"
        yield found
    for (target, manifest), run_id in parents.items():
        _end_parent(target, Path(manifest), run_id)


def read_config(folder: RunFolder) -> dict[str, Any] | None:
    """A run's config.yaml; None where a kill came before it."""
    from omegaconf import OmegaConf

    try:
        found: Any = OmegaConf.to_container(OmegaConf.load(folder.path / "config.yaml"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def _sync_run(
    folder: RunFolder,
    raw: Mapping[str, Any],
    uri: str,
    output_dir: Path,
    parents: dict[tuple[str, str], str],
) -> int:
    identity = dict(folder.read_json("run.json"))
    home = raw["tracking"]["mlflow"] and uri == (raw["tracking"]["uri"] or default_uri(output_dir))
    identity["parent_run_id"] = _parent(identity, uri, output_dir, parents, home)
    run = open_run(uri, str(output_dir), folder, raw, identity)
    began = (folder.path / "config.yaml").stat().st_mtime
    points = [Point(s, m, began + m.get("time/wall", 0.0)) for s, m in folder.metrics()]
    sent = run.send(points)
    status = folder.status()
    if status["state"] == "pruned":
        run.tag("grpolab.pruned", status["reason"])
    run.end(ENDS.get(status["state"], "KILLED"), status["reason"])
    log_artifacts(run, folder)
    folder.write_json("tracking.json", {"seconds": 0.0, "error": None, "unsent": False})
    return sent


def _parent(
    identity: Mapping[str, Any],
    uri: str,
    output_dir: Path,
    parents: dict[tuple[str, str], str],
    home: bool,
) -> str | None:
    """The sweep's run in that store; made where it lacks one."""
    if not identity["sweep"]:
        return None
    path = output_dir / identity["study"] / "sweeps" / f"{identity['sweep']}.json"
    if (uri, str(path)) not in parents and path.exists():
        parents[uri, str(path)] = _find_parent(path, uri, output_dir, home)
    return parents.get((uri, str(path)))


def _find_parent(path: Path, uri: str, output_dir: Path, home: bool) -> str:
    """The sweep's run in that store, made where it lacks one; the manifest names the run of the
    sweep's own store (`home`) alone, since that of any other is found there by its tags."""
    manifest = read_manifest(path)
    client, experiment = connect(uri, output_dir, manifest["study"])
    listing = listing_tags(manifest, reused(output_dir, manifest))
    before = manifest["parent_run_id"]
    found = find_parent(client, experiment, manifest["sweep"], before)
    if found is None or not reopen(client, found, listing):
        found = _made_parent(client, experiment, manifest, listing)
    if home and found != before:
        write_parent(path, found)
    return found


def _made_parent(
    client: Any, experiment: str, manifest: Mapping[str, Any], listing: dict[str, str]
) -> str:
    search = manifest.get("search")
    own = {"grpolab.study": manifest["study"], "grpolab.sweep": manifest["sweep"]}
    return start_run(
        client,
        experiment,
        name=f"{'search' if search else 'sweep'} {manifest['sweep']}",
        tags=own | listing | (search_parent.tags(search) if search else {}),
        params={"overrides": manifest["command"], "factors": ",".join(manifest["factors"])},
    )


def _end_parent(uri: str, path: Path, run_id: str) -> None:
    from mlflow import MlflowClient

    manifest = read_manifest(path)
    if manifest.get("search"):
        search_parent.end(MlflowClient(tracking_uri=uri), run_id, manifest["search"])
        return
    folders = [RunFolder(path.parents[1] / m["job_id"]) for m in manifest["jobs"]]
    states = {f.status()["state"] for f in folders}
    status = "FINISHED" if states == {"done"} else "FAILED" if "failed" in states else "KILLED"
    MlflowClient(tracking_uri=uri).set_terminated(run_id, status=status)
