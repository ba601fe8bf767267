"""Seconds per step by phase, and what tracking costs: reads a run's metrics.jsonl, or makes one.

    python experiments/benchmarks/step_time.py [run=outputs/<study>/<job_id>]

A comparison against other trainers is `grpolab bench`'s task, which is not built yet.
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
from pathlib import Path

from grpolab.cli import main
from grpolab.tracking.folder import RunFolder

PHASES = ("time/sample", "time/score", "time/update", "time/step", "speed/tokens_per_second")


def run_folder(arguments: list[str], scratch: str) -> Path:
    """The run to read: the one named, or a fresh one of the demo's settings."""
    for word in arguments:
        if word.startswith("run="):
            return Path(word.removeprefix("run="))
    overrides = ["clip=ppo", "kl=k3", "optimizer.lr=2e-4", "steps=30", "eval.every=0"]
    limits = ["sampler.max_new_tokens=24", "hardware.threads=1", f"output_dir={scratch}"]
    main(["train", *overrides, *limits])
    return next(Path(scratch).glob("default/*/STATUS")).parent


def report(folder: Path) -> dict[str, float]:
    """Medians over the steps; tracking as a share of the median step."""
    steps = [m for _, m in RunFolder(folder).metrics() if "time/step" in m]
    medians = {p: statistics.median(m[p] for m in steps) for p in PHASES}
    tracking = RunFolder(folder).read_json("tracking.json")
    if tracking is not None:
        medians["tracking/seconds_per_step"] = tracking["seconds"] / len(steps)
        medians["tracking/share"] = medians["tracking/seconds_per_step"] / medians["time/step"]
    return medians


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        print(json.dumps(report(run_folder(sys.argv[1:], scratch)), indent=2))
