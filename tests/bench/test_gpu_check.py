"""`make gpu-check` itself, on a CPU: where it is wanted there may be neither Hydra nor MLflow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
WITHOUT = """
import runpy, sys
for name in ("hydra", "omegaconf", "mlflow", "datasets", "pandas", "seaborn"):
    sys.modules[name] = None
sys.argv[1:] = ["device=cpu", "steps=3"]
runpy.run_path("experiments/benchmarks/gpu_check.py", run_name="__main__")
"""


def test_it_runs_with_torch_and_transformers_alone() -> None:
    environment = os.environ | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", WITHOUT],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    about, *found = (json.loads(line) for line in done.stdout.splitlines() if line[:1] == "{")
    assert about["hardware"] == "cpu"
    agreements = [row for row in found if row["check"] == "agreement float32"]
    assert [row["cuda_graphs"] for row in agreements] == [False, True]
    for row in agreements:
        assert row["sampler_against_trainer"] < 1e-4
        assert row["device_against_cpu"] == 0
    trained = [row for row in found if row["check"].startswith("tiny")]
    assert [row["steps"] for row in trained] == [1, 1, 1]
