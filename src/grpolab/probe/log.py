"""A probe in MLflow: a run of its study, an arm a step.

It carries no job_id, so that the analysis of the study's runs leaves it alone.
"""

from __future__ import annotations

import math
import time
from pathlib import Path

from grpolab.config import Run
from grpolab.probe.records import Probe
from grpolab.sweep.preflight import tracking_uri
from grpolab.tracking.mlflow import MlflowRun, Point, connect, start_run

LOGGED = ("norm", "loss", "clip_share", "snr", "repeat_cosine", "cosine_to_first", "cosine_error")


def to_mlflow(found: Probe, run: Run, folder: Path) -> str:
    """Sends the table, an arm a step, and all files of the folder; the run's id."""
    client, experiment = connect(tracking_uri(run), run.output_dir, run.study)
    arms = list(found.gradients["arm"])
    run_id = start_run(
        client,
        experiment,
        name="probe",
        tags={"grpolab.study": run.study, "grpolab.probe": "true"},
        params={f"arm.{i}": arm for i, arm in enumerate(arms)} | {"seed": run.seed},
    )
    points = []
    for i, row in enumerate(found.gradients[list(LOGGED)].to_dict("records")):
        numbers = {f"probe/{k}": float(v) for k, v in row.items()}
        kept = {k: v for k, v in numbers.items() if math.isfinite(v)}
        points.append(Point(i, kept, time.time()))
    logged = MlflowRun(client, run_id, new=True)
    logged.send(points)
    client.log_artifacts(run_id, str(folder))
    logged.end("FINISHED")
    return run_id
