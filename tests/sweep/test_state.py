"""How runs and sweeps stand, read from folders that a kill may have left at any point."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any

import pytest

from grpolab.sweep.state import JobState, job_state, tail, time_left
from grpolab.tracking.folder import RunFolder

MEMBER = {"arm": "clip=none", "seed": 3, "baseline": False, "steps": 10}


def logged(folder: RunFolder, steps: int, **last: float) -> None:
    for step in range(steps + 1):
        metrics = {"time/wall": 2.0 * step, "reward/mean": step / 10}
        if step % 4 == 0:
            metrics["eval/accuracy"] = step / 100
        folder.append_metrics(step, metrics | last)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


def test_a_run_that_never_began(tmp_path: Path) -> None:
    found = job_state(RunFolder(tmp_path / "none"), MEMBER)
    assert (found.state, found.step, found.steps, found.seconds_left) == ("pending", 0, 10, None)
    assert (found.arm, found.seed, found.baseline) == ("clip=none", 3, False)


def test_a_run_at_work(folder: RunFolder) -> None:
    lease = {"host": socket.gethostname(), "pid": os.getppid(), "time": 0.0}
    status = {"state": "running", "reason": None, "lease": lease}
    (folder.path / "STATUS").write_text(json.dumps(status))
    logged(folder, 6)
    found = job_state(folder, MEMBER)
    assert found.state == "running"
    assert (found.step, found.reward, found.accuracy) == (6, 0.6, 0.04)
    assert (found.seconds, found.seconds_left) == (12.0, 8.0)  # 2 s a step, 4 steps to go


def test_a_run_whose_process_is_gone_is_pending(folder: RunFolder) -> None:
    lease = {"host": socket.gethostname(), "pid": 2**22 + 1, "time": 0.0}
    status = {"state": "running", "reason": None, "lease": lease}
    (folder.path / "STATUS").write_text(json.dumps(status))
    found = job_state(folder, MEMBER)
    assert (found.state, found.reason) == ("pending", "its process is gone")


@pytest.mark.parametrize(
    "torn", ["", '{"step": 7, "met', "\ud83d".encode("utf-8", "replace").decode()]
)
def test_a_torn_last_line_is_passed_over(folder: RunFolder, torn: str) -> None:
    logged(folder, 6)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write(torn)
    last, accuracy = tail(folder.path / "metrics.jsonl")
    assert (last["step"], accuracy) == (6.0, 0.04)


def test_only_the_end_of_a_long_file_is_read(folder: RunFolder, monkeypatch: Any) -> None:
    from grpolab.sweep import state

    monkeypatch.setattr(state, "TAIL_BYTES", 150)
    logged(folder, 7)
    last, accuracy = tail(folder.path / "metrics.jsonl")
    assert last["step"] == 7.0
    assert accuracy is None  # that of step 4 lies further up


def job(state: str, seconds: float = 0.0, left: float | None = None) -> JobState:
    return JobState("x", "baseline", 0, True, state, None, 0, 10, None, None, seconds, left)


@pytest.mark.parametrize(
    ("jobs", "expected"),
    [
        ([job("done", 10, 0.0), job("pending")], 10.0),
        ([job("done", 10, 0.0), job("pending"), job("pending")], 20.0),
        ([job("running", 4, 6.0), job("running", 2, 8.0)], 8.0),
        ([job("running", 4, 6.0), job("running", 2, 8.0), job("pending")], 12.0),
        ([job("pending")], None),
        ([job("done", 10, 0.0), job("failed", 3, 7.0)], 0.0),
    ],
)
def test_time_left(jobs: list[JobState], expected: float | None) -> None:
    assert time_left(jobs) == expected
