"""A sweep on a Ray cluster: the same numbers as here, deaths that cost nothing, and no process left
behind."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
else:
    import launching
    import sweeping

pytest.importorskip("ray", reason="needs the extra ray")

STEPS = sweeping.STEPS
RAY = ("hydra/launcher=ray", "tracking=jsonl")
UP_SECONDS = 60.0


@pytest.fixture(scope="module")
def token(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The cluster's own, as an administrator hands it out: the variables that lead to it."""
    path = tmp_path_factory.mktemp("token") / "token"
    path.write_text(secrets.token_hex(32))
    return {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(path)}


@pytest.fixture
def address(cluster: str, token: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> str:
    """The cluster's, for a user who has its token."""
    for key, value in token.items():
        monkeypatch.setenv(key, value)
    return cluster


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, token: dict[str, str]) -> Iterator[str]:
    """A cluster of one node with two CPUs on 127.0.0.1, started as an administrator would, from
    another folder and without our sources on its path."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [
        sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--port={port}",
        "--node-ip-address=127.0.0.1", "--num-cpus=2", "--include-dashboard=false",
        "--disable-usage-stats",
    ]  # fmt: skip
    ours = ("OMP_NUM_THREADS", "PYTHONPATH")
    environment = {k: v for k, v in os.environ.items() if k not in ours}
    environment |= {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", **token}  # else it listens everywhere
    folder = tmp_path_factory.mktemp("ray")
    with (folder / "ray.log").open("wb") as log:
        head = subprocess.Popen(words, cwd=folder, env=environment, stdout=log, stderr=log)
    deadline = time.monotonic() + UP_SECONDS
    while b"Ray runtime started" not in (folder / "ray.log").read_bytes():
        assert head.poll() is None, (folder / "ray.log").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.1)
    everyone = [head, *psutil.Process(head.pid).children(recursive=True)]
    yield f"127.0.0.1:{port}"
    head.terminate()
    head.wait(30)
    for process in everyone[1:]:
        if process.is_running():
            process.kill()


def actors(address: str) -> list[psutil.Process]:
    """The processes of our actors on this machine."""
    return [p for p in psutil.process_iter() if "ray::Place" in " ".join(words_of(p))]


def words_of(process: psutil.Process) -> list[str]:
    """A process's command line; none once it is gone."""
    try:
        found: list[str] = process.cmdline()
        return found
    except psutil.Error:
        return []


def test_ray_gives_the_same_bits(address: str, in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, *RAY, f"hydra.launcher.address={address}")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    assert len(actors(address)) == 2
    out, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    assert "4 of 4 runs done" in out
    sweeping.assert_same_runs(tmp_path, in_process)
    ends = [line for line in errors.splitlines() if "held-out" in line]
    assert len(ends) == 4
    assert "ray" not in errors.lower().replace(str(tmp_path).lower(), "")  # it talks to nobody
    sweeping.wait_until(lambda: not actors(address))


def test_a_killed_actor_costs_nothing(address: str, in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, *RAY, f"hydra.launcher.address={address}")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    actors(address)[0].kill()
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    sweeping.assert_same_runs(tmp_path, in_process)


def listening_at(process: psutil.Process) -> list[str]:
    """Addresses at which a process takes connections; Ray's short-lived ones may be gone by now."""
    try:
        found = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return []
    return [c.laddr.ip for c in found if c.status == "LISTEN"]


def test_ctrl_c_leaves_checkpoints_and_no_process(tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, "steps=30", *RAY, "checkpoint.every=0",
                             "hydra.launcher.workers=2")  # fmt: skip
    process = launching.start(*words, cwd=tmp_path, start_new_session=True)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 3, process)
    everyone = psutil.Process(process.pid).children(recursive=True)
    assert sum(sweeping.is_worker(p) for p in everyone) == 2
    listening = [ip for child in everyone for ip in listening_at(child)]
    assert {ip.removeprefix("::ffff:") for ip in listening} == {"127.0.0.1"}
    assert any("raylet" in " ".join(words_of(p)) for p in everyone)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody hears it
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    found = launching.run_folders(tmp_path / "swept")
    assert {launching.status(f)["state"] for f in found} == {"pending"}
    assert any((f / "checkpoint" / "state.json").exists() for f in found)
    sweeping.wait_until(lambda: not any(p.is_running() and words_of(p) for p in everyone))


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("address=127.0.0.1:9", "hydra.launcher.address: no Ray cluster at '127.0.0.1:9' "),
        ("cpus_per_job=64", "hydra.launcher.cpus_per_job: 64 asked for, but no node"),
        ("wrokers=2", "did you mean workers?"),
    ],
)
def test_what_cannot_run_is_refused_at_once(setting: str, said: str, tmp_path: Path) -> None:
    plus = "+" if setting.startswith("wrokers") else ""
    words = sweeping.command(tmp_path / "out", STEPS, *RAY, f"{plus}hydra.launcher.{setting}")
    done = launching.grpolab(*words, cwd=tmp_path)
    assert done.returncode == 2, done.stderr
    assert said in launching.one_sentence(done.stderr)
    assert list(tmp_path.iterdir()) == []
