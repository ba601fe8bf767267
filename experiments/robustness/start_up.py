"""How long a command takes to answer: help, a refusal, and a run's first step.

    python experiments/robustness/start_up.py [times=5] [out=FILE.json]

Every command is a process of its own, several times in turns; the median counts, since one start
on a machine with other work says little. Help and a refusal are timed to the end of the process,
the first training step to its line in metrics.jsonl (what comes before it, such as the evaluation
of the untrained policy, is part of it). Aimed at: 1.5 s for help and a refusal, 8 s for the step.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from grpolab.bench.report import cpu_name

ANSWERS = {"help": (["train", "--help"], 0), "refusal": (["train", "clip.hihg=0.3"], 2)}
"""What is timed to its end, and the exit code it must have."""
RUN = ["train", "model=tiny", "hardware.device=cpu", "tracking.progress=false"]
FIRST = "first_step"
AIMS = {"help": 1.5, "refusal": 1.5, FIRST: 8.0}
LIMIT = 300.0  # seconds until a command counts as hung
LOOK = 0.005  # seconds between two looks for the first step


def answered(words: list[str], code: int, folder: Path) -> float:
    """Seconds from the start of a command to its end."""
    began = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "grpolab", *words],
        cwd=folder, capture_output=True, check=False, timeout=LIMIT,
    )  # fmt: skip
    seconds = time.perf_counter() - began
    if done.returncode != code:
        raise RuntimeError(f"{words}: exit code {done.returncode}\n{done.stderr.decode()}")
    return seconds


def first_step(folder: Path) -> float:
    """Seconds from the start of a run to its first training step, after which it is ended."""
    began = time.perf_counter()
    words = [sys.executable, "-m", "grpolab", *RUN]
    with (folder / "said.txt").open("wb") as said:
        run = subprocess.Popen(words, cwd=folder, stdout=said, stderr=said)
    try:
        while not trained(folder):
            if run.poll() is not None or time.perf_counter() - began > LIMIT:
                raise RuntimeError(f"no first step:\n{(folder / 'said.txt').read_text()}")
            time.sleep(LOOK)
        return time.perf_counter() - began
    finally:
        run.kill()
        run.wait()


def trained(folder: Path) -> bool:
    """Whether the folder's run has logged a training step, and not an evaluation alone."""
    files = folder.glob("outputs/*/*/metrics.jsonl")
    return any('"reward/mean"' in path.read_text() for path in files)


def main(arguments: list[str]) -> None:
    """Times every command in turns and prints the medians."""
    given = dict(word.split("=", 1) for word in arguments)
    times = int(given.get("times", 5))
    seconds: dict[str, list[float]] = {name: [] for name in AIMS}
    for _ in range(times):
        with tempfile.TemporaryDirectory() as scratch:
            for name, (words, code) in ANSWERS.items():
                seconds[name].append(answered(words, code, Path(scratch)))
            seconds[FIRST].append(first_step(Path(scratch)))
    found = {
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
        "python": platform.python_version(),
        "seconds": seconds,
        "medians": {name: median(values) for name, values in seconds.items()},
        "aimed_at": AIMS,
    }
    print(json.dumps(found, indent=2))
    if "out" in given:
        Path(given["out"]).write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
