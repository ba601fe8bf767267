"""`grpolab plan` and designs, beside real sweeps."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

SWEEP = (
    "-m", "design=one_factor", "clip=ppo,none", "kl=none,k3", "seed=0,1", "debug=smoke",
    "hardware.threads=1", "hardware.device=cpu", "sampler.group_size=4", "sampler.max_new_tokens=8",
    "updates_per_batch=2", "tracking=jsonl",
)  # fmt: skip
JOBS = {(arm, seed) for arm in ("baseline", "clip=none", "kl=k3") for seed in (0, 1)}


def planned(cwd: Path, *more: str) -> tuple[dict[str, Any], str]:
    """What `grpolab plan` writes, and prints."""
    done = launching.called("plan", *SWEEP, *more, "out=plan.json", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((cwd / "plan.json").read_text())
    (cwd / "plan.json").unlink()
    return found, done.stdout


def test_what_is_planned_is_what_runs(tmp_path: Path) -> None:
    before, printed = planned(tmp_path)
    assert not os.listdir(tmp_path)  # nothing but the plan was written
    assert {(j["arm"], j["seed"]) for j in before["jobs"]} == JOBS
    assert {j["state"] for j in before["jobs"]} == {"pending"}
    assert "clip: ppo → none" in printed
    assert "2 paired seeds can never reach p < 0.05" in " ".join(printed.split())

    done = launching.grpolab("train", *SWEEP, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "6 of 6 runs done" in done.stdout
    study = tmp_path / "outputs" / "default"
    (manifest,) = [json.loads(p.read_text()) for p in study.glob("sweeps/*.json")]
    assert {(j["arm"], j["seed"]): j["job_id"] for j in manifest["jobs"]} == {
        (j["arm"], j["seed"]): j["job_id"] for j in before["jobs"]
    }
    assert {f.name for f in launching.run_folders(study)} == {j["job_id"] for j in before["jobs"]}

    after, printed = planned(tmp_path)
    assert set(after["done"]) == {j["job_id"] for j in before["jobs"]}
    assert after["cost"]["jobs"] == 0
    assert "Nothing is left to do." in printed
    more, _ = planned(tmp_path, "design=product")  # the fourth arm, and nothing else
    assert (more["cost"]["jobs"], more["cost"]["past_runs"]) == (2, 6)
    assert {j["arm"] for j in more["jobs"] if j["state"] == "pending"} == {"clip=none,kl=k3"}


def test_a_launcher_of_hydra_s_gets_the_design_s_jobs(tmp_path: Path) -> None:
    pytest.importorskip("joblib")
    launcher = ("hydra/launcher=joblib", "hydra.launcher.n_jobs=1", "seed=0", "steps=1")
    done = launching.grpolab("train", *SWEEP, *launcher, cwd=tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "3 of 3 runs done" in done.stdout
    assert len(launching.run_folders(tmp_path / "outputs" / "default")) == 3


def test_a_refused_job_in_a_real_process(tmp_path: Path) -> None:
    done = launching.grpolab("plan", "sampler.group_size=4,1", "seed=0", cwd=tmp_path)
    assert done.returncode == 2
    sentence = launching.one_sentence(done.stderr)
    assert "sampler.group_size: 1 given" in sentence
    assert "(job sampler.group_size=1)" in sentence
    assert done.stdout == ""
    assert not os.listdir(tmp_path)


def test_help(tmp_path: Path) -> None:
    done = launching.grpolab("plan", "--help", cwd=tmp_path)
    assert done.returncode == 0
    assert all(key in done.stdout for key in ("out ", "plan.effect", "plan.correlation", "design="))
