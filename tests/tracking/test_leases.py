"""Leases while the wall clock jumps, and logging that only enqueues."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from grpolab.tracking import folder as folders
from grpolab.tracking.folder import (
    Busy,
    RunFolder,
    is_own,
    lease_is_live,
    pid_space,
    process_start,
)
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


def held(path: Path, host: str, pid: int, at: float, **changes: str) -> RunFolder:
    """A folder whose lease that process renewed at that time."""
    lease: dict[str, Any]
    lease = {"host": host, "space": pid_space(), "pid": pid, "started": process_start(pid)}
    lease |= {"time": at, **changes}
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


def test_a_process_of_that_number_in_another_container_says_nothing(tmp_path: Path) -> None:
    """Same host name, same number: whether the owner lives is told by its renewals alone."""
    here, parent = socket.gethostname(), os.getppid()
    own = pid_space()
    assert own is not None
    for other in (f"{own}0", f"another-start-of-the-kernel:{own.split(':', 1)[1]}"):
        fresh = held(tmp_path, here, parent, time.time(), space=other)
        assert lease_is_live(fresh.status())
        old = held(tmp_path, here, parent, time.time() - 2 * folders.LEASE_SECONDS, space=other)
        assert not lease_is_live(old.status())
        ours = held(tmp_path, here, os.getpid(), time.time(), space=other)
        assert lease_is_live(ours.status())
        assert not is_own(ours.status()["lease"])


def test_a_number_that_another_process_got_is_no_life_sign(tmp_path: Path) -> None:
    here, parent = socket.gethostname(), os.getppid()
    started = process_start(parent)
    assert started is not None
    assert lease_is_live(held(tmp_path, here, parent, 0.0).status())
    reused = held(tmp_path, here, parent, time.time(), started=f"{started}0")
    assert not lease_is_live(reused.status())
    ours = held(tmp_path, here, os.getpid(), time.time())
    assert is_own(ours.status()["lease"])
    before = held(tmp_path, here, os.getpid(), time.time(), started=f"{started}0")
    assert not is_own(before.status()["lease"])
    assert not lease_is_live(before.status())


def test_leases_of_earlier_versions_are_judged_by_the_host(tmp_path: Path) -> None:
    run = held(tmp_path, socket.gethostname(), os.getppid(), 0.0)
    lease = {k: v for k, v in run.status()["lease"].items() if k not in ("space", "started")}
    text = json.dumps({"state": "running", "reason": None, "lease": lease})
    (tmp_path / "STATUS").write_text(text)
    assert lease_is_live(run.status())


CONTAINER = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child", sys.executable, "-c")
HOLD = """
import sys
from pathlib import Path
from grpolab.tracking.folder import RunFolder
with RunFolder(Path(sys.argv[1])).lease():
    print("held", flush=True)
    sys.stdin.read()
"""
JUDGE = """
import os, sys
from pathlib import Path
from grpolab.tracking.folder import Busy, RunFolder, lease_is_live
run = RunFolder(Path(sys.argv[1]))
try:
    with run.lease():
        found = "taken"
except Busy:
    found = "busy"
print(os.getpid(), run.status()["lease"]["pid"], lease_is_live(run.status()), found)
"""


def contained(script: str, folder: Path) -> subprocess.Popen[str]:
    """A script as process 1 of a namespace of its own, on the host's name."""
    paths = [str(Path(folders.__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return subprocess.Popen(
        [*CONTAINER, script, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
    )  # fmt: skip


def can_contain() -> bool:
    try:
        done = subprocess.run([*CONTAINER, "pass"], capture_output=True, check=False, timeout=60)
    except OSError:
        return False
    return done.returncode == 0


@pytest.mark.skipif(not can_contain(), reason="needs the right to make a pid namespace")
def test_two_containers_of_one_name_and_number(tmp_path: Path) -> None:
    holder = contained(HOLD, tmp_path)
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    status = RunFolder(tmp_path).status()
    assert (status["lease"]["host"], status["lease"]["pid"]) == (socket.gethostname(), 1)
    assert lease_is_live(status)  # though our own process 1 is another one
    out, _ = contained(JUDGE, tmp_path).communicate(timeout=60)
    assert out.split() == ["1", "1", "True", "busy"]
    holder.communicate(timeout=60)


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
