"""A run that is killed or interrupted ends exactly as one that was left alone."""

from __future__ import annotations

import random
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from tests.sharing import once

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

STEPS = 6
STEP_SECONDS = 0.15  # of the small run; only spreads the kills over a step
ADAPTIVE = (
    "clip=ppo", "updates_per_batch=4", "kl=k3", "kl.schedule=adaptive", "kl.target=0.001",
    "kl.horizon=50", "optimizer.schedule=cosine", "optimizer.warmup_steps=2", "selection=replay",
)  # fmt: skip
"""Everything that has state: Adam, the adaptive β, the learning rate, several updates a batch, the
buffer of past groups."""


@dataclass(frozen=True)
class Case:
    overrides: tuple[str, ...]
    tracking: tuple[str, ...]
    seed: int


CASES = {
    "adaptive-jsonl-every-step": Case(
        (*ADAPTIVE, "checkpoint.every=1", "eval.every=2"), ("tracking=jsonl",), seed=11
    ),
    "plain-mlflow-every-other-step": Case(
        ("checkpoint.every=2", "eval.every=3"), ("tracking.flush_seconds=0.05",), seed=12
    ),
}


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The folder of each case's run that nothing disturbed; where it logs changes nothing."""

    def make(here: Path) -> dict[str, Path]:
        folders = {}
        for name, case in CASES.items():
            out = here / name
            launching.train(
                *case.overrides, f"steps={STEPS}", "tracking=jsonl", f"output_dir={out}", cwd=here
            )
            folders[name] = launching.only_run(out / "default")
        return folders

    return once(tmp_path_factory, "resume-undisturbed", make)


@pytest.fixture(scope="session", params=list(CASES))
def killed(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[str, Path]:
    """(case, run folder) of a run killed three times at random points, then left to end."""
    case = str(request.param)
    return case, once(tmp_path_factory, f"killed-{case}", lambda out: killed_thrice(case, out))


def killed_thrice(name: str, out: Path) -> Path:
    case = CASES[name]
    command = ["train", *launching.SMALL, *case.overrides, *case.tracking]
    command += [f"steps={STEPS}", f"output_dir={out}"]
    rng = random.Random(case.seed)
    for after in sorted(rng.choices(range(1, STEPS), k=3)):  # lines; the last would be STEPS + 1
        process = launching.start(*command, cwd=out)
        launching.wait_for_lines(process, out / "default", after)
        time.sleep(rng.random() * STEP_SECONDS)
        process.kill()
        process.communicate()
        assert process.returncode == -signal.SIGKILL
        assert launching.status(launching.only_run(out / "default"))["state"] == "running"
    done = launching.grpolab(*command, cwd=out)
    assert done.returncode == 0, done.stderr
    return launching.only_run(out / "default")


def assert_same_run(folder: Path, expected: Path) -> None:
    assert launching.status(folder)["state"] == "done"
    assert launching.metrics(folder) == launching.metrics(expected)
    assert launching.weights(folder) == launching.weights(expected)
    samples = "samples.jsonl"
    assert (folder / samples).read_bytes() == (expected / samples).read_bytes()


def test_three_kills_change_nothing(killed: tuple[str, Path], undisturbed: dict[str, Path]) -> None:
    case, folder = killed
    assert_same_run(folder, undisturbed[case])
    assert folder.name == undisturbed[case].name  # the same job, wherever it lies
    assert not list(folder.glob("checkpoint*"))
    assert not list(folder.glob("*.tmp"))


def test_the_adaptive_beta_moved(undisturbed: dict[str, Path]) -> None:
    found = launching.metrics(undisturbed["adaptive-jsonl-every-step"])
    betas = [m["kl/beta"] for _, m in found if "kl/beta" in m]
    assert len(set(betas)) == STEPS  # else the kills would not have tested its state


def test_past_groups_were_replayed(undisturbed: dict[str, Path]) -> None:
    found = launching.metrics(undisturbed["adaptive-jsonl-every-step"])
    assert sum(m.get("replay/used_share", 0) > 0 for _, m in found) >= 2


@pytest.mark.parametrize(
    "killed", ["plain-mlflow-every-other-step"], indirect=True, scope="session"
)
def test_mlflow_has_every_step_once(killed: tuple[str, Path]) -> None:
    _, folder = killed
    from mlflow import MlflowClient

    store = folder.parents[1] / "mlflow.db"
    client = MlflowClient(tracking_uri=f"sqlite:///{store}")
    experiment = client.get_experiment_by_name("default")
    (run,) = client.search_runs([experiment.experiment_id])
    assert run.info.status == "FINISHED"
    for name, expected in series(folder).items():
        history = client.get_metric_history(run.info.run_id, name.replace("@", "_at_"))
        assert sorted((m.step, str(m.value)) for m in history) == expected, name


def series(folder: Path) -> dict[str, list[tuple[int, str]]]:
    """{metric: [(step, value as text)]} of metrics.jsonl, without what a clock measured. As text:
    a mean over no completions is NaN, which equals nothing."""
    found: dict[str, list[tuple[int, str]]] = {}
    for step, metrics in launching.metrics(folder):
        for name, value in metrics.items():
            found.setdefault(name, []).append((step, str(float(value))))
    return found


@pytest.fixture(scope="session")
def interrupted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A run that got Ctrl-C after two steps, and what it left behind."""
    return once(tmp_path_factory, "interrupted", made_to_stop)


def made_to_stop(out: Path) -> dict[str, Any]:
    case = CASES["plain-mlflow-every-other-step"]
    command = ["train", *launching.SMALL, *case.overrides, "tracking=jsonl", "checkpoint.every=0"]
    command += [f"steps={STEPS}", f"output_dir={out}"]
    process = launching.start(*command, cwd=out)
    launching.wait_for_lines(process, out / "default", 3)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=launching.LIMIT)
    folder = launching.only_run(out / "default")
    return {
        "command": command, "out": out, "folder": folder, "code": process.returncode,
        "stderr": stderr, "status": launching.status(folder), "lines": launching.lines(folder),
        "checkpoint": (folder / "checkpoint" / "state.json").exists(),
    }  # fmt: skip


def test_ctrl_c_leaves_a_pending_run_with_a_checkpoint(interrupted: dict[str, Any]) -> None:
    assert interrupted["code"] == 130
    assert interrupted["status"]["state"] == "pending"
    assert "interrupted" in interrupted["status"]["reason"]
    assert interrupted["status"]["lease"] is None
    assert interrupted["checkpoint"]
    assert interrupted["stderr"].splitlines()[-1].startswith("grpolab: interrupted")
    assert "Traceback" not in interrupted["stderr"]


def test_the_same_command_resumes_and_then_has_nothing_to_do(
    interrupted: dict[str, Any], undisturbed: dict[str, Path]
) -> None:
    out, folder = interrupted["out"], interrupted["folder"]
    resumed = launching.grpolab(*interrupted["command"], cwd=out)
    assert resumed.returncode == 0, resumed.stderr
    # checkpoint.every is no part of a job: it changes no number.
    assert_same_run(folder, undisturbed["plain-mlflow-every-other-step"])

    before = launching.snapshot(out)
    again = launching.called(*interrupted["command"], cwd=out)
    assert again.returncode == 0, again.stderr
    assert "Done before" in again.stdout
    assert str(folder) in again.stdout
    assert launching.snapshot(out) == before
