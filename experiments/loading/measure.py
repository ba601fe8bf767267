"""How long it takes to load a sweep from an MLflow store, beside MLflow's own client.

    python experiments/loading/measure.py runs=200 client=true out=figures.json

makes a real store (MLflow makes the schema and the experiment; the rows are inserted, since logging
them one call at a time would take hours), loads it with `grpolab.results.load` without and with a
cache, each in a process of its own, and with a plain loop over `MlflowClient.get_metric_history`.
"""

from __future__ import annotations

import json
import os
import platform
import resource
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from collections.abc import Iterator
from contextlib import closing
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

METRICS = (
    "reward/mean", "eval/accuracy", "policy/entropy", "policy/ratio_max", "kl/ref_k3", "clip/share",
    "length/mean", "loss/total", "optim/grad_norm", "tokens/generated", "time/wall", "time/step",
)  # fmt: skip
STEPS = 500
TOGETHER = 4  # runs that log at once, as a sweep's workers do: their rows lie between each other
FLUSH = 20  # steps a run logs in one go
START = 1_760_000_000_000  # ms


def make(path: Path, runs: int) -> None:
    """A store of so many runs, each METRICS × STEPS."""
    from mlflow import MlflowClient

    experiment = MlflowClient(tracking_uri=f"sqlite:///{path}").create_experiment("loading")
    names = [uuid.uuid5(uuid.NAMESPACE_URL, str(i)).hex for i in range(runs)]
    with closing(sqlite3.connect(path)) as store:
        store.execute("pragma synchronous = off")
        store.execute("pragma journal_mode = memory")
        for i, run in enumerate(names):
            _enter(store, run, experiment, i)
        for first in range(0, runs, TOGETHER):
            store.executemany(
                "insert into metrics (run_uuid, key, value, timestamp, step, is_nan) "
                "values (?, ?, ?, ?, ?, 0)",
                _rows(names[first : first + TOGETHER], first),
            )
            store.commit()
        store.execute(
            "insert into latest_metrics (run_uuid, key, value, timestamp, step, is_nan) "
            "select run_uuid, key, value, timestamp, step, is_nan from metrics where step = ?",
            (STEPS,),
        )
        store.commit()


def _enter(store: sqlite3.Connection, run: str, experiment: str, number: int) -> None:
    arm = "baseline" if number % 5 == 0 else f"clip=variant{number % 5}"
    tags = {
        "grpolab.study": "loading", "grpolab.sweep": "one", "grpolab.job_id": run[:12],
        "grpolab.arm": arm, "grpolab.seed": str(number // 5),
        "grpolab.baseline": str(arm == "baseline").lower(),
    }  # fmt: skip
    store.execute(
        "insert into runs (run_uuid, name, experiment_id, status, start_time, end_time, "
        "lifecycle_stage, artifact_uri, user_id, source_type, source_name) "
        "values (?, ?, ?, 'FINISHED', ?, ?, 'active', '', 'lab', 'LOCAL', '')",
        (run, run, experiment, START + number, START + number + 1),
    )
    store.executemany("insert into tags values (?, ?, ?)", [(k, v, run) for k, v in tags.items()])
    params = [(f"setting{i}", str(i), run) for i in range(100)]
    store.executemany("insert into params values (?, ?, ?)", params)


def _rows(names: list[str], first: int) -> Iterator[tuple[str, str, float, int, int]]:
    draws = np.random.default_rng(first).standard_normal((len(names), STEPS + 1, len(METRICS)))
    for begin in range(1, STEPS + 1, FLUSH):
        for i, run in enumerate(names):
            for step in range(begin, begin + FLUSH):
                at = START + first * 1_000_000 + step * 1000 + i
                own = draws[i, step].tolist()
                yield from (
                    (run, key, value, at, step) for key, value in zip(METRICS, own, strict=True)
                )


def measure_load(uri: str) -> dict[str, Any]:
    """Seconds of one `load` (imports before it), rows, and this process's peak memory."""
    import pyarrow.parquet  # noqa: F401

    from grpolab.results.load import load

    began, cpu = time.perf_counter(), time.process_time()
    found = load(uri=uri, sweep="one")
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "runs": len(found.runs),
        "points": len(found.history),
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "checksum": float(found.history["value"].sum()),
    }


def measure_client(uri: str) -> dict[str, Any]:
    """The plain loop: every metric of every run, into nothing but the lists MLflow returns."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name("loading")
    runs = client.search_runs([experiment.experiment_id], max_results=50_000)
    began, cpu = time.perf_counter(), time.process_time()
    points, total = 0, 0.0
    for run in runs:
        for metric in run.data.metrics:
            history = client.get_metric_history(run.info.run_id, metric)
            points += len(history)
            total += sum(point.value for point in history)
    return {
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - cpu,
        "points": points,
        "peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        "checksum": total,
    }


def measure(runs: int, repeats: int, client: bool) -> dict[str, Any]:
    """Both ways in turns, each in a fresh process."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "mlflow.db"
        began = time.perf_counter()
        make(path, runs)
        print(f"{runs} runs: store made in {time.perf_counter() - began:.0f} s", flush=True)
        uri = f"sqlite:///{path}"
        found: dict[str, Any] = {"runs": runs, "store_mib": path.stat().st_size / 2**20}
        sides: dict[str, list[dict[str, Any]]] = {"load": [], "cached": [], "client": []}
        for turn in range(repeats):
            for side in ("load", "cached", "client"):
                if side == "client" and not (client and turn < 2):
                    continue
                cache = Path(scratch) / f"cache{turn}"  # the first load of a turn finds none
                sides[side].append(_apart("client" if side == "client" else "load", uri, cache))
                print(side, sides[side][-1], flush=True)
    found |= {side: entries for side, entries in sides.items() if entries}
    if client:
        best = {side: min(e["seconds"] for e in entries) for side, entries in sides.items()}
        found["client_over_load"] = best["client"] / best["load"]
        found["client_over_cached"] = best["client"] / best["cached"]
    return found


def _apart(side: str, uri: str, cache: Path) -> dict[str, Any]:
    environment = os.environ | {"GRPOLAB_CACHE": str(cache), "MLFLOW_DISABLE_TELEMETRY": "true"}
    done = subprocess.run(
        [sys.executable, __file__, f"side={side}", f"uri={uri}"],
        env=environment, stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    entry: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return entry


def main(words: list[str]) -> None:
    given = dict(word.split("=", 1) for word in words)
    if "side" in given:
        side = measure_load if given["side"] == "load" else measure_client
        print(json.dumps(side(given["uri"])))
        return
    with_client = given.get("client") == "true"
    content = {
        "metrics": len(METRICS),
        "steps": STEPS,
        "hardware": f"{os.cpu_count()} CPU cores, {platform.machine()}",
        "versions": {name: version(name) for name in ("mlflow", "pandas", "numpy", "pyarrow")}
        | {"python": platform.python_version(), "sqlite": sqlite3.sqlite_version},
        "results": [
            measure(int(runs), int(given.get("repeats", "3")), with_client and i == 0)
            for i, runs in enumerate(given.get("runs", "200").split(","))
        ],
    }
    text = json.dumps(content, indent=2)
    Path(given["out"]).write_text(text + "\n") if "out" in given else print(text)


if __name__ == "__main__":
    main(sys.argv[1:])
