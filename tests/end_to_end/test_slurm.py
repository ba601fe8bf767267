"""A sweep on Slurm: the same numbers as here, checkpoints before the end of a job's time, and
nothing left in the queue."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching, slurm_cluster, sweeping
else:
    import launching
    import slurm_cluster
    import sweeping

pytest.importorskip("submitit", reason="needs the extra slurm")

STEPS = sweeping.STEPS
SLOW = "steps=30"
SLURM = ("hydra/launcher=slurm", "hydra.launcher.poll=0.5", "tracking=jsonl")
LOCAL = ("hydra/launcher=slurm", "hydra.launcher.executor=local", "tracking=jsonl")


@pytest.fixture(scope="module")
def slurm(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """A cluster of one node with two CPUs: the variables that lead to it."""
    if reason := slurm_cluster.why_not():
        pytest.skip(reason)
    with slurm_cluster.cluster(tmp_path_factory.mktemp("slurm") / "cluster") as environment:
        yield environment


@pytest.fixture
def cluster(slurm: Mapping[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The cluster, for the commands of a test; its queue is empty again afterwards."""
    for key, value in slurm.items():
        monkeypatch.setenv(key, value)
    yield
    subprocess.run(["scancel", "--me"], check=True)
    sweeping.wait_until(lambda: not queue())


def queue(*options: str) -> dict[str, str]:
    """{job: state} of what is queued or runs."""
    done = subprocess.run(
        ["squeue", "--noheader", "--array", "--me", "--format=%i %T", *options],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return dict(line.split(maxsplit=1) for line in done.stdout.splitlines())


def two_runs(out: Path, *overrides: str) -> list[str]:
    """`grpolab train -m …` of two runs that write a checkpoint only when they are asked to end."""
    words = ["train", "-m", *launching.SMALL, "clip=ppo,none", "eval.every=0", "steps=30"]
    return [*words, "study=swept", f"output_dir={out}", *overrides]


def submissions(out: Path) -> int:
    """Jobs that were submitted for the only sweep."""
    return len(list(out.glob("swept/sweeps/*/slurm/*_submitted.pkl")))


@pytest.mark.usefixtures("cluster")
def test_slurm_gives_the_same_bits(in_process: Path, tmp_path: Path) -> None:
    done = launching.grpolab(*sweeping.command(tmp_path, STEPS, *SLURM), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "4 of 4 runs done" in done.stdout
    sweeping.assert_same_runs(tmp_path, in_process)
    assert submissions(tmp_path) == 4
    assert len(list(tmp_path.glob("swept/sweeps/*/slurm/*_submission.sh"))) == 1  # one array


@pytest.mark.usefixtures("cluster")
def test_ctrl_c_takes_back_what_waits_and_checkpoints_what_runs(tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, SLOW, *SLURM, "checkpoint.every=0",
                             "hydra.launcher.cpus_per_job=2")  # fmt: skip
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    assert sorted(queue().values()) == ["PENDING", "PENDING", "PENDING", "RUNNING"]
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, errors
    assert "Traceback" not in errors
    sweeping.wait_until(lambda: not queue())
    assert list(sweeping.states(tmp_path).values()) == ["pending"]
    (folder,) = launching.run_folders(tmp_path / "swept")
    assert (folder / "checkpoint" / "state.json").exists()


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("how", ["time", "preemption"])
def test_a_run_whose_time_is_up_is_submitted_again(how: str, tmp_path: Path) -> None:
    words = two_runs(tmp_path, *SLURM)
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    job = next(key for key, state in queue().items() if state == "RUNNING")
    if how == "time":  # as Slurm does `notice` seconds before the end
        subprocess.run(["scancel", "--signal=USR2", job], check=True)
    else:
        urgent = ["sbatch", "--partition=urgent", "--cpus-per-task=2", "--output=/dev/null"]
        subprocess.run([*urgent, "--wrap=sleep 1"], check=True, capture_output=True)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    assert set(sweeping.states(tmp_path).values()) == {"done"}
    assert submissions(tmp_path) == (3 if how == "time" else 4)  # of two runs
    undisturbed = tmp_path / "undisturbed"
    words = two_runs(undisturbed, "tracking=jsonl", "hydra.launcher.workers=0")
    assert launching.grpolab(*words, cwd=tmp_path).returncode == 0
    sweeping.assert_same_runs(tmp_path, undisturbed)


@pytest.mark.usefixtures("cluster")
def test_a_job_that_somebody_takes_away_is_left_pending(tmp_path: Path) -> None:
    words = two_runs(tmp_path, *SLURM)
    process = launching.start(*words, cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 2, process)
    job = next(key for key, state in queue().items() if state == "RUNNING")
    subprocess.run(["scancel", job], check=True)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 1, errors
    assert sorted(sweeping.states(tmp_path).values()) == ["done", "pending"]
    assert submissions(tmp_path) == 2


@pytest.mark.usefixtures("cluster")
def test_a_job_killed_in_the_middle_costs_nothing(in_process: Path, tmp_path: Path) -> None:
    process = launching.start(*sweeping.command(tmp_path, STEPS, *SLURM), cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 1, process)
    statuses = [launching.status(f) for f in launching.run_folders(tmp_path / "swept")]
    os.kill(next(s["lease"]["pid"] for s in statuses if s["lease"]), signal.SIGKILL)
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 0, errors
    sweeping.assert_same_runs(tmp_path, in_process)
    assert submissions(tmp_path) == 5


@pytest.mark.usefixtures("cluster")
def test_jobs_go_on_without_their_driver_and_are_found_again(
    in_process: Path, tmp_path: Path
) -> None:
    process = launching.start(*sweeping.command(tmp_path, STEPS, *SLURM), cwd=tmp_path)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 1, process)
    process.kill()
    process.communicate()
    done = launching.grpolab("resume", f"output_dir={tmp_path}", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweeping.assert_same_runs(tmp_path, in_process)
    assert submissions(tmp_path) == 4


@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("partition=nope", "nvalid partition"),
        ("cpus_per_job=64", "hydra.launcher: sbatch would refuse such a job ("),
        ("sbatch={qos_x: 1}", "qos-x"),
        ("sbatch={array: 0-3}", "hydra.launcher.sbatch: array given; allowed: "),
    ],
)
def test_what_slurm_would_refuse_is_refused_at_once(
    setting: str, said: str, tmp_path: Path
) -> None:
    words = sweeping.command(tmp_path / "out", STEPS, *SLURM, f"hydra.launcher.{setting}")
    done = launching.grpolab(*words, cwd=tmp_path)
    assert done.returncode == 2
    assert said in launching.one_sentence(done.stderr)
    assert list(tmp_path.iterdir()) == []


def test_submitit_s_local_executor_gives_the_same_bits(in_process: Path, tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, STEPS, *LOCAL, "hydra.launcher.workers=2")
    done = launching.grpolab(*words, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    sweeping.assert_same_runs(tmp_path, in_process)
    for folder in launching.run_folders(tmp_path / "swept"):
        assert "submitit" not in (folder / "log.txt").read_text()


def test_ctrl_c_with_the_local_executor(tmp_path: Path) -> None:
    words = sweeping.command(tmp_path, SLOW, *LOCAL, "hydra.launcher.workers=2",
                             "checkpoint.every=0")  # fmt: skip
    process = launching.start(*words, cwd=tmp_path, start_new_session=True)
    sweeping.wait_until(lambda: sweeping.steps_logged(tmp_path) >= 3, process)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: everybody hears it
    _, errors = process.communicate(timeout=launching.LIMIT)
    assert process.returncode == 130, errors
    found = launching.run_folders(tmp_path / "swept")
    assert {json.loads((f / "STATUS").read_text())["state"] for f in found} == {"pending"}
    assert any((f / "checkpoint" / "state.json").exists() for f in found)


def test_a_machine_without_slurm(tmp_path: Path) -> None:
    words = sweeping.command(tmp_path / "out", STEPS, "hydra/launcher=slurm")
    done = launching.grpolab(*words, cwd=tmp_path, PATH="/nowhere")
    assert done.returncode == 2
    said = launching.one_sentence(done.stderr)
    assert "hydra/launcher: slurm given, but this machine has no sbatch" in said
    assert list(tmp_path.iterdir()) == []
