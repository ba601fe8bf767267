"""A store that is locked, stops for a while, or never comes back: nothing is lost or doubled."""

from __future__ import annotations

import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching, serving
else:
    import launching
    import serving

STEPS = 25
FAST = ("tracking.flush_seconds=0.3", "eval.every=0", f"steps={STEPS}")
LOCKED_SECONDS = 12.0  # in all, as far as training does not take longer
SQLITE_SECONDS = 20.0  # for which MLflow has sqlite wait for a lock (its PRAGMA busy_timeout)
HASTY = "from grpolab.tracking import sender\nsender.FINISH_SECONDS = 3.0"
"""A run waits less at its end for a store that does not come back."""
BY = ["job_id", "metric", "step"]


def assert_store_has_everything(out: Path, uri: str) -> None:
    """The store and the files give the same frames, and the store no point twice."""
    from grpolab.results.load import load

    ours = load(output_dir=out).history.sort_values(BY).reset_index(drop=True)
    theirs = load(output_dir=out, uri=uri).history.sort_values(BY).reset_index(drop=True)
    assert len(ours) > STEPS * 20
    pd.testing.assert_frame_equal(ours, theirs, check_exact=True)


def assert_no_point_twice(path: Path) -> None:
    store = sqlite3.connect(f"file:{path}?mode=ro", uri=True)
    doubled = store.execute(
        "select run_uuid, key, step from metrics group by 1, 2, 3 having count(*) > 1"
    ).fetchall()
    states = store.execute(
        "select distinct status from runs where lifecycle_stage = 'active'"
    ).fetchall()
    store.close()
    assert doubled == []
    assert states == [("FINISHED",)]


def start(out: Path, *overrides: str, before: str | None = None) -> subprocess.Popen[str]:
    words = ["train", *launching.SMALL, *FAST, *overrides, f"output_dir={out}"]
    return launching.start(*words, cwd=out.parent, before=before)


def test_a_locked_store_holds_nobody_up(tmp_path: Path) -> None:
    """Locked for less than sqlite waits, since every run of the tests waits as long; the `locked`
    of experiments/robustness/log_calls.py holds the lock for 30 s."""
    out = tmp_path / "out"
    process = start(out, "steps=60", "checkpoint.every=1000")
    launching.wait_for_lines(process, out / "default", 3)
    deadline = time.monotonic() + launching.LIMIT
    while not (out / "mlflow.db").exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    lock = sqlite3.connect(out / "mlflow.db", timeout=60, isolation_level=None)
    lock.execute("begin immediate")
    began, before = time.monotonic(), launching.lines(out / "default")
    while launching.lines(out / "default") < 61:  # it trains to its end under the lock
        assert process.poll() is None, process.communicate()
        assert time.monotonic() - began < launching.LIMIT
        time.sleep(0.05)
    held = time.monotonic() - began
    # a step that waits for the lock waits until sqlite gives up: not even one in four has
    assert 61 - before > max(1.0, 4 * held / SQLITE_SECONDS)
    time.sleep(max(0.0, min(8.0, LOCKED_SECONDS - (time.monotonic() - began))))
    lock.execute("rollback")
    lock.close()
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    done = launching.called("sync", f"output_dir={out}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert_store_has_everything(out, f"sqlite:///{out / 'mlflow.db'}")
    assert_no_point_twice(out / "mlflow.db")


@pytest.mark.parametrize("comes_back", [True, False])
def test_a_server_that_stops(comes_back: bool, tmp_path: Path) -> None:
    out, port = tmp_path / "out", serving.free_port()
    with serving.mlflow_server(tmp_path, port) as uri:
        process = start(out, f"tracking.uri={uri}", before=None if comes_back else HASTY)
        launching.wait_for_lines(process, out / "default", 5)
        folder = launching.only_run(out / "default")
        while not (folder / "mlflow.json").exists():  # it has met the store
            assert process.poll() is None
            time.sleep(0.02)
    assert not serving.answers(uri)
    after = min(STEPS, launching.lines(out / "default") + 5)
    launching.wait_for_lines(process, out / "default", after)  # it trains on without it
    if comes_back:
        with serving.mlflow_server(tmp_path, port):
            finish(process, out, uri)
            assert_store_has_everything(out, uri)
    else:
        finish(process, out, uri)
        assert launching.status(folder)["state"] == "done"
        refused = launching.called("sync", f"output_dir={out}", cwd=tmp_path)
        assert refused.returncode == 1
        assert "0 of 1 runs up to date" in refused.stdout
        with serving.mlflow_server(tmp_path, port):
            done = launching.called("sync", f"output_dir={out}", cwd=tmp_path)
            assert done.returncode == 0, done.stderr
            assert_store_has_everything(out, uri)
            again = launching.called("sync", f"output_dir={out}", cwd=tmp_path)
            assert "0 numbers sent" in again.stdout
    assert_no_point_twice(tmp_path / "server.db")


def finish(process: subprocess.Popen[str], out: Path, uri: str) -> None:
    """The run ends well; where it could not send all in time, and the store is there, sync does."""
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    if "grpolab sync sends it" in errors and serving.answers(uri):
        done = launching.called("sync", f"output_dir={out}", cwd=out)
        assert done.returncode == 0, done.stderr
