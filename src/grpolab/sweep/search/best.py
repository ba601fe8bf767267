"""A trial's configuration as an experiment file that runs on its own.

The file holds the choices and settings by which the trial differs from the defaults, so that it
gives the trial's runs again whatever the command and its experiment were; before it is kept, that
is checked job id by job id.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError
from grpolab.config import UNHASHED, job_id
from grpolab.sweep.compose import Job, choices_of, compose_all
from grpolab.sweep.explain import conf_dir, default_choice
from grpolab.sweep.search.prepare import Search
from grpolab.tracking.folder import write_atomically

PACKAGE = "# @package _global_\n"
"""Hydra reads it from a file's first line."""
LEFT_OUT = (*(k for k in UNHASHED if k != "tracking"), "seed", "tracking")


def write_best(
    search: Search, values: Mapping[str, str], folder: Path, name: str, head: str
) -> Path:
    """Writes `experiment/<name>.yaml` under a folder for `--config-dir`.

    Args:
        search: the search.
        values: the trial's, as texts of overrides.
        folder: of YAML files.
        name: of the experiment.
        head: comment lines that say where it comes from.

    Raises:
        RuntimeError: the file would give other runs than the trial's.
    """
    jobs = search.compose(values)
    chosen = choices_of(search.config_dir, list(jobs[0].overrides))
    groups = {
        g: c
        for g, c in chosen.items()
        if g in jobs[0].raw and g not in LEFT_OUT and c != default_choice(g)
    }
    for group, choice in groups.items():
        _copy_choice(search.config_dir, folder, group, choice)
    bare = [f"{g}={c}" for g, c in groups.items()]
    path = folder / "experiment" / f"{name}.yaml"
    path.parent.mkdir(parents=True, exist_ok=True)
    (start,) = compose_all(str(folder), [bare])
    write_atomically(path, PACKAGE + head + _yaml(search, groups, _changes(start.raw, jobs[0].raw)))
    try:
        _check(search, folder, name, jobs)
    except BaseException:
        path.unlink()
        raise
    return path


def _yaml(search: Search, groups: Mapping[str, str], changes: Mapping[str, Any]) -> str:
    from omegaconf import OmegaConf

    content: dict[str, Any] = {
        "defaults": [{f"override /{g}": c} for g, c in groups.items()],
        "study": f"{search.run.study}_best",
        **changes,
        "seed": search.report_seeds[0],
        "tracking": {"tuned_on": list(search.settings.seeds)},
    }
    if len(search.report_seeds) > 1:
        seeds = ",".join(map(str, search.report_seeds))
        content["hydra"] = {"mode": "MULTIRUN", "sweeper": {"params": {"seed": seeds}}}
    return str(OmegaConf.to_yaml(OmegaConf.create(content)))


def _changes(start: Mapping[str, Any], wanted: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `wanted` that `start` has otherwise."""
    return {
        key: _difference(start.get(key), value)
        for key, value in wanted.items()
        if key not in LEFT_OUT and start.get(key) != value
    }


def _difference(start: Any, wanted: Any) -> Any:
    if not (isinstance(start, Mapping) and isinstance(wanted, Mapping)):
        return wanted
    return {
        k: _difference(start.get(k), v)
        for k, v in wanted.items()
        if k not in start or start[k] != v
    }


def _copy_choice(config_dir: str | None, folder: Path, group: str, choice: str) -> None:
    """A choice of the user's own --config-dir goes with the file."""
    if config_dir is None:
        return
    source = Path(config_dir) / group / f"{choice}.yaml"
    if source.is_file() and not (conf_dir() / group / f"{choice}.yaml").exists():
        target = folder / group / f"{choice}.yaml"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, target)


def _check(search: Search, folder: Path, name: str, jobs: list[Job]) -> None:
    overrides = [
        [f"experiment={name}", f"seed={seed}", "tracking.tuned_on=[]"]
        for seed in search.settings.seeds
    ]
    try:
        found = [job_id(job.raw) for job in compose_all(str(folder), overrides)]
    except ConfigError as error:
        raise RuntimeError(f"{folder}: experiment={name} cannot be composed: {error}") from error
    if found != [job_id(job.raw) for job in jobs]:
        raise RuntimeError(f"{folder}: experiment={name} would give other runs than its trial's")
