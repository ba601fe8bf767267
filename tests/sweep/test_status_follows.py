"""`grpolab status` on a terminal: it shows all that was chosen until all of it has ended."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from grpolab.cli.status import IDLE_LOOKS, status
from grpolab.tracking.folder import RunFolder

MEMBER = {"seed": 0, "baseline": True, "steps": 4}


@pytest.fixture
def runs(tmp_path: Path) -> tuple[RunFolder, RunFolder]:
    """The run of a sweep and a single one, both at work."""
    made = [RunFolder(tmp_path / "s" / name) for name in ("swept", "single")]
    for folder, arm in zip(made, ("clip=swept", "clip=single"), strict=True):
        folder.path.mkdir(parents=True)
        lease = {"host": socket.gethostname(), "pid": os.getppid(), "time": 0.0}
        held = {"state": "running", "reason": None, "lease": lease}  # by a process that is alive
        (folder.path / "STATUS").write_text(json.dumps(held))
        folder.append_metrics(1, {"time/wall": 2.0})
        folder.write_json("run.json", MEMBER | {"arm": arm})
    write_sweep(tmp_path, "20260101-000000-aa", "swept")
    return made[0], made[1]


def write_sweep(out: Path, sweep: str, job_id: str) -> None:
    """A sweep of one job."""
    (out / "s" / "sweeps").mkdir(exist_ok=True)
    job = MEMBER | {"job_id": job_id, "arm": f"clip={job_id}"}
    manifest = {"sweep": sweep, "study": "s", "command": "grpolab train -m", "jobs": [job]}
    (out / "s" / "sweeps" / f"{sweep}.json").write_text(json.dumps(manifest))


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> StringIO:
    """What a terminal gets of what is kept up to date."""
    monkeypatch.setenv("TERM", "xterm")
    text = StringIO()
    console = Console(file=text, force_terminal=True, width=120, height=60)
    monkeypatch.setattr("rich.live.get_console", lambda: console)
    return text


def test_a_sweep_and_a_single_run_are_followed_to_their_ends(
    runs: tuple[RunFolder, RunFolder],
    terminal: StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    swept, single = runs
    meanwhile: list[Callable[[], None]] = [
        lambda: swept.set_status("done"),
        lambda: write_sweep(tmp_path, "20260101-000001-bb", "later"),  # nobody asked for this one
        lambda: single.append_metrics(3, {"time/wall": 6.0}),
        lambda: single.set_status("failed", "NaN"),
    ]
    shown: list[str] = []

    def wait() -> None:
        shown.append(terminal.getvalue())
        terminal.truncate(0)
        terminal.seek(0)
        meanwhile.pop(0)()

    monkeypatch.setattr("grpolab.cli.status.wait", wait)
    assert status([f"output_dir={tmp_path}", "watch=true"]) == 0
    shown.append(terminal.getvalue())
    assert meanwhile == []
    assert len(shown) == 5
    for screen in shown:
        assert "clip=swept" in screen
        assert "clip=single" in screen
        assert "later" not in screen
    assert ["1 done" in screen for screen in shown] == [False, True, True, True, True]
    assert ["3/4" in screen for screen in shown] == [False, False, False, True, True]
    assert ["1 failed" in screen for screen in shown] == [False, False, False, False, True]


def test_what_has_ended_is_printed_once(
    runs: tuple[RunFolder, RunFolder],
    terminal: StringIO,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in runs:
        folder.set_status("done")
    assert status([f"output_dir={tmp_path}", "sweep=all", "watch=true"]) == 0
    assert terminal.getvalue() == ""
    assert capsys.readouterr().out.count("1 done") == 2


@pytest.mark.parametrize("watch", [[], ["watch=true"]])
def test_an_interrupted_run_is_not_looked_at_for_ever(
    watch: list[str],
    runs: tuple[RunFolder, RunFolder],
    terminal: StringIO,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Unless asked for, as by who is about to go on with it."""
    monkeypatch.setattr("grpolab.cli.status.on_terminal", lambda: True)
    looks: list[None] = []

    def wait() -> None:
        looks.append(None)
        if len(looks) == 3:
            for folder in runs:
                folder.set_status("pending", "interrupted")
        if len(looks) == 20:
            for folder in runs:
                folder.set_status("done")

    monkeypatch.setattr("grpolab.cli.status.wait", wait)
    assert status([f"output_dir={tmp_path}", *watch]) == 0
    assert len(looks) == (20 if watch else 3 + IDLE_LOOKS - 1)
    looks.clear()
    if not watch:  # and from the start on: a table, once
        assert status([f"output_dir={tmp_path}"]) == 0
        assert looks == []
