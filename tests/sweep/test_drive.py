"""The sweep's driver: what it starts, leaves alone, gives a second try, waits for and stops."""

from __future__ import annotations

import json
import os
import signal
import socket
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.drive import DEATHS, Driver
from grpolab.sweep.launchers.base import DIED, Ended
from grpolab.sweep.manifest import run_folder
from grpolab.tracking.folder import RunFolder

Act = Callable[[RunFolder], str]
"""What becomes of a job: it may write its STATUS, and returns the state the pool reports."""


class Scripted:
    """A pool whose jobs end at once, as a script says; without an entry, well."""

    def __init__(self, size: int = 2, **acts: list[Act]) -> None:
        self.size, self.acts = size, acts
        self.started: list[str] = []
        self.most_at_once = 0
        self.stopped: list[list[str]] = []
        self.closed: list[bool] = []
        self._running: dict[str, RunFolder] = {}

    def prepare(self, jobs: int) -> None:
        """Nothing to start."""

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        self.started.append(key)
        self._running[key] = run_folder(raw)
        self.most_at_once = max(self.most_at_once, len(self._running))
        self._running[key].path.mkdir(parents=True, exist_ok=True)

    def wait(self, seconds: float) -> list[Ended]:
        if not self._running:
            return []
        key, folder = self._running.popitem()
        queue = self.acts.get(key, [])
        act = queue.pop(0) if queue else ends_well
        return [Ended(key, act(folder), "its process was killed by SIGKILL")]

    def stop(self, keys: Sequence[str]) -> None:
        self.stopped.append(list(keys))

    def close(self, *, kill: bool = False) -> None:
        self.closed.append(kill)


def ends_well(folder: RunFolder) -> str:
    folder.set_status("done")
    return "done"


def fails(folder: RunFolder) -> str:
    folder.set_status("failed", "NaN")
    return "failed"


def dies(folder: RunFolder) -> str:
    return DIED


def is_busy(folder: RunFolder) -> str:
    """Another process (here: our parent) holds the lease."""
    lease = {"host": socket.gethostname(), "pid": os.getppid(), "time": 0.0}
    status = {"state": "running", "reason": None, "lease": lease}
    (folder.path / "STATUS").write_text(json.dumps(status))
    return "busy"


@pytest.fixture
def jobs(tmp_path: Path) -> dict[str, dict[str, Any]]:
    """Four jobs, a to d."""
    words = ["-m", "debug=smoke", "seed=0,1,2,3", f"output_dir={tmp_path}", "study=driven"]
    found = expand(parse_command(words)).jobs
    return dict(zip("abcd", (j.raw for j in found), strict=True))


def states(jobs: Mapping[str, Mapping[str, Any]]) -> str:
    """d done, f failed, p pending, m missing, r running; a letter a job."""
    return "".join(run_folder(raw).status()["state"][0] for raw in jobs.values())


def test_every_job_runs_once_and_no_more_at_a_time_than_fit(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=2)
    Driver(jobs, pool).run()
    assert pool.started == list("abcd")
    assert pool.most_at_once == 2
    assert states(jobs) == "dddd"
    assert pool.closed == [False]


def test_what_is_done_is_skipped_and_what_failed_is_left(jobs: dict[str, Any]) -> None:
    Driver(jobs, Scripted(b=[fails])).run()
    again = Scripted()
    Driver(jobs, again).run()
    assert again.started == []
    assert states(jobs) == "dfdd"


def test_what_failed_runs_again_when_asked(jobs: dict[str, Any]) -> None:
    Driver(jobs, Scripted(b=[fails])).run()
    again = Scripted()
    Driver(jobs, again, retry_failed=True).run()
    assert again.started == ["b"]
    assert states(jobs) == "dddd"


def test_a_failure_lets_the_others_go_on(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=1, a=[fails])
    Driver(jobs, pool).run()
    assert states(jobs) == "fddd"
    assert pool.stopped == []


def test_a_failure_stops_the_sweep_when_asked(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=2, b=[fails])
    Driver(jobs, pool, stop_on_error=True).run()
    assert pool.started == ["a", "b"]  # b ends first, and a is asked to end
    assert pool.stopped == [["a"]]
    assert states(jobs) == "dfmm"


def test_a_job_whose_process_died_gets_a_second_one(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=1, a=[dies])
    Driver(jobs, pool).run()
    assert pool.started == [*"abcda"]
    assert states(jobs) == "dddd"


def test_a_job_that_kills_its_processes_stops_the_sweep_when_asked(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=1, a=[dies] * DEATHS, b=[dies])
    Driver(jobs, pool, stop_on_error=True).run()
    assert pool.started == [*"abcda"]  # b's second process is never started
    assert states(jobs) == "ppdd"


def test_a_job_that_kills_its_processes_is_left_pending(jobs: dict[str, Any]) -> None:
    pool = Scripted(size=1, a=[dies] * (DEATHS + 1))
    Driver(jobs, pool).run()
    assert pool.started.count("a") == DEATHS
    status = run_folder(jobs["a"]).status()
    assert status["state"] == "pending"
    assert "SIGKILL" in status["reason"]
    assert states(jobs) == "pddd"


def test_a_death_after_the_end_changes_nothing(jobs: dict[str, Any]) -> None:
    def done_then_dies(folder: RunFolder) -> str:
        folder.set_status("done")
        return DIED

    pool = Scripted(a=[done_then_dies])
    Driver(jobs, pool).run()
    assert pool.started.count("a") == 1
    assert states(jobs) == "dddd"


def test_another_driver_s_job_is_waited_for(jobs: dict[str, Any]) -> None:
    pool = Scripted(a=[is_busy])
    folder = run_folder(jobs["a"])
    seen: list[str] = []

    def show(running: list[str]) -> None:
        seen.append(folder.status()["state"])
        if len(seen) == 20:
            folder.set_status("done")  # the other one is through

    Driver(jobs, pool, show=show).run()
    assert pool.started.count("a") == 1
    assert len(seen) >= 20
    assert states(jobs) == "dddd"


def test_what_another_driver_leaves_behind_is_taken_over(jobs: dict[str, Any]) -> None:
    pool = Scripted(a=[is_busy])
    folder = run_folder(jobs["a"])
    seen: list[int] = []

    def show(running: list[str]) -> None:
        seen.append(1)
        if len(seen) == 10:
            folder.set_status("pending", "interrupted")

    Driver(jobs, pool, show=show).run()
    assert pool.started.count("a") == 2
    assert states(jobs) == "dddd"


def test_a_job_refused_before_it_began_is_failed(jobs: dict[str, Any]) -> None:
    Driver(jobs, Scripted(a=[lambda folder: "failed"])).run()
    assert states(jobs) == "fddd"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_after_the_steps_at_hand(jobs: dict[str, Any], number: int) -> None:
    def interrupted(folder: RunFolder) -> str:
        folder.set_status("pending", "interrupted")
        return "interrupted"

    pool = Scripted(size=2, a=[interrupted], b=[interrupted])
    before = signal.getsignal(number)
    asked = threading.Event()

    class Waits(Scripted):
        def wait(self, seconds: float) -> list[Ended]:
            if not asked.is_set():
                asked.set()
                os.kill(os.getpid(), number)
                return []
            return super().wait(seconds)

    pool = Waits(size=2, a=[interrupted], b=[interrupted])
    with pytest.raises(KeyboardInterrupt):
        Driver(jobs, pool).run()
    assert pool.stopped == [["a", "b"]]
    assert states(jobs) == "ppmm"
    assert pool.closed == [False]
    assert signal.getsignal(number) is before


def test_a_second_ctrl_c_kills(jobs: dict[str, Any]) -> None:
    class Deaf(Scripted):
        def wait(self, seconds: float) -> list[Ended]:
            os.kill(os.getpid(), signal.SIGINT)
            return []

    pool = Deaf()
    with pytest.raises(KeyboardInterrupt):
        Driver(jobs, pool).run()
    assert pool.closed == [True]
