"""What a run is logged to besides its folder: MLflow, where it is on."""

from __future__ import annotations

import time
from typing import Any

from grpolab.config import Run
from grpolab.sweep.preflight import plain, tracking_uri
from grpolab.tracking.folder import RunFolder
from grpolab.training import checkpoint


class Trackers:
    """MLflow's run of a job; it is found again when the job resumes.

    Importing MLflow and meeting its store take seconds: the first step of training does not wait
    for that, and a store that cannot be had fails the job behind it. (In a thread beside the first
    steps, MLflow's imports would meet those that torch and Transformers put off till then.)
    """

    def __init__(
        self, run: Run, folder: RunFolder, raw: dict[str, Any], identity: dict[str, Any],
        source: str,
    ) -> None:  # fmt: skip
        self.run, self.folder, self.raw, self.identity = run, folder, raw, identity
        self.source = source
        self.mlflow: Any = None
        self._refused = False
        self._waiting: list[tuple[int, dict[str, float], float]] = []

    def _open(self) -> Any:
        """Finds or makes the MLflow run."""
        from grpolab.tracking import mlflow as tracking

        uri, identity = tracking_uri(self.run), self.identity
        client, experiment = tracking.connect(uri, self.run.output_dir, self.run.study)
        known = self.folder.read_json("mlflow.json")
        if known is None or known["uri"] != uri or checkpoint.find(self.folder.path) is None:
            if known is not None and known["uri"] == uri:
                client.delete_run(known["run_id"])  # a start that never reached a checkpoint
            run_id = tracking.start_run(
                client,
                experiment,
                name=f"{identity['arm']} seed {identity['seed']}",
                tags=_tags(identity),
                params=_params(self.raw, identity),
                parent=identity["parent_run_id"],
                source=self.source,
            )
            self.folder.write_json("mlflow.json", {"uri": uri, "run_id": run_id})
        else:
            run_id = known["run_id"]
            parent = identity["parent_run_id"]
            moved = {"mlflow.parentRunId": parent} if parent else {}
            tracking.reopen(client, run_id, _tags(identity) | moved)
        return tracking.MlflowRun(client, run_id, self.run.tracking.flush_seconds)

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

    def _hand_on(self) -> None:
        if self.mlflow is None:
            self._refused = True
            self.mlflow = self._open()
            self._refused = False
        waiting, self._waiting = self._waiting, []
        for step, metrics, at in waiting:
            self.mlflow.log(step, metrics, at)

    def finish(self, status: str) -> None:
        """Ends the MLflow run; a store that is away costs nothing but a note in the folder."""
        if not self.run.tracking.mlflow or self._refused:
            return
        seconds, error = 0.0, None
        try:
            self._hand_on()  # what ended before its first step is a run of the store too
            self.mlflow.finish(status)  # before the artifacts, which may fail on their own
            seconds, error = self.mlflow.seconds, self.mlflow.error
            for name in ("provenance.json", "config.yaml"):
                self.mlflow.log_text((self.folder.path / name).read_text(), name)
            samples = self.folder.path / "samples.jsonl"
            if samples.exists():
                self.mlflow.log_samples(samples)
        except Exception as caught:
            error = f"{type(caught).__name__}: {caught}"
        self.folder.write_json("tracking.json", {"seconds": seconds, "error": error})


def _tags(identity: dict[str, Any]) -> dict[str, str]:
    from grpolab.tracking.provenance import _git

    tags = {f"grpolab.{k}": str(identity[k]) for k in ("study", "job_id", "arm", "seed")}
    if identity["sweep"]:
        tags["grpolab.sweep"] = str(identity["sweep"])
    tags["grpolab.baseline"] = "true" if identity["baseline"] else "false"
    sha = _git("rev-parse", "HEAD")
    return tags | ({"mlflow.source.git.commit": sha} if sha else {})


def _params(raw: dict[str, Any], identity: dict[str, Any]) -> dict[str, Any]:
    """Every setting under its config key, and the swept factors under theirs."""
    flat = plain({k: v for k, v in raw.items() if k != "tracking"})
    factors: dict[str, Any] = identity["factors"]
    return {k: v for k, v in flat.items() if v is not None} | factors
