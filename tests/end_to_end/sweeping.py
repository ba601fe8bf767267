"""A sweep as a person runs it, and what may be said of it afterwards."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import psutil

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

SWEEP = ("clip=ppo,none", "seed=0,1", "updates_per_batch=2", "study=swept", "checkpoint.every=1")
STEPS = "steps=3"
"""Of the sweeps that are compared with the `in_process` fixture's."""


def command(out: Path, *overrides: str) -> list[str]:
    """`grpolab train -m …` of four runs."""
    return ["train", "-m", *launching.SMALL, *SWEEP, f"output_dir={out}", *overrides]


def members(out: Path) -> list[dict[str, Any]]:
    """The jobs of the only sweep."""
    (path,) = (out / "swept").glob("sweeps/*.json")
    found: list[dict[str, Any]] = json.loads(path.read_text())["jobs"]
    return found


def states(out: Path) -> dict[str, str]:
    """{job_id: state} of the runs that have begun."""
    folders = launching.run_folders(out / "swept")
    return {f.name: launching.status(f)["state"] for f in folders}


def steps_logged(out: Path) -> int:
    """Lines of all metrics.jsonl together."""
    return sum(p.read_bytes().count(b"\n") for p in (out / "swept").glob("*/metrics.jsonl"))


def wait_until(condition: Callable[[], bool], process: Popen[str] | None = None) -> None:
    """Polls; fails if the process ends, or much time passes, before."""
    deadline = time.monotonic() + launching.LIMIT
    while not condition():
        if process is not None and process.poll() is not None:
            raise AssertionError(process.communicate())
        assert time.monotonic() < deadline
        time.sleep(0.01)


def workers(process: Popen[str]) -> list[psutil.Process]:
    """The worker processes of a driver."""
    return [p for p in psutil.Process(process.pid).children() if is_worker(p)]


def is_worker(process: psutil.Process) -> bool:
    """Whether a process is one of our workers."""
    try:
        return "grpolab.sweep.worker" in process.cmdline()
    except psutil.Error:
        return False


def assert_same_runs(out: Path, expected: Path) -> None:
    """Every run is done, with the metrics and weights of the other sweep, each step once."""
    ours, theirs = (launching.run_folders(o / "swept") for o in (out, expected))
    assert [f.name for f in ours] == [f.name for f in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert launching.status(one)["state"] == "done"
        assert launching.metrics(one) == launching.metrics(other)
        assert launching.weights(one) == launching.weights(other)
