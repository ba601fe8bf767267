"""What a run is logged to besides its folder: MLflow, where it is on."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from grpolab.config import Run
from grpolab.sweep.preflight import plain, tracking_uri
from grpolab.tracking.folder import RunFolder
from grpolab.training import checkpoint

if TYPE_CHECKING:
    from grpolab.tracking.mlflow import MlflowRun
    from grpolab.tracking.sender import Sender

ARTIFACTS = ("provenance.json", "config.yaml")


class Trackers:
    """MLflow's run of a job; it is found again when the job resumes.

    Importing MLflow and meeting its store take seconds: a thread does that, from behind the first
    step on. (Beside the first step, MLflow's imports would meet those that torch and Transformers
    put off till then.) A store that is away costs nothing but a note in the folder.
    """

    def __init__(
        self, run: Run, folder: RunFolder, raw: dict[str, Any], identity: dict[str, Any]
    ) -> None:
        self.run, self.folder, self.raw, self.identity = run, folder, raw, identity
        self.resumes = checkpoint.find(folder.path) is not None
        self._sender: Sender | None = None
        self._waiting: list[tuple[int, dict[str, float], float]] = []

    def backfill(self, up_to: int) -> None:
        """Sends what metrics.jsonl has up to the checkpoint and the store lacks."""
        now = time.time()
        self._waiting += [(s, m, now) for s, m in self.folder.metrics() if s <= up_to]

    def log(self, step: int, metrics: dict[str, float]) -> None:
        """Hands on a step's metrics, once training has begun those of before too."""
        if not self.run.tracking.mlflow:
            return
        self._waiting.append((step, metrics, time.time()))
        if step:
            self._hand_on()

    def finish(self, status: str) -> None:
        """Ends the MLflow run, or leaves that to `grpolab sync`."""
        if not self.run.tracking.mlflow:
            return
        sender = self._hand_on()  # what ended before its first step is a run of the store too
        problem: list[str] = []
        why = None if status == "FINISHED" else self.folder.status()["reason"]

        def last(run: MlflowRun) -> None:
            run.end(status, why)  # before the artifacts, which may fail on their own
            try:
                log_artifacts(run, self.folder)
            except Exception as error:
                problem.append(f"{type(error).__name__}: {error}")

        error = sender.finish(last)
        note = {
            "seconds": sender.seconds,
            "error": error or (problem[0] if problem else None),
            "unsent": error is not None,
        }
        self.folder.write_json("tracking.json", note)
        if error:
            print(f"MLflow has missed a part of {self.folder.path} ({error.splitlines()[0]}); "
                  "grpolab sync sends it.", file=sys.stderr)  # fmt: skip

    def _hand_on(self) -> Sender:
        from grpolab.tracking.sender import Sender

        if self._sender is None:
            self._sender = Sender(self._open, self.run.tracking.flush_seconds)
        waiting, self._waiting = self._waiting, []
        for step, metrics, at in waiting:
            self._sender.log(step, metrics, at)
        self._sender.start()
        return self._sender

    def _open(self) -> MlflowRun:
        """Finds or makes the MLflow run. A start that never reached a checkpoint is dropped."""
        uri = tracking_uri(self.run)
        known = self.folder.read_json("mlflow.json")
        if known is not None and known["uri"] == uri and not self.resumes:
            from grpolab.tracking.mlflow import connect, drop

            client, _ = connect(uri, self.run.output_dir, self.run.study)
            drop(client, known["run_id"])
            (self.folder.path / "mlflow.json").unlink()
        self.resumes = True  # what is made from here on is this start's, also where a try fails
        return open_run(uri, self.run.output_dir, self.folder, self.raw, self.identity)


def open_run(
    uri: str,
    output_dir: str,
    folder: RunFolder,
    raw: Mapping[str, Any],
    identity: Mapping[str, Any],
) -> MlflowRun:
    """The run of that folder in that store: the one it names, or a new one, marked as running."""
    from grpolab.tracking import mlflow as tracking

    client, experiment = tracking.connect(uri, output_dir, identity["study"])
    parent, source = identity["parent_run_id"], identity.get("source")
    adopt(client, experiment, folder, identity["job_id"], uri)
    known = folder.read_json("mlflow.json")
    if known is not None and known["uri"] == uri:
        run_id = str(known["run_id"])
        moved = {"mlflow.parentRunId": parent} if parent else {}
        if tracking.reopen(client, run_id, _tags(identity) | moved):
            params = _params(raw, identity)
            if len(client.get_run(run_id).data.params) < len(params):
                # it was made, and then the store went away
                tracking.describe(client, run_id, params, source)
            return tracking.MlflowRun(client, run_id)
    run_id = tracking.start_run(
        client,
        experiment,
        name=f"{identity['arm']} seed {identity['seed']}",
        tags=_tags(identity),
        params=_params(raw, identity),
        parent=parent,
        source=source,
        made=lambda run_id: folder.write_json("mlflow.json", {"uri": uri, "run_id": run_id}),
    )
    return tracking.MlflowRun(client, run_id, new=True)


def adopt(client: Any, experiment: str, folder: RunFolder, job_id: str, uri: str) -> None:
    """Finds a folder's run in a store by its job id, where mlflow.json was lost or names another
    store, or where the store made the run and then went away before it could say so."""
    known = folder.read_json("mlflow.json")
    if known is not None and known["uri"] == uri:
        return
    where = f"tags.`grpolab.job_id` = '{job_id}'"
    found = client.search_runs([experiment], where, order_by=["attributes.start_time DESC"])
    if found:
        folder.write_json("mlflow.json", {"uri": uri, "run_id": found[0].info.run_id})


def log_artifacts(run: MlflowRun, folder: RunFolder) -> None:
    """Where it comes from, its configuration, and its samples."""
    for name in ARTIFACTS:
        run.log_text((folder.path / name).read_text(), name)
    samples = folder.path / "samples.jsonl"
    if samples.exists():
        run.log_samples(samples)


def _tags(identity: Mapping[str, Any]) -> dict[str, str]:
    from grpolab.tracking.provenance import _git

    tags = {f"grpolab.{k}": str(identity[k]) for k in ("study", "job_id", "arm", "seed")}
    if identity["sweep"]:
        tags["grpolab.sweep"] = str(identity["sweep"])
    tags["grpolab.baseline"] = "true" if identity["baseline"] else "false"
    if identity.get("tuned_on"):
        tags["grpolab.tuned_on"] = ",".join(map(str, identity["tuned_on"]))
    sha = _git("rev-parse", "HEAD")
    return tags | ({"mlflow.source.git.commit": sha} if sha else {})


def _params(raw: Mapping[str, Any], identity: Mapping[str, Any]) -> dict[str, Any]:
    """Every setting under its config key, and the swept factors under theirs."""
    flat = plain({k: v for k, v in raw.items() if k != "tracking"})
    factors: dict[str, Any] = identity["factors"]
    return {k: v for k, v in flat.items() if v is not None} | factors
