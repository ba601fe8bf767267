"""Sweeps: what they log, that launchers agree, that nothing runs twice, that one arm may fail."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from subprocess import CompletedProcess
from typing import TYPE_CHECKING, Any

import pytest

from tests.sharing import lock, once

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

GRID = ("clip=ppo,none", "seed=0,1", "steps=3", "updates_per_batch=2", "study=clipping")
ARMS = {("baseline", 0), ("baseline", 1), ("clip=none", 0), ("clip=none", 1)}


@dataclass(frozen=True)
class Swept:
    out: Path
    study: Path
    done: CompletedProcess[str]

    def manifests(self) -> list[dict[str, Any]]:
        """All sweeps of the study, oldest first."""
        return [json.loads(p.read_text()) for p in sorted(self.study.glob("sweeps/*.json"))]


def sweep(out: Path, *overrides: str, here: bool = False) -> Swept:
    """The command as a process of its own, or called here."""
    run = launching.called if here else launching.grpolab
    done = run("train", "-m", *launching.SMALL, *overrides, f"output_dir={out}", cwd=out)
    return Swept(out, out / "clipping", done)


@pytest.fixture
def basic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Swept]:
    """The grid in one process, logged to MLflow. No other test uses it, or sweeps it again, at
    the same time."""

    def make(out: Path) -> Swept:
        found = sweep(out, *GRID)
        assert found.done.returncode == 0, found.done.stdout + found.done.stderr
        return found

    found = once(tmp_path_factory, "basic", make)
    with lock(tmp_path_factory, "basic"):
        yield found


@pytest.fixture(scope="session")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """The same grid by two processes."""
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=2", "tracking=jsonl")

    def make(out: Path) -> Swept:
        found = sweep(out, *GRID, *launcher)
        assert found.done.returncode == 0, found.done.stdout + found.done.stderr
        return found

    return once(tmp_path_factory, "parallel", make)


@pytest.fixture
def logged(basic: Swept) -> tuple[Any, list[Any]]:
    """(the parent run, its children) as MLflow has them."""
    from mlflow import MlflowClient

    client = MlflowClient(tracking_uri=f"sqlite:///{basic.out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "clipping"]
    runs = client.search_runs([experiment.experiment_id])
    parents = [r for r in runs if "mlflow.parentRunId" not in r.data.tags]
    assert len(parents) == 1
    return parents[0], [r for r in runs if "mlflow.parentRunId" in r.data.tags]


def test_one_parent_and_a_child_per_job(logged: tuple[Any, list[Any]], basic: Swept) -> None:
    parent, children = logged
    (manifest,) = basic.manifests()
    assert manifest["parent_run_id"] == parent.info.run_id
    assert len(children) == 4
    assert {c.data.tags["mlflow.parentRunId"] for c in children} == {parent.info.run_id}
    assert {r.info.status for r in (parent, *children)} == {"FINISHED"}


def test_tags_and_factors_of_the_children(logged: tuple[Any, list[Any]], basic: Swept) -> None:
    _, children = logged
    (manifest,) = basic.manifests()
    folders = {f.name for f in launching.run_folders(basic.study)}
    tags = [{k: v for k, v in c.data.tags.items() if k.startswith("grpolab.")} for c in children]
    assert {(t["grpolab.arm"], int(t["grpolab.seed"])) for t in tags} == ARMS
    assert {t["grpolab.job_id"] for t in tags} == folders
    for child, own in zip(children, tags, strict=True):
        assert own["grpolab.study"] == "clipping"
        assert own["grpolab.sweep"] == manifest["sweep"]
        is_baseline = own["grpolab.arm"] == "baseline"
        assert own["grpolab.baseline"] == ("true" if is_baseline else "false")
        assert child.data.params["clip"] == ("ppo" if is_baseline else "none")
        assert child.data.params["seed"] == own["grpolab.seed"]
        assert child.data.params["optimizer.lr"] == "0.0002"


def test_the_store_has_what_the_folders_have(logged: tuple[Any, list[Any]], basic: Swept) -> None:
    _, children = logged
    for child in children:
        folder = basic.study / child.data.tags["grpolab.job_id"]
        last: dict[str, str] = {}
        for _, metrics in launching.metrics(folder):
            last |= {name.replace("@", "_at_"): str(float(v)) for name, v in metrics.items()}
        # as text: a mean over no completions is NaN, which equals nothing
        assert {name: str(child.data.metrics[name]) for name in last} == last
        assert "eval/pass_at_2" in last


def test_the_parent_lists_the_jobs(logged: tuple[Any, list[Any]], basic: Swept) -> None:
    from grpolab.tracking.listing import listing_of

    (manifest,) = basic.manifests()
    listing = listing_of(logged[0].data.tags)
    assert listing is not None
    assert listing.created == manifest["created"]
    assert [job.job_id for job in listing.jobs] == [job["job_id"] for job in manifest["jobs"]]
    assert {(job.arm, job.seed) for job in listing.jobs} == ARMS
    assert not any(job.reused for job in listing.jobs)


def test_the_parent_has_the_analysis(logged: tuple[Any, list[Any]], basic: Swept) -> None:
    run_id = logged[0].info.run_id
    place = basic.out / "mlartifacts" / "clipping" / run_id / "artifacts" / "analysis"
    names = {path.relative_to(place).as_posix() for path in place.rglob("*") if path.is_file()}
    assert names >= {"report.html", "verdicts.csv", "runs.csv", "figures/forest.png"}
    (ours,) = basic.out.glob("analysis/*/report.html")
    assert (place / "report.html").read_bytes() == ours.read_bytes()


def test_manifest(basic: Swept) -> None:
    (manifest,) = basic.manifests()
    assert manifest["study"] == "clipping"
    assert manifest["factors"] == ["clip", "seed"]
    assert manifest["baseline_arm"] == "baseline"
    assert {(j["arm"], j["seed"]) for j in manifest["jobs"]} == ARMS
    assert {j["job_id"] for j in manifest["jobs"]} == {
        f.name for f in launching.run_folders(basic.study)
    }
    assert "clip=ppo,none" in manifest["command"]


def test_figures_are_drawn(basic: Swept) -> None:
    (figure,) = basic.out.glob("analysis/**/learning_curves.png")
    assert figure.stat().st_size > 10_000
    assert str(figure) in basic.done.stdout
    assert "4 of 4 runs done" in basic.done.stdout


def test_everything_lies_under_the_output_folder(basic: Swept) -> None:
    # The commands ran in that folder: what they had left beside it would lie in it.
    names = {p.name for p in basic.out.iterdir()}
    assert names <= {"clipping", "analysis", "mlflow.db", "mlartifacts", ".mlflow.lock", ".hydra"}


def test_two_processes_give_the_same_numbers(basic: Swept, parallel: Swept) -> None:
    ours, theirs = launching.run_folders(basic.study), launching.run_folders(parallel.study)
    assert [f.name for f in ours] == [f.name for f in theirs]
    for one, other in zip(ours, theirs, strict=True):
        assert launching.metrics(one) == launching.metrics(other)
        assert launching.weights(one) == launching.weights(other)


def test_arms_of_a_seed_start_alike_and_part(basic: Swept) -> None:
    jobs = {(j["arm"], j["seed"]): j["job_id"] for j in basic.manifests()[0]["jobs"]}
    found = {key: launching.metrics(basic.study / name) for key, name in jobs.items()}
    assert found["baseline", 0][0] == found["clip=none", 0][0]
    assert found["baseline", 0][0] != found["baseline", 1][0]
    first = [found[arm, 0][1][1] for arm in ("baseline", "clip=none")]
    for name in ("reward/mean", "length/mean", "tokens/generated"):
        assert first[0][name] == first[1][name]


def test_the_same_sweep_again_runs_nothing(parallel: Swept) -> None:
    before = {f: launching.snapshot(f) for f in launching.run_folders(parallel.study)}
    again = sweep(parallel.out, *GRID, "tracking=jsonl", here=True)  # with the other launcher, too
    assert again.done.returncode == 0, again.done.stderr
    assert "4 of 4 runs done" in again.done.stdout
    assert {f: launching.snapshot(f) for f in before} == before
    assert len(again.manifests()) == 1


def test_the_same_sweep_again_stays_one_sweep_in_mlflow(basic: Swept) -> None:
    from mlflow import MlflowClient

    (before,) = basic.manifests()
    again = sweep(basic.out, *GRID, here=True)
    assert again.done.returncode == 0, again.done.stderr
    (after,) = again.manifests()
    assert (after["sweep"], after["parent_run_id"]) == (before["sweep"], before["parent_run_id"])
    client = MlflowClient(tracking_uri=f"sqlite:///{basic.out / 'mlflow.db'}")
    (experiment,) = [e for e in client.search_experiments() if e.name == "clipping"]
    runs = client.search_runs([experiment.experiment_id])
    assert len(runs) == 5
    assert {r.info.status for r in runs} == {"FINISHED"}


REWARDS = """
def fine(completion, example):
    return float(len(completion) % 3)


def broken(completion, example):
    raise RuntimeError("no judge at home")
"""

STUDY = """
# @package _global_
defaults:
  - override /reward: python
  - override /tracking: jsonl
study: judges
steps: 2
max_unscorable: 0.0
hydra:
  mode: MULTIRUN
  sweeper:
    params:
      reward.function: my_rewards:fine,my_rewards:broken
      seed: 0,1
"""


@pytest.fixture(scope="session")
def judged(tmp_path_factory: pytest.TempPathFactory) -> Swept:
    """An experiment file of one's own that carries its sweep; one of its arms cannot work."""

    def make(folder: Path) -> Swept:
        out, files = folder / "out", {"my_rewards.py": REWARDS, "experiment/judges.yaml": STUDY}
        out.mkdir()
        mine = launching.write_tree(folder / "mine", files)
        done = launching.grpolab(
            "train", *launching.SMALL, "experiment=judges", f"output_dir={out}", "--config-dir",
            str(mine), cwd=out, PYTHONPATH=str(mine),
        )  # fmt: skip
        return Swept(out, out / "judges", done)

    return once(tmp_path_factory, "judged", make)


def test_an_experiment_file_carries_its_sweep(judged: Swept) -> None:
    (manifest,) = judged.manifests()
    assert manifest["factors"] == ["reward.function", "seed"]
    arms = {(j["arm"], j["seed"]) for j in manifest["jobs"]}
    broken = "reward.function=my_rewards:broken"
    assert arms == {("baseline", 0), ("baseline", 1), (broken, 0), (broken, 1)}


def test_an_arm_that_fails_is_recorded_and_the_others_finish(judged: Swept) -> None:
    (manifest,) = judged.manifests()
    for job in manifest["jobs"]:
        status = launching.status(judged.study / job["job_id"])
        if job["baseline"]:
            assert status["state"] == "done", status
        else:
            assert status["state"] == "failed"
            assert "max_unscorable" in status["reason"]
    assert judged.done.returncode == 1
    assert "2 of 4 runs done" in judged.done.stdout
    assert "max_unscorable" in judged.done.stdout
    assert "Traceback" not in judged.done.stderr
