"""A search as its command asks for it: checked, and named, before anything is written."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError
from grpolab.config import UNHASHED, Run, bind_run, fingerprint
from grpolab.sweep.compose import Command, Job, Sweep, compose_all
from grpolab.sweep.search.settings import Optuna
from grpolab.sweep.search.space import Dimension, parse
from grpolab.sweep.search.study import require_optuna

NO_SEARCH = {"name": "none"}


@dataclass(frozen=True)
class Search:
    """Everything a search's driver works with."""

    settings: Optuna
    space: dict[str, Dimension]
    run: Run
    """The command's own configuration, which trials change at the space's keys."""
    fixed: tuple[str, ...]
    """The command's overrides, without those that trials set."""
    config_dir: str | None
    report_seeds: list[int]
    key: str
    """Names the search: the same command goes on with the same study."""
    first: int
    """Steps to the first decision of the pruner."""

    def compose(self, values: Mapping[str, str]) -> list[Job]:
        """The runs of a trial, one for each tuning seed."""
        own = [*self.fixed, *(f"{k}={v}" for k, v in values.items())]
        jobs = compose_all(self.config_dir, [[*own, f"seed={s}"] for s in self.settings.seeds])
        return [Job(job.overrides, job.raw | {"search": dict(NO_SEARCH)}) for job in jobs]

    def folder(self, sweep_id: str) -> Path:
        """The search's own folder."""
        return Path(self.run.output_dir) / self.run.study / "sweeps" / sweep_id


def prepare(command: Command, sweep: Sweep) -> Search:
    """The search of a command.

    Raises:
        ConfigError: a setting, a key of the space or one of its values cannot be used.
    """
    run = bind_run(sweep.jobs[0].raw)
    settings = run.search
    if not isinstance(settings, Optuna):
        raise ConfigError(f"search: {settings.name} given; allowed: none, optuna.")
    require_optuna()
    space = parse(settings.space or {})
    _check_seeds(settings, sweep.report_seeds)
    if run.retry is not None:
        raise ConfigError(
            f"retry: {run.retry} given with search=optuna, whose failed trials stay so; "
            "allowed: null."
        )
    if run.report is not None:
        raise ConfigError(
            f"report: {run.report} given with search=optuna, which reports its trials; "
            "allowed: null."
        )
    for override in command.overrides:
        key = override.lstrip("+~").partition("=")[0]
        if key in space:
            raise ConfigError(
                f"{key}: given on the command line and searched (search.space.{key}); allowed: one "
                f"of them ('search.space={{{key}: null}}' takes it out of the space)."
            )
    first = _first_decision(settings, run, space)
    fixed = tuple(o for o in sweep.jobs[0].overrides if not _is_search(o))
    search = Search(
        settings, space, run, fixed, command.config_dir, sweep.report_seeds,
        search_key(sweep.jobs[0].raw, settings), first,
    )  # fmt: skip
    _check_measured(settings, run)
    _try_values(search)
    return search


def search_key(raw: Mapping[str, Any], settings: Optuna) -> str:
    """12 hex digits of what a search's trials depend on; their number may grow."""
    kept = {k: v for k, v in raw.items() if k not in (*UNHASHED, "seed", "checkpoint")}
    asked = {k: v for k, v in asdict(settings).items() if k != "trials"}
    text = json.dumps([kept, asked], sort_keys=True, default=str)
    return hashlib.sha256((text + fingerprint()).encode()).hexdigest()[:12]


def _is_search(override: str) -> bool:
    key = override.lstrip("+~").partition("=")[0]
    return key in ("search", "seed") or key.startswith("search.")


def _check_seeds(settings: Optuna, report_seeds: list[int]) -> None:
    both = sorted(set(settings.seeds) & set(report_seeds))
    if both:
        raise ConfigError(
            f"search.seeds: {both[0]} given, which is also a seed that results are reported on "
            f"(seed={','.join(map(str, report_seeds))}); allowed: other seeds."
        )


def _first_decision(settings: Optuna, run: Run, space: Mapping[str, Any]) -> int:
    """Steps to the first decision of the pruner; 0 without one."""
    if settings.pruner == "none":
        return 0
    if "steps" in space:
        raise ConfigError(
            f"search.space.steps: cannot be searched with search.pruner={settings.pruner}, which "
            "compares trials step by step; allowed: search.pruner=none."
        )
    first = settings.min_steps or min(run.eval.every or run.steps, run.steps)
    most = run.steps * len(settings.seeds)
    if first >= most:
        raise ConfigError(
            f"search.pruner: {settings.pruner} given, but a trial's {most} steps (steps × seeds) "
            f"are over by the first decision, at step {first}; allowed: a smaller eval.every or "
            "search.min_steps, or search.pruner=none."
        )
    return first


def _check_measured(settings: Optuna, run: Run) -> None:
    """Metrics that this configuration is known not to log."""
    for number, goal in enumerate(settings.goals):
        key = f"search.objective[{number}]"
        if goal.metric.startswith("kl/ref_") and not run.reference.exists:
            raise ConfigError(
                f"{key}: {goal.metric} given with reference=none, which no KL is measured to; "
                "allowed: reference=frozen, or another metric."
            )
        if goal.metric.startswith("eval/pass@"):
            k = goal.metric.removeprefix("eval/pass@")
            if not k.isdigit() or int(k) > run.eval.samples:
                raise ConfigError(
                    f"{key}: {goal.metric} given with eval.samples={run.eval.samples}; allowed: "
                    "at most that many."
                )


def _try_values(search: Search) -> None:
    """Every choice and both ends of every range, one key at a time, as a run of its own."""
    start = {key: dim.ends()[0] for key, dim in search.space.items()}
    for key, dim in search.space.items():
        for text in dim.ends():
            try:
                job = search.compose(start | {key: text})[0]
                bind_run(job.raw)
            except ConfigError as error:
                raise ConfigError(f"search.space ({key}={text}): {error}") from error
