"""What scoring beside sampling gains: a reward that waits, as for a model's server.

    python experiments/benchmarks/scoring.py [seconds=0.05] [steps=5]

The embedded model, 8 prompts × 8 completions of up to 32 tokens; the function sleeps `seconds` for
each completion. Prints the median seconds of collecting a batch (sampling and scoring) with several
`reward.workers`. Expected: one caller waits 64 × `seconds`; with w of them the waits of completions
that end early lie beside the sampler's work, and the rest takes 64 × `seconds` / w at most.
"""

from __future__ import annotations

import statistics
import sys
import time
from pathlib import Path
from typing import Any

from grpolab.config import bind_run
from grpolab.policy.policy import Encoder, Policy
from grpolab.sweep.compose import expand, parse_command
from grpolab.training.collect import Collector
from grpolab.training.loop import prepare_torch

BASE = ["prompts_per_step=8", "sampler.group_size=8", "sampler.max_new_tokens=32"]


def waiting(completion: str, example: Any, seconds: float) -> float:
    """The reward."""
    time.sleep(seconds)
    return float(len(completion))


def main(arguments: list[str]) -> None:
    """One line for each number of workers."""
    given = dict(word.split("=", 1) for word in arguments)
    seconds, steps = float(given.get("seconds", 0.05)), int(given.get("steps", 5))
    sys.path.insert(0, str(Path(__file__).parent))
    for workers in (1, 8, 64):
        reward = ["reward=python", "reward.function=scoring:waiting", f"reward.workers={workers}"]
        words = [*BASE, *reward, f"+reward.arguments.seconds={seconds}"]
        run = bind_run(expand(parse_command(words)).jobs[0].raw)
        prepare_torch(run)
        policy = Policy(Encoder(run.model), run.hardware)
        collector = Collector(run, policy, run.task.load())
        times = []
        for step in range(steps + 1):
            began = time.perf_counter()
            collector.collect(step)
            times.append(time.perf_counter() - began)
        print(f"workers={workers:<3} {statistics.median(times[1:]):6.2f} s a batch", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
