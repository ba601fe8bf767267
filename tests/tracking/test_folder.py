"""A run's folder: STATUS and its lease, lines torn by a kill, truncation."""

from __future__ import annotations

import json
import math
import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from grpolab.tracking import folder as module
from grpolab.tracking.folder import (
    LEASE_SECONDS,
    Busy,
    RunFolder,
    lease_is_live,
    read_jsonl,
    write_atomically,
)


@pytest.fixture
def folder(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path)


@pytest.fixture
def other_pid() -> int:
    """A live process that is not this one."""
    return os.getppid()


def write_status(folder: RunFolder, pid: int, *, host: str | None = None, age: float = 0) -> None:
    lease = {"host": host or socket.gethostname(), "pid": pid, "time": time.time() - age}
    status = {"state": "running", "reason": None, "lease": lease}
    (folder.path / "STATUS").write_text(json.dumps(status))


def dead_pid() -> int:
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        pass
    return process.pid


def test_a_folder_that_is_not_there_is_missing(tmp_path: Path) -> None:
    assert RunFolder(tmp_path / "none").status()["state"] == "missing"


@pytest.mark.parametrize("state", ["pending", "done", "failed"])
def test_status_keeps_state_and_reason(folder: RunFolder, state: str) -> None:
    folder.set_status(state, "because")
    assert folder.status() == {"state": state, "reason": "because", "lease": None}
    assert not lease_is_live(folder.status())


def test_a_lease_names_this_process_and_ends_with_its_state(folder: RunFolder) -> None:
    with folder.lease():
        lease = folder.status()["lease"]
        assert (lease["host"], lease["pid"]) == (socket.gethostname(), os.getpid())
        folder.set_status("done")
    assert folder.status()["state"] == "done"


def test_a_live_lease_is_respected(folder: RunFolder, other_pid: int) -> None:
    write_status(folder, other_pid)
    assert lease_is_live(folder.status())
    with pytest.raises(Busy), folder.lease():
        pytest.fail("the block ran")
    assert folder.status()["lease"]["pid"] == other_pid


def test_a_dead_process_s_lease_is_stale(folder: RunFolder) -> None:
    write_status(folder, dead_pid())
    assert not lease_is_live(folder.status())
    with folder.lease():
        assert folder.status()["lease"]["pid"] == os.getpid()


def test_a_zombie_s_lease_is_stale(folder: RunFolder) -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    try:
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet reaped
        write_status(folder, process.pid)
        assert not lease_is_live(folder.status())
    finally:
        process.wait()


@pytest.mark.parametrize(("age", "live"), [(0.0, True), (LEASE_SECONDS + 1, False)])
def test_another_host_s_lease_counts_while_it_is_renewed(
    folder: RunFolder, other_pid: int, age: float, live: bool
) -> None:
    write_status(folder, other_pid, host="elsewhere", age=age)
    assert lease_is_live(folder.status()) is live


def test_a_lease_is_renewed(folder: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.01)
    with folder.lease():
        first = folder.status()["lease"]["time"]
        deadline = time.monotonic() + 10
        while folder.status()["lease"]["time"] == first and time.monotonic() < deadline:
            time.sleep(0.01)
        assert folder.status()["lease"]["time"] > first
        folder.set_status("failed", "of its own")
        time.sleep(0.05)
        assert folder.status()["state"] == "failed"


def test_the_end_of_a_run_is_never_overwritten_by_its_lease(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "RENEW_SECONDS", 0.0005)
    for _ in range(20):
        with folder.lease():
            time.sleep(0.002)
            folder.set_status("done")
            time.sleep(0.002)
        assert folder.status()["state"] == "done"


def test_a_torn_last_line_is_left_out(folder: RunFolder) -> None:
    folder.append_metrics(0, {"a": 1.0})
    folder.append_metrics(1, {"a": 2.0})
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "metr')
    assert folder.metrics() == [(0, {"a": 1.0}), (1, {"a": 2.0})]


def test_a_line_torn_inside_a_character_is_left_out(folder: RunFolder) -> None:
    folder.append_samples([{"step": 1, "completion": "καλό"}])
    path = folder.path / "samples.jsonl"
    whole = path.read_bytes()
    path.write_bytes(whole + whole[: whole.index("λ".encode()) + 1])
    assert read_jsonl(path) == [{"step": 1, "completion": "καλό"}]


def test_completions_with_unusual_line_ends_are_one_line(folder: RunFolder) -> None:
    texts = ["a\u2028b", "c\x85d", "e\x1cf", "g\r\nh\n", "i\x0cj"]
    folder.append_samples([{"step": i, "completion": text} for i, text in enumerate(texts)])
    found = read_jsonl(folder.path / "samples.jsonl")
    assert [r["completion"] for r in found] == texts
    folder.truncate(4)
    found = read_jsonl(folder.path / "samples.jsonl")
    assert [r["completion"] for r in found] == texts[:4]


def test_half_a_surrogate_pair_can_be_written(folder: RunFolder) -> None:
    # A byte-level tokenizer's completion may end inside a character.
    folder.append_samples([{"step": 1, "completion": "\ud83d"}, {"step": 2, "completion": "b"}])
    assert [r["step"] for r in read_jsonl(folder.path / "samples.jsonl")] == [1, 2]


def test_truncate_drops_later_steps_and_torn_lines(folder: RunFolder) -> None:
    for step in range(4):
        folder.append_metrics(step, {"a": float(step)})
        folder.append_samples([{"step": step, "completion": "β"}] * 2)
    with (folder.path / "metrics.jsonl").open("a") as file:
        file.write('{"step"')
    folder.truncate(2)
    folder.append_metrics(2, {"a": 9.0})
    assert folder.metrics() == [(0, {"a": 0.0}), (1, {"a": 1.0}), (2, {"a": 9.0})]
    assert [r["step"] for r in read_jsonl(folder.path / "samples.jsonl")] == [0, 0, 1, 1]


def test_what_truncate_keeps_stays_byte_for_byte(folder: RunFolder) -> None:
    folder.append_metrics(0, {"a": 0.1 + 0.2, "b": math.nan, "c": math.inf, "d": -math.inf})
    before = (folder.path / "metrics.jsonl").read_bytes()
    folder.append_metrics(1, {"a": 1.0})
    folder.truncate(1)
    assert (folder.path / "metrics.jsonl").read_bytes() == before


def test_numbers_that_json_lacks_come_back(folder: RunFolder) -> None:
    folder.append_metrics(3, {"nan": math.nan, "up": math.inf, "down": -math.inf})
    strict = json.loads(
        (folder.path / "metrics.jsonl").read_text(), parse_constant=lambda name: pytest.fail(name)
    )
    assert strict["metrics"] == {"nan": "NaN", "up": "Infinity", "down": "-Infinity"}
    ((step, found),) = folder.metrics()
    assert step == 3
    assert math.isnan(found["nan"])
    assert (found["up"], found["down"]) == (math.inf, -math.inf)


def test_a_file_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, "old")

    def fail(*_: object) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(Path, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        write_atomically(path, "new")
    assert path.read_text() == "old"
