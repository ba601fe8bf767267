"""One study with known numbers, as the files a sweep writes and as a real MLflow store."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

STUDY = "clipping"


@dataclass
class Job:
    """A synthetic run: accuracy climbs from .2 to `final`, one evaluation every 5 steps."""

    arm: str
    seed: int
    final: float
    state: str = "done"
    reason: str | None = None
    extra: dict[int, dict[str, float]] = field(default_factory=dict)
    steps: int = 50

    @property
    def job_id(self) -> str:
        return f"{self.arm.replace('=', '-').replace(',', '_')}-{self.seed}"

    @property
    def baseline(self) -> bool:
        return self.arm == "baseline"

    @property
    def factors(self) -> dict[str, str]:
        return {"clip": "ppo", "kl": "none"} | dict(
            part.split("=") for part in self.arm.split(",") if "=" in part
        )

    def metrics(self) -> dict[int, dict[str, float]]:
        """{step: {metric: value}}: tokens 100 a step, wall 2 s a step (3 s on odd seeds)."""
        reached = self.steps if self.state == "done" else self.steps // 2
        noise = np.random.default_rng([self.seed, len(self.arm)])
        logged: dict[int, dict[str, float]] = {}
        for step in range(reached + 1):
            share = 1 - math.exp(-5 * step / self.steps)
            level = 0.2 + (self.final - 0.2) * share
            row: dict[str, float] = {}
            if step:
                row["reward/mean"] = level + 0.08 * float(noise.standard_normal())
                row["tokens/generated"] = 100.0 * step
                row["time/wall"] = (2.0 + self.seed % 2) * step
            if step % 5 == 0:
                row["eval/accuracy"] = self.final if step == self.steps else level
                row["eval/pass@8"] = min(1.0, level + 0.3)
            logged[step] = row | self.extra.get(step, {})
        return logged


ODD = {3: {"optim/grad_norm": math.nan, "policy/ratio_max": math.inf, "kl/ref_k1": -math.inf}}
FIRST = [
    Job("baseline", 0, 0.60, extra=ODD),
    Job("baseline", 1, 0.64),
    Job("clip=cispo,kl=k3", 0, 0.70),
    Job("clip=cispo,kl=k3", 1, 0.76),
    Job("clip=none", 0, 0.50),
    Job("clip=none", 1, 0.30, state="failed", reason="loss is not finite at step 26"),
]
# A later sweep over one factor: it reuses the baseline and never started its last job.
SECOND = [FIRST[0], FIRST[1], Job("clip=gspo", 0, 0.65), Job("clip=gspo", 1, 0.65, state="missing")]


def write_files(root: Path, jobs: list[Job], sweep: str, created: str, study: str = STUDY) -> None:
    """Write the jobs' folders (those not there yet) and the sweep's manifest."""
    for job in jobs:
        folder = root / study / job.job_id
        if job.state != "missing" and not folder.exists():
            _write_job(folder, job, sweep)
    path = root / study / "sweeps" / f"{sweep}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(manifest_of(jobs, sweep, created, study)))


def manifest_of(jobs: list[Job], sweep: str, created: str, study: str = STUDY) -> dict[str, Any]:
    """What the sweep's manifest says."""
    return {
        "sweep": sweep,
        "study": study,
        "created": created,
        "parent_run_id": None,
        "command": "grpolab train -m clip=ppo,none",
        "factors": sorted({key for job in jobs for key in job.factors}),
        "baseline_arm": "baseline",
        "jobs": [
            {
                "job_id": job.job_id,
                "overrides": [f"{key}={value}" for key, value in job.factors.items()],
                "arm": job.arm,
                "seed": job.seed,
                "baseline": job.baseline,
                "factors": job.factors,
            }
            for job in jobs
        ],
    }


def _write_job(folder: Path, job: Job, sweep: str) -> None:
    folder.mkdir(parents=True)
    run: dict[str, Any] = {
        "study": folder.parent.name,
        "sweep": sweep,
        "job_id": job.job_id,
        "arm": job.arm,
        "seed": job.seed,
        "baseline": job.baseline,
        "factors": job.factors,
    }
    (folder / "run.json").write_text(json.dumps(run))
    status: dict[str, Any] = {"state": job.state, "reason": job.reason, "lease": {}}
    (folder / "STATUS").write_text(json.dumps(status))
    (folder / "config.yaml").write_text(f"seed: {job.seed}\nclip:\n  name: {job.factors['clip']}\n")
    with (folder / "metrics.jsonl").open("w") as file:
        for step, metrics in job.metrics().items():
            file.write(json.dumps({"step": step, "metrics": _as_json(metrics)}) + "\n")


def _as_json(metrics: dict[str, float]) -> dict[str, float | str]:
    names = {math.inf: "Infinity", -math.inf: "-Infinity"}
    return {
        name: "NaN" if math.isnan(value) else names.get(value, value)
        for name, value in metrics.items()
    }


def write_mlflow(
    uri: str,
    jobs: list[Job],
    sweep: str,
    study: str = STUDY,
    tags: dict[str, str] | None = None,
    before: list[Job] | None = None,
) -> str:
    """Log the jobs as children of a parent run; the first step is logged twice, first wrongly.

    `tags`: of the parent, whose id is returned. Jobs among `before`, and those that never started,
    are not logged.
    """
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param, RunTag

    client = MlflowClient(tracking_uri=uri)
    found = client.get_experiment_by_name(study)
    experiment = found.experiment_id if found else client.create_experiment(study)
    own = {"grpolab.sweep": sweep, "grpolab.study": study}
    parent = client.create_run(experiment, tags=own | (tags or {}))
    for job in jobs:
        if job in (before or []) or job.state == "missing":
            continue
        child = {
            "mlflow.parentRunId": parent.info.run_id,
            "grpolab.study": study,
            "grpolab.sweep": sweep,
            "grpolab.job_id": job.job_id,
            "grpolab.arm": job.arm,
            "grpolab.seed": str(job.seed),
            "grpolab.baseline": str(job.baseline).lower(),
        }
        if job.reason:
            child["grpolab.reason"] = job.reason
        run = client.create_run(experiment, tags=child).info.run_id
        points = [
            Metric(name.replace("@", "_at_"), value, 1_000 + step, step)
            for step, metrics in job.metrics().items()
            for name, value in metrics.items()
        ]
        stale = [Metric(point.key, 123.0, 10, point.step) for point in points if point.step == 1]
        params = [Param(key, value) for key, value in {**job.factors, "steps": "50"}.items()]
        client.log_batch(run, metrics=stale, params=params, tags=[RunTag("unrelated", "1")])
        for start in range(0, len(points), 1000):
            client.log_batch(run, metrics=points[start : start + 1000])
        client.set_terminated(run, "FAILED" if job.state == "failed" else "FINISHED")
    return str(parent.info.run_id)
