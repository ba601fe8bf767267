"""Where the jobs of a sweep run changes nothing about them, and no worker is left behind."""

from __future__ import annotations

import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching, sweeping
else:
    import launching
    import sweeping

STEPS = sweeping.STEPS
SLOW = "steps=12"  # long enough to do something to it

KINDS = {
    "two-workers": ("hydra.launcher.workers=2",),
    "fresh": ("hydra/launcher=local", "hydra.launcher.workers=2", "hydra.launcher.fresh=true"),
}


@pytest.mark.parametrize("kind", list(KINDS))
def test_all_launchers_give_the_same_bits(kind: str, in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, "tracking=jsonl", *KINDS[kind])
    done = launching.grpolab(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweeping.assert_same_runs(tmp_path, in_process)
    pids = {(f / "log.txt").read_text().count("pid") for f in launching.run_folders(tmp_path)}
    assert pids <= {0}  # nothing of the worker's own talk is in a job's log
    ends = [line for line in done.stderr.splitlines() if "held-out" in line]
    assert len(ends) == 4  # without a terminal, a line for each run that ends


def test_what_a_job_prints_is_in_its_folder(tmp_path: Path) -> None:
    mine = launching.write_tree(
        tmp_path / "mine",
        {
            "talking.py": "import os\n"
            "def score(completion, example):\n"
            "    print('scored')\n"
            "    os.system('echo a child speaks')\n"
            "    return float(len(completion))\n"
        },
    )
    words = ["train", "-m", *launching.SMALL, "seed=0,1", "steps=1", "tracking=jsonl"]
    words += ["reward=python", "reward.function=talking:score", "hydra.launcher.workers=1"]
    done = launching.grpolab(
        *words, f"output_dir={tmp_path / 'out'}", cwd=tmp_path, PYTHONPATH=str(mine)
    )
    assert done.returncode == 0, done.stderr
    folders = launching.run_folders(tmp_path / "out" / "default")
    assert len(folders) == 2
    for folder in folders:
        said = (folder / "log.txt").read_text()
        assert "scored" in said
        assert "a child speaks" in said
    assert "scored" not in done.stdout


def test_a_worker_killed_in_the_middle_costs_nothing(in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, "tracking=jsonl", "hydra.launcher.workers=1")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    (worker,) = sweeping.workers(process)
    worker.kill()
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    sweeping.assert_same_runs(tmp_path, in_process)


def test_workers_end_with_their_driver(in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, "tracking=jsonl", "hydra.launcher.workers=2")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    found = sweeping.workers(process)
    assert len(found) == 2
    process.kill()
    process.communicate()
    sweeping.wait_until(lambda: not any(w.is_running() and sweeping.is_worker(w) for w in found))
    again = launching.grpolab("resume", f"output_dir={tmp_path}", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    sweeping.assert_same_runs(tmp_path, in_process)


@pytest.mark.parametrize(
    ("number", "without_arguments"), [(signal.SIGINT, True), (signal.SIGTERM, False)]
)
def test_a_signal_leaves_checkpoints_and_resume_goes_on(
    number: int, without_arguments: bool, tmp_path: Path
) -> None:
    """Resumed in the folder where it was started, or from elsewhere by the name of its outputs."""
    out = tmp_path / "outputs"  # where runs lie by default
    words = ["train", "-m", *launching.SMALL, *sweeping.SWEEP, SLOW, "checkpoint.every=0"]
    words += ["hydra.launcher.workers=2"]
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(out) >= 3, process)
    os.kill(process.pid, number)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130
    assert "goes on from there" in errors
    assert "Traceback" not in errors
    states = sweeping.states(out)
    assert "running" not in states.values()
    stopped = [k for k, state in states.items() if state == "pending"]
    assert any((out / "swept" / k / "checkpoint" / "state.json").exists() for k in stopped)
    resume = ["resume"] if without_arguments else ["resume", f"output_dir={out}"]
    where = tmp_path if without_arguments else Path("/")
    done = launching.grpolab(*resume, cwd=where)
    assert done.returncode == 0, done.stderr
    assert set(sweeping.states(out).values()) == {"done"}
    assert len(sweeping.members(out)) == 4
    nothing = launching.called(*resume, cwd=where)
    assert nothing.returncode == 0
    named = "outputs" if without_arguments else out
    assert nothing.stdout == f"Nothing is left to do under {named}.\n"


def test_two_drivers_share_a_sweep(in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, "tracking=jsonl", "hydra.launcher.workers=1")
    drivers = [launching.start(*words, cwd=tmp_path) for _ in range(2)]
    for process in drivers:
        out, errors = process.communicate(timeout=launching.LIMIT)
        assert process.returncode == 0, errors
        assert "4 of 4 runs done" in out
    assert len(sweeping.members(tmp_path)) == 4  # of one manifest
    sweeping.assert_same_runs(tmp_path, in_process)


def test_a_package_that_changed_is_no_resume(tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, "tracking=jsonl", "hydra.launcher.workers=1")
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 1, process)
    process.kill()
    process.communicate()
    (path,) = (tmp_path / "swept").glob("sweeps/*.json")
    path.write_text(path.read_text().replace("seed=0,1", "seed=0,2"))
    sweeping.wait_until(lambda: "running" not in live_states(tmp_path))
    refused = launching.called("resume", f"output_dir={tmp_path}", cwd=tmp_path)
    assert refused.returncode == 2
    assert "consists of other jobs now" in launching.one_sentence(refused.stderr)


def live_states(out: Path) -> list[str]:
    """As `grpolab status` sees them."""
    from grpolab.sweep.state import all_sweeps

    return [job.state for sweep in all_sweeps(out) for job in sweep.jobs]
