"""Leases while the wall clock jumps, and logging that only enqueues."""

from __future__ import annotations

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpolab.tracking import folder as folders
from grpolab.tracking.folder import Busy, RunFolder, lease_is_live, process_start
from grpolab.tracking.sender import NAME, Sender

HOUR = 3600.0
JUMPS = [HOUR, -HOUR]


class Clock:
    """Stands for the module time in grpolab.tracking.folder."""

    def __init__(self, jump: float) -> None:
        self.jump, self.slept = jump, 0.0
        self.meanwhile: Callable[[], object] = lambda: None

    def time(self) -> float:
        return time.time() + self.jump

    def sleep(self, seconds: float) -> None:
        self.slept += seconds
        self.meanwhile()


def held(path: Path, host: str, pid: int, at: float) -> RunFolder:
    """A folder whose lease that process renewed at that time."""
    lease = {"host": host, "pid": pid, "started": process_start(pid), "time": at}
    text = json.dumps({"state": "running", "reason": None, "lease": lease})
    (path / "STATUS").write_text(text)
    return RunFolder(path)


def clock(monkeypatch: pytest.MonkeyPatch, jump: float) -> Clock:
    made = Clock(jump)
    monkeypatch.setattr(folders, "time", made)
    return made


@pytest.mark.parametrize("jump", JUMPS)
def test_a_live_process_keeps_its_lease(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = held(tmp_path, socket.gethostname(), os.getppid(), time.time())
    seen = clock(monkeypatch, jump)
    assert lease_is_live(run.status())
    with pytest.raises(Busy), run.lease():
        pass
    assert seen.slept == 0  # its process is asked, no clock


@pytest.mark.parametrize("jump", JUMPS)
def test_a_dead_process_does_not(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = held(tmp_path, socket.gethostname(), 2**22 + 1, time.time() + jump)
    clock(monkeypatch, jump)
    assert not lease_is_live(run.status())
    with run.lease():
        assert run.status()["lease"]["pid"] == os.getpid()


@pytest.mark.parametrize("jump", JUMPS)
@pytest.mark.parametrize("renews", [True, False])
def test_another_host_s_lease_is_watched_not_read_off_the_clock(
    jump: float, renews: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = held(tmp_path, "elsewhere", 1, time.time())
    seen = clock(monkeypatch, jump)
    if renews:
        seen.meanwhile = lambda: held(tmp_path, "elsewhere", 1, time.time() + 10)
        with pytest.raises(Busy), run.lease():
            pass
    else:
        with run.lease():
            assert run.status()["lease"]["pid"] == os.getpid()
    assert seen.slept == folders.WATCH_SECONDS > 2 * folders.RENEW_SECONDS


class Store:
    """Says which thread met it; answers only when it is let."""

    def __init__(self) -> None:
        self.threads: list[str] = []
        self.open = threading.Event()
        self.met = threading.Event()
        self.got: list[int] = []

    def meet(self) -> Any:
        self._note()
        return self

    def send(self, points: Sequence[Any]) -> int:
        self._note()
        self.got += [point.step for point in points]
        return len(points)

    def _note(self) -> None:
        self.threads.append(threading.current_thread().name)
        self.met.set()
        assert self.open.wait(60)


def test_log_only_enqueues() -> None:
    """With a store that does not answer: the caller never meets it, and nothing is lost."""
    store = Store()
    sender = Sender(store.meet, flush_seconds=0.01)
    sender.log(0, {"a": 1.0})
    assert store.threads == []
    sender.start()
    assert store.met.wait(60)
    for step in range(1, 1000):  # while the thread hangs in its first call
        sender.log(step, {"a": 1.0})
    assert store.threads == [NAME]
    assert store.got == []
    store.open.set()
    assert sender.finish(lambda run: None, seconds=60) is None
    assert store.got == list(range(1000))
    assert set(store.threads) == {NAME}
