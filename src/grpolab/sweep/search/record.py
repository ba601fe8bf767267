"""What a search leaves behind for people and programs: its manifest, and search.json."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpolab.sweep.manifest import Member, read_manifest
from grpolab.sweep.search.drive import Attempt
from grpolab.sweep.search.prepare import Search
from grpolab.sweep.search.study import Study
from grpolab.tracking.folder import write_atomically


def find_search(output_dir: str, study: str, key: str) -> dict[str, Any] | None:
    """The newest manifest of this search: its command, given again, goes on with it."""
    paths = sorted((Path(output_dir) / study / "sweeps").glob("*.json"), reverse=True)
    found = map(read_manifest, paths)
    return next((m for m in found if (m.get("search") or {}).get("key") == key), None)


def describe(search: Search, study: Study | None) -> dict[str, Any]:
    """The manifest's `search`: {key, name, trials, left, states, seeds, objective, best}."""
    trials = study.trials() if study else []
    states = Counter(t.state.name.lower() for t in trials)
    return {
        "key": search.key,
        "name": search.settings.name,
        "trials": search.settings.trials,
        "left": study.left() if study else search.settings.trials,
        "states": dict(states),
        "tuning_seeds": search.settings.seeds,
        "report_seeds": search.report_seeds,
        "objective": [vars(g) for g in search.settings.goals],
        "best": [{"trial": t.number, "values": t.values} for t in (study.best() if study else [])],
    }


def arm(values: Mapping[str, str]) -> str:
    """A trial's settings as sorted overrides."""
    return ",".join(f"{k}={values[k]}" for k in sorted(values))


class Recorder:
    """Keeps the manifest up to date with the trials."""

    def __init__(self, path: Path, search: Search, study: Study) -> None:
        self.path, self.search, self.study = path, search, study
        self.members: list[dict[str, Any]] = read_manifest(path)["jobs"]
        """The runs so far, for whoever shows them."""

    def __call__(self, attempt: Attempt) -> None:
        """A trial has begun or ended."""
        content = read_manifest(self.path)
        known = {job["job_id"] for job in content["jobs"]}
        for job, key in zip(attempt.jobs, attempt.keys, strict=True):
            if key not in known:
                member = Member(
                    key, list(job.overrides), arm(attempt.values), int(job.raw["seed"]), False,
                    dict(attempt.values), int(job.raw["steps"]),
                )  # fmt: skip
                content["jobs"].append(vars(member) | {"trial": attempt.number})
                self.members.append(content["jobs"][-1])
        trial = self.study.trials()[attempt.number]
        if not trial.state.is_finished() and "jobs" not in trial.user_attrs:
            self.study.note(attempt.number, "overrides", attempt.values)
            self.study.note(attempt.number, "jobs", attempt.keys)
        content["search"] = describe(self.search, self.study)
        write_atomically(self.path, json.dumps(content, indent=2) + "\n")


def results(
    search: Search, study: Study, sweep_id: str, files: Mapping[int, str]
) -> dict[str, Any]:
    """What search.json says: `describe`'s keys, sweep, study, and all trials."""
    return {
        "sweep": sweep_id,
        "study": search.run.study,
        **describe(search, study),
        "all": [
            {
                "trial": t.number,
                "state": t.state.name.lower(),
                "values": t.values,
                "overrides": t.user_attrs.get("overrides"),
                "jobs": t.user_attrs.get("jobs", []),
                "steps": t.last_step,
                "reason": t.user_attrs.get("reason"),
                "file": files.get(t.number),
            }
            for t in study.trials()
        ],
    }
