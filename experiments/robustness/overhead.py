"""What a sweep costs beyond its training: 24 short jobs through worker processes.

    python experiments/robustness/overhead.py [workers=2] [steps=30] [out=FILE.json]

The whole command's wall time, start-up, launching, logging and closing figures included, over the
sum of the runs' own training time (time/wall) divided by the workers.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

JOBS = ["clip=ppo,none,cispo,two_sided", "seed=0,1,2,3,4,5", "updates_per_batch=2"]


def main(arguments: list[str]) -> None:
    """Runs the sweep in a folder of its own and prints the ratio."""
    given = dict(word.split("=", 1) for word in arguments)
    workers, steps = int(given.get("workers", 2)), int(given.get("steps", 30))
    with tempfile.TemporaryDirectory() as out:
        command = [sys.executable, "-m", "grpolab", "train", "-m", *JOBS, f"steps={steps}"]
        command += ["hardware.threads=1", "hardware.device=cpu", "sampler.max_new_tokens=24"]
        command += ["optimizer.lr=2e-4", f"hydra.launcher.workers={workers}", f"output_dir={out}"]
        began = time.perf_counter()
        subprocess.run(command, check=True)
        wall = time.perf_counter() - began
        trained = [last_wall(path) for path in Path(out).glob("default/*/metrics.jsonl")]
    found = {
        "jobs": len(trained),
        "workers": workers,
        "steps": steps,
        "seconds": wall,
        "training_seconds_per_worker": sum(trained) / workers,
        "ratio": wall * workers / sum(trained),
    }
    print(json.dumps(found, indent=2))
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(found, indent=2) + "\n")


def last_wall(path: Path) -> float:
    """Seconds that a run has trained."""
    line = path.read_text().splitlines()[-1]
    return float(json.loads(line)["metrics"]["time/wall"])


if __name__ == "__main__":
    main(sys.argv[1:])
