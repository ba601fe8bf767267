"""`grpolab train`: check everything first, then run one job or hand a sweep to Hydra."""

from __future__ import annotations

import importlib
import logging
import shlex
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from grpolab.cli.streams import impatient
from grpolab.component import ConfigError
from grpolab.config import Run, bind_run
from grpolab.sweep.compose import Command, Sweep, expand, parse_command
from grpolab.sweep.explain import conf_dir
from grpolab.sweep.launchers.base import EarlyPool, Launcher, Pool
from grpolab.sweep.manifest import (
    Member,
    find_manifest,
    manifest_path,
    members,
    new_manifest,
    new_sweep_id,
    reused,
    run_folder,
    write_manifest,
)
from grpolab.sweep.notes import notes
from grpolab.tracking.folder import RunFolder
from grpolab.training.launched import leads, world_size


def train(arguments: Sequence[str]) -> int:
    """Runs one configuration, or a sweep of them."""
    from grpolab.sweep.early import checked_with_torch
    from grpolab.sweep.preflight import check_without_torch

    logging.getLogger("httpx").setLevel(logging.WARNING)
    command = parse_command(arguments)
    if command.rest:
        _hand_to_hydra(command)
        return 0
    impatient()
    sweep = expand(command)
    if sweep.searched:
        from grpolab.cli.search import run_search

        return run_search(command, sweep)
    if sweep.multirun and world_size() > 1:
        raise ConfigError(
            f"torchrun: {world_size()} ranks given with a sweep of {len(sweep.jobs)} jobs; "
            "allowed: one run (a sweep's jobs run beside each other through hydra/launcher=local)."
        )
    runs = [bind_run(job.raw) for job in sweep.jobs]
    arms = members(sweep, runs[0].tracking.baseline) if sweep.multirun else []
    launcher = own_launcher(sweep.launcher) if sweep.multirun else None
    for run in runs:
        check_without_torch(run)
        if run.report is not None:
            closing_report(run.report)
    if launcher is not None:
        launcher.check([job.raw for job in sweep.jobs])
    left = _left(runs[0], arms)
    early = checked_with_torch(runs, [job.raw for job in sweep.jobs], left, launcher)
    try:
        for note in notes(runs, sweep.factors) if leads() else ():
            print(f"Note: {note}", file=sys.stderr)
        if sweep.multirun:
            return _run_sweep(command, sweep, runs[0], arms, launcher, early)
        return run_one(sweep.jobs[0].raw, runs[0])
    except BaseException:
        if early is not None:  # whose processes nobody else may own yet
            early.close(kill=True)
        raise


def _folders(run: Run, arms: Sequence[Member]) -> list[RunFolder]:
    return [RunFolder(Path(run.output_dir) / run.study / m.job_id) for m in arms]


def _left(run: Run, arms: Sequence[Member]) -> int:
    """How many of a sweep's runs are not done."""
    return sum(f.status()["state"] != "done" for f in _folders(run, arms))


def run_one(raw: dict[str, Any], run: Run) -> int:
    from grpolab.sweep.job import run_job

    folder = run_folder(raw)
    if folder.status()["state"] == "done":
        if leads():
            print(f"Done before: {folder.path} (the same configuration and code; nothing to do).")
        return 0
    state = run_job(raw)
    if not leads():
        return 0 if state == "done" else 1
    return _report([folder], run, state_of_one=state)


def _run_sweep(
    command: Command,
    sweep: Sweep,
    run: Run,
    arms: list[Member],
    launcher: Any,
    early: EarlyPool | None,
) -> int:
    folders = _folders(run, arms)

    def work_in(sweep_id: str) -> Work | None:
        return _prepared(launcher, early, sweep, run, arms, sweep_id) if launcher else None

    sweep_id, parent, work = _enter(command, sweep, run, arms, work_in)
    names = {m.arm for m in arms}
    print(f"Sweep {sweep_id}: {len(arms)} runs, {len(names)} arms, study {run.study}.", flush=True)
    finished = "KILLED"
    try:
        if work is not None:
            _drive(work, run, arms, shown=run.tracking.progress and not launcher.in_process)
        else:
            _hand_to_hydra(command, sweep, sweep_id)
        failed = any(f.status()["state"] != "done" for f in folders)
        finished = "FAILED" if failed else "FINISHED"
    finally:
        if parent:
            _end_parent(*parent, finished)
    return _report(folders, run, sweep_id=sweep_id, parent=parent)


@dataclass(frozen=True)
class Work:
    """A sweep's resolved configurations by job id, and where they run."""

    jobs: dict[str, dict[str, Any]]
    pool: Pool


def _prepared(
    launcher: Launcher,
    early: EarlyPool | None,
    sweep: Sweep,
    run: Run,
    arms: list[Member],
    sweep_id: str,
) -> Work:
    """The jobs and their places, which start while MLflow is met, if they have not begun before."""
    from grpolab.sweep.drive import scratch_folder

    raws = [
        {**job.raw, "tracking": {**job.raw["tracking"], "sweep": sweep_id}} for job in sweep.jobs
    ]
    scratch = scratch_folder(run.output_dir, run.study, sweep_id)
    pool: Pool
    if early is not None:
        early.move_in(scratch)
        pool = early
    else:
        pool = launcher.pool(raws, scratch)
        pool.prepare(_left(run, arms))
    return Work(dict(zip((m.job_id for m in arms), raws, strict=True)), pool)


def _end_parent(client: Any, run_id: str, status: str) -> None:
    try:
        client.set_terminated(run_id, status=status)
    except Exception as error:  # the store is away: the folders know how the sweep ended
        print(f"MLflow does not know that the sweep has ended ({type(error).__name__}); "
              "grpolab sync tells it.", file=sys.stderr)  # fmt: skip


def _drive(work: Work, run: Run, arms: list[Member], *, shown: bool) -> None:
    """Runs the jobs through a launcher of ours."""
    from grpolab.sweep.drive import Driver
    from grpolab.sweep.watch import SweepProgress

    study = Path(run.output_dir) / run.study
    with SweepProgress(study, [vars(m) for m in arms], enabled=shown) as progress:

        def show(running: list[str]) -> None:
            progress.show(running)
            if not driver.waiting and len(running) < work.pool.size:
                _load_figures()  # with a processor that has nothing left to do

        driver = Driver(
            work.jobs,
            work.pool,
            retry_failed=run.retry == "failed",
            stop_on_error=run.on_error == "stop",
            show=show,
        )
        driver.run()


@cache
def _load_figures() -> None:
    """Imports what draws the closing figures, in a thread of its own; once."""
    threading.Thread(
        target=importlib.import_module, args=("grpolab.results.analyze",), daemon=True
    ).start()


def own_launcher(settings: dict[str, Any]) -> Launcher | None:
    """The launcher of ours that hydra/launcher chooses; None where it is one of Hydra's plugins."""
    from grpolab.component import make

    module, _, name = str(settings.get("_target_", "")).rpartition(".")
    if module.startswith(("hydra_plugins.", "hydra._internal.")):
        return None
    found = getattr(importlib.import_module(module), name)
    if not issubclass(found, Launcher):
        raise ConfigError(
            f"hydra.launcher._target_: {module}.{name} given; allowed: a class of "
            "grpolab.sweep.launchers.base.Launcher, or a Hydra plugin."
        )
    given = {k: v for k, v in settings.items() if k != "_target_"}
    made: Launcher = make(found, given, "hydra.launcher")
    return made


def _enter(
    command: Command,
    sweep: Sweep,
    run: Run,
    arms: list[Member],
    work_in: Callable[[str], Work | None],
) -> tuple[str, tuple[Any, str] | None, Work | None]:
    """The sweep's id, its MLflow run, and its work where the launcher is ours. The same sweep asked
    for again stays one sweep, also when two drivers ask at once."""
    from filelock import FileLock

    folder = Path(run.output_dir) / run.study / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        known = find_manifest(run.output_dir, run.study, arms)
        sweep_id = str(known["sweep"]) if known else new_sweep_id()
        work = work_in(sweep_id)
        manifest = new_manifest(
            sweep_id=sweep_id,
            study=run.study,
            command=["grpolab", "train", *command.words],
            factors=sweep.factors,
            jobs=arms,
        )
        try:
            parent = _open_parent(run, sweep, command, manifest, known)
            run_id = parent[1] if parent else (known or {}).get("parent_run_id")
            path = manifest_path(run.output_dir, run.study, sweep_id)
            write_manifest(path, manifest | {"parent_run_id": run_id})
        except BaseException:
            if work:
                work.pool.close(kill=True)
            raise
    return sweep_id, parent, work


def _open_parent(
    run: Run,
    sweep: Sweep,
    command: Command,
    manifest: dict[str, Any],
    known: dict[str, Any] | None,
) -> tuple[Any, str] | None:
    """The MLflow run that the sweep's jobs are children of, and which lists them; the same one when
    the same sweep is asked for again."""
    if not run.tracking.mlflow:
        return None
    from grpolab.sweep.preflight import tracking_uri
    from grpolab.tracking.listing import listing_tags
    from grpolab.tracking.mlflow import open_parent, patiently

    params = {"overrides": " ".join(command.overrides), "factors": ",".join(sweep.factors)}
    before = known["parent_run_id"] if known else None
    place = (tracking_uri(run), run.output_dir, run.study, manifest["sweep"], before)
    tags = listing_tags(manifest, reused(run.output_dir, manifest))
    return patiently(partial(open_parent, *place, tags=tags, params=params))


def _hand_to_hydra(
    command: Command, sweep: Sweep | None = None, sweep_id: str | None = None
) -> None:
    """Hydra's own main: its launchers (with the jobs of `sweep`), help and completion."""
    import hydra

    from grpolab.sweep.compose import register_outside_components
    from grpolab.sweep.launch import hydra_job, jobs_of_hydra

    register_outside_components()
    words = list(command.overrides)
    listed: AbstractContextManager[None] = nullcontext()
    if sweep is not None:
        listed = jobs_of_hydra(
            [[*job.overrides, f"tracking.sweep={sweep_id}"] for job in sweep.jobs]
        )
    words += command.rest  # flags stand behind all overrides: Hydra's parser takes one group
    if command.multirun:
        words.append("--multirun")
    if command.config_dir is not None:
        words += ["--config-dir", command.config_dir]
    before, sys.argv = sys.argv, ["grpolab", *words]
    try:
        main = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")
        with listed:
            main(hydra_job)()
    finally:
        sys.argv = before


def _report(
    folders: Sequence[RunFolder],
    run: Run,
    *,
    sweep_id: str | None = None,
    parent: tuple[Any, str] | None = None,
    state_of_one: str | None = None,
) -> int:
    """The closing summary; 1 if a run did not finish."""
    from grpolab.sweep.preflight import tracking_uri

    statuses = [f.status() for f in folders]
    done = sum(s["state"] == "done" for s in statuses)
    print(f"\n{done} of {len(folders)} runs done.")
    if run.tracking.tuned_on:
        seeds = ", ".join(map(str, run.tracking.tuned_on))
        print(f"  tuned on seeds {seeds}, which are none of these runs'")
    for folder, status in zip(folders, statuses, strict=True):
        if status["state"] != "done":
            print(f"  {status['state']}: {folder.path}: {status['reason'] or state_of_one}")
    if sweep_id is not None and done:
        _draw(run, sweep_id, parent)
    elif done:
        final = folders[0].metrics()[-1][1]
        print(f"  held-out accuracy {final.get('eval/accuracy', float('nan')):.2f}, "
              f"model in {folders[0].path / 'model'}")  # fmt: skip
        if run.report is not None:
            print(closing_report(run.report)(run, folders[0]))
    if run.tracking.mlflow:
        print(f"  mlflow ui --backend-store-uri {tracking_uri(run)}")
    return 0 if done == len(folders) else 1


def closing_report(name: str) -> Any:
    """The function that `report` names."""
    module, _, function = name.partition(":")
    try:
        return getattr(importlib.import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"report: cannot import {name!r} ({error}); allowed: module:function."
        ) from error


def _draw(run: Run, sweep_id: str, parent: tuple[Any, str] | None) -> None:
    """The analysis of a sweep that has ended, in its folder and at its MLflow run."""
    from grpolab.results.analyze import analyze, summary

    made = analyze(output_dir=run.output_dir, sweep=sweep_id, study=run.study, figures="usual")
    print(summary(made))
    print(f"  figure: {made.out / 'figures' / 'learning_curves.png'}")
    where = "" if run.output_dir == "outputs" else f" output_dir={shlex.quote(run.output_dir)}"
    print(f"  one page with all of it: grpolab report sweep={sweep_id}{where}")
    if parent:
        _log_analysis(run, sweep_id, parent, made)


def _log_analysis(run: Run, sweep_id: str, parent: tuple[Any, str], made: Any) -> None:
    from grpolab.results.artifacts import log_analysis
    from grpolab.results.report.page import page_of
    from grpolab.sweep.preflight import tracking_uri

    files = made.files()
    try:
        files["report.html"] = page_of(made, run.output_dir)
    except Exception as error:  # the sweep has ended well, whatever becomes of its page
        print(f"{made.out / 'report.html'} could not be written ({error}).", file=sys.stderr)
    problem = log_analysis(
        files, output_dir=run.output_dir, study=run.study, sweep=sweep_id, uri=tracking_uri(run),
        parent=parent,
    )  # fmt: skip
    if problem:
        print(problem, file=sys.stderr)
