"""A sweep whose driver and workers are killed at random ends as one that nothing disturbed.

GRPOLAB_KILLS=20 kills so often (the default, 3, keeps the suite short); the table that a long run
prints is in experiments/robustness/README.md.
"""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from subprocess import Popen
from typing import TYPE_CHECKING, Any

import pandas as pd
import psutil
import pytest

from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
else:
    import launching
    import sweeping

KILLS = int(os.environ.get("GRPOLAB_KILLS", "3"))
RUNS = ("seed=0,1,2,3,4,5", "hydra.launcher.workers=2")  # × 2 clips: 12 runs
STEPS = f"steps={max(4, KILLS)}"
EARLY_SHARE, EARLY_SECONDS = 0.25, 6.0  # kills that fall while the driver starts
SPREAD_SECONDS = 5.0  # the others: after its runs have gone on
KEYS = ["job_id", "step", "metric"]


def frames(out: Path, source: str) -> pd.DataFrame:
    """The sweep's history from its files or its MLflow store, without what a clock measured."""
    from grpolab.results.load import load

    uri = {"files": None, "mlflow": f"sqlite:///{out / 'mlflow.db'}"}[source]
    found = load(output_dir=out, sweep="latest", uri=uri).history
    kept = found[~found["metric"].str.startswith(launching.CLOCKED)]
    return kept[[*KEYS, "value"]].sort_values(KEYS).reset_index(drop=True)


def words(out: Path) -> list[str]:
    fast = ("tracking.flush_seconds=0.5", "eval.every=2")
    return sweeping.command(out, STEPS, *RUNS, *fast)


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:

    def make(out: Path) -> Path:
        done = launching.grpolab(*words(out), cwd=out)
        assert done.returncode == 0, done.stderr
        return out

    return once(tmp_path_factory, "kills-undisturbed", make)


def kill_some(process: Popen[str], rng: random.Random) -> str:
    """Kills the driver, a worker, or everything; what it was."""
    found = sweeping.workers(process)
    victims: dict[str, list[psutil.Process]] = {"driver": [psutil.Process(process.pid)]}
    if found:
        victims["worker"] = [rng.choice(found)]
        victims["all"] = [psutil.Process(process.pid), *found]
    what = rng.choice(sorted(victims))
    for victim in victims[what]:
        victim.kill()
    return what


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[tuple[str, float, int]]]:
    """The disturbed sweep, and (victim, seconds after the start, steps logged so far) of each
    kill."""
    return once(tmp_path_factory, "kills", disturbed)


def disturbed(out: Path) -> tuple[Path, list[tuple[str, float, int]]]:
    """A driver that lost a worker goes on, until it is killed in its turn."""
    rng = random.Random(7)
    kills: list[tuple[str, float, int]] = []
    process: Popen[str] | None = None
    while len(kills) < KILLS:
        if process is None:
            known = any((out / "swept").glob("sweeps/*.json"))
            command = ["resume", f"output_dir={out}"] if known else words(out)
            process, began = launching.start(*command, cwd=out), time.monotonic()
        wait_for_a_moment(process, out, rng)
        if process.poll() is not None:
            break  # it was through; how many kills it took is asserted below
        what = kill_some(process, rng)
        kills.append((what, time.monotonic() - began, sweeping.steps_logged(out)))
        if what != "worker":
            process.communicate()
            process = None
    if process is not None:
        process.communicate(timeout=launching.LIMIT)
    done = launching.grpolab(*words(out), cwd=out)
    assert done.returncode == 0, done.stderr
    return out, kills


def wait_for_a_moment(process: Popen[str], out: Path, rng: random.Random) -> None:
    """While the driver starts, or some time after a run of its has logged a step."""
    if rng.random() < EARLY_SHARE:
        time.sleep(rng.random() * EARLY_SECONDS)
        return
    before = sweeping.steps_logged(out)
    while sweeping.steps_logged(out) <= before and process.poll() is None:
        time.sleep(0.02)
    time.sleep(rng.random() * SPREAD_SECONDS)


def test_the_frames_equal_an_undisturbed_sweep_s(
    killed: tuple[Path, list[tuple[str, float, int]]], undisturbed: Path
) -> None:
    out, kills = killed
    for kill in kills:
        print("killed {}, {:.1f} s after the start, {} steps logged".format(*kill))
    assert len(kills) == KILLS
    for source in ("files", "mlflow"):
        ours, theirs = frames(out, source), frames(undisturbed, source)
        assert len(ours) > 12 * 4 * 20
        pd.testing.assert_frame_equal(ours, theirs, check_exact=True)
    sweeping.assert_same_runs(out, undisturbed)


def test_no_point_is_doubled_and_no_run_is_left_running(
    killed: tuple[Path, list[tuple[str, float, int]]],
) -> None:
    import sqlite3

    out, _ = killed
    store = sqlite3.connect(f"file:{out / 'mlflow.db'}?mode=ro", uri=True)
    rows: list[Any] = store.execute(
        "select m.run_uuid, key, step, count(*) from metrics m join runs r using (run_uuid) "
        "where r.lifecycle_stage = 'active' group by 1, 2, 3 having count(*) > 1"
    ).fetchall()
    assert rows == []
    states = store.execute("select status, count(*) from runs where lifecycle_stage = 'active' "
                           "group by 1").fetchall()  # fmt: skip
    assert states == [("FINISHED", 13)]  # 12 runs and their parent
