"""`grpolab train … search=optuna`: checks, then draws and runs trials until there are enough."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.component import ConfigError
from grpolab.sweep.compose import Command, Sweep
from grpolab.tracking.folder import write_atomically

if TYPE_CHECKING:
    from grpolab.sweep.launchers.base import Pool
    from grpolab.sweep.search.prepare import Search
    from grpolab.sweep.search.study import Study


def checked(command: Command, sweep: Sweep) -> tuple[Search, Any]:
    """The search of a command, and its launcher; nothing is written.

    Raises:
        ConfigError: it cannot run.
    """
    from grpolab.cli.train import own_launcher
    from grpolab.sweep.preflight import check
    from grpolab.sweep.search.prepare import prepare
    from grpolab.training.launched import world_size

    if world_size() > 1:
        raise ConfigError(
            f"torchrun: {world_size()} ranks given with search=optuna; allowed: one process (its "
            "runs run beside each other through hydra/launcher=local)."
        )
    search = prepare(command, sweep)
    launcher = own_launcher(sweep.launcher)
    if launcher is None:
        raise ConfigError(
            "hydra/launcher: a plugin of Hydra given with search=optuna; allowed: local, ray, "
            "slurm."
        )
    if launcher.in_process and search.settings.pruner != "none":
        raise ConfigError(
            f"hydra.launcher.workers: 0 given with search.pruner={search.settings.pruner}, which "
            "stops runs of other processes; allowed: at least 1, or search.pruner=none."
        )
    check(search.run)
    launcher.check([sweep.jobs[0].raw])
    return search, launcher


def run_search(command: Command, sweep: Sweep) -> int:
    """Runs a search to its end; 0 if every trial has ended and none failed."""
    from filelock import FileLock, Timeout

    from grpolab.sweep.search.record import Recorder

    search, launcher = checked(command, sweep)
    sweep_id = _enter(command, search)
    folder = search.folder(sweep_id)
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(str(folder / ".driver.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:  # it is let go by the kernel, also when its holder is killed
        print("Another process runs this search; waiting for its end.", file=sys.stderr)
        lock.acquire()
    with lock:
        study = _study(search, folder)
        manifest = folder.with_suffix(".json")
        record = Recorder(manifest, search, study)
        print(
            f"Search {sweep_id}: {search.settings.trials} trials × {len(search.settings.seeds)} "
            f"seeds, {len(study.trials())} begun before, study {search.run.study}.",
            flush=True,
        )
        pool = _pool(study, launcher, sweep, folder)
        with _parent(command, search, manifest, pool) as finished:
            left_alone = _drive(search, study, pool, sweep_id, record, launcher.in_process)
            files = _write_results(search, study, sweep_id, folder)
            finished(study)
        drawn = _draw(search, study, sweep_id, files)
    return _report(search, study, sweep_id, files, left_alone, drawn)


def _study(search: Search, folder: Path) -> Study:
    from grpolab.sweep.search.study import Study

    return Study(
        folder / "optuna.db", search.key, search.settings, search.space,
        steps=search.run.steps, first=search.first,
    )  # fmt: skip


def _pool(study: Study, launcher: Any, sweep: Sweep, folder: Path) -> Pool:
    """Places for the trials that are not over; they start while MLflow is met."""
    left = study.left() + len(study.begun())
    pool: Pool = launcher.pool([sweep.jobs[0].raw] * max(1, left), folder)
    pool.prepare(left)
    return pool


def _drive(
    search: Search, study: Study, pool: Pool, sweep_id: str, record: Any, in_process: bool
) -> set[int]:
    from grpolab.sweep.search.drive import SearchDriver
    from grpolab.sweep.watch import SweepProgress

    shown = search.run.tracking.progress and not in_process
    output = Path(search.run.output_dir) / search.run.study
    with SweepProgress(output, record.members, enabled=shown) as progress:
        driver = SearchDriver(search, study, pool, sweep_id, changed=record, show=progress.show)
        driver.run()
    return driver.left_alone


def _enter(command: Command, search: Search) -> str:
    """The sweep's id; the one it had where the search was begun before."""
    from filelock import FileLock

    from grpolab.sweep.manifest import manifest_path, new_manifest, new_sweep_id, write_manifest
    from grpolab.sweep.search.record import describe, find_search

    run = search.run
    folder = Path(run.output_dir) / run.study / "sweeps"
    folder.mkdir(parents=True, exist_ok=True)
    with FileLock(str(folder / ".lock")):
        known = find_search(run.output_dir, run.study, search.key)
        sweep_id = str(known["sweep"]) if known else new_sweep_id()
        path = manifest_path(run.output_dir, run.study, sweep_id)
        if known is None:
            content = new_manifest(
                sweep_id=sweep_id, study=run.study, factors=sorted(search.space), jobs=[],
                command=["grpolab", "train", *command.words], search=describe(search, None),
            )  # fmt: skip
            write_manifest(path, content)
        elif known["command"] != shlex.join(["grpolab", "train", *command.words]):
            content = known | {"command": shlex.join(["grpolab", "train", *command.words])}
            write_manifest(path, content)
    return sweep_id


def _open_parent(command: Command, search: Search, path: Path) -> str | None:
    """The search's MLflow run; the one it had where the search was begun before."""
    run = search.run
    if not run.tracking.mlflow:
        return None
    from grpolab.sweep.manifest import read_manifest, write_parent
    from grpolab.sweep.preflight import tracking_uri
    from grpolab.sweep.search.parent import tags
    from grpolab.tracking.listing import listing_tags
    from grpolab.tracking.mlflow import open_parent, patiently

    manifest = read_manifest(path)
    params = {"overrides": " ".join(command.overrides), "factors": ",".join(search.space)}
    before = manifest["parent_run_id"]
    place = (tracking_uri(run), run.output_dir, run.study, manifest["sweep"], before)
    own = tags(manifest["search"]) | listing_tags(manifest)
    _, run_id = patiently(partial(open_parent, *place, kind="search", tags=own, params=params))
    write_parent(path, run_id)
    return run_id


@contextmanager
def _parent(command: Command, search: Search, manifest: Path, pool: Pool) -> Iterator[Any]:
    """Opens the search's MLflow run, and ends it with the block: FINISHED, with the best trial, if
    it was told that the search is."""
    ended: list[Study] = []
    try:
        run_id = _open_parent(command, search, manifest)
    except BaseException:
        pool.close(kill=True)
        raise
    try:
        yield ended.append
    finally:
        if run_id is not None:
            try:
                _end_parent(search, run_id, manifest, ended[0] if ended else None)
            except Exception as error:  # the store is away: the folder knows how it ended
                print(f"MLflow does not know that the search has ended ({type(error).__name__}).",
                      file=sys.stderr)  # fmt: skip


def _end_parent(search: Search, run_id: str, manifest: Path, study: Study | None) -> None:
    from mlflow import MlflowClient

    from grpolab.sweep.manifest import read_manifest
    from grpolab.sweep.preflight import tracking_uri
    from grpolab.sweep.search.parent import end
    from grpolab.sweep.search.record import describe
    from grpolab.tracking.listing import listing_tags

    client = MlflowClient(tracking_uri=tracking_uri(search.run))
    for name, value in listing_tags(read_manifest(manifest)).items():
        client.set_tag(run_id, name, value)
    if study is None:
        client.set_terminated(run_id, status="KILLED")
    else:
        end(client, run_id, describe(search, study))


def _write_results(search: Search, study: Study, sweep_id: str, folder: Path) -> dict[int, str]:
    """The experiment files of the best trials, and search.json."""
    from grpolab.sweep.search.best import write_best
    from grpolab.sweep.search.record import results

    files = {}
    several = len(search.settings.goals) > 1
    for trial in study.best():
        name = f"front_{trial.number}" if several else "best"
        values = study.overrides_of(trial.number)
        head = _head(search, sweep_id, trial, len(study.trials()))
        files[trial.number] = str(write_best(search, values, folder / "conf", name, head))
    content = results(search, study, sweep_id, files)
    write_atomically(folder / "search.json", json.dumps(content, indent=2) + "\n")
    return files


def _draw(search: Search, study: Study, sweep_id: str, files: Mapping[int, str]) -> Path | None:
    """The search's analysis in its folder and at its MLflow run: history, trials, the best file.
    The search has ended well, whatever becomes of it."""
    from grpolab.results.artifacts import log_analysis
    from grpolab.sweep.preflight import tracking_uri
    from grpolab.sweep.search.record import results

    run = search.run
    out = Path(run.output_dir) / "analysis" / sweep_id
    try:
        from grpolab.results.trials import write

        made = write(results(search, study, sweep_id, files), out)
    except Exception as error:
        print(f"{out} could not be written ({error}).", file=sys.stderr)
        return None
    made["search.json"] = search.folder(sweep_id) / "search.json"
    made |= {f"experiment/{Path(path).name}": Path(path) for path in files.values()}
    if run.tracking.mlflow:
        problem = log_analysis(
            made, output_dir=run.output_dir, study=run.study, sweep=sweep_id,
            uri=tracking_uri(run), again="the same command",
        )  # fmt: skip
        if problem:
            print(problem, file=sys.stderr)
    return out


def _head(search: Search, sweep_id: str, trial: Any, trials: int) -> str:
    """The comment of an experiment file: where it comes from, and on which seeds it was tuned."""
    found = _values(search, trial)
    return (
        f"# Trial {trial.number} of {trials}, search {sweep_id}, study {search.run.study}.\n"
        f"# Tuned on seeds {_listed(search.settings.seeds)}, where {found}: the best of several,\n"
        "# which flatters it. Report other seeds (tracking.tuned_on refuses those).\n"
    )


def _values(search: Search, trial: Any) -> str:
    pairs = zip(search.settings.goals, trial.values, strict=True)
    return ", ".join(f"{goal.metric} is {value:.4g}" for goal, value in pairs)


def _listed(numbers: list[int]) -> str:
    return ", ".join(map(str, numbers))


def _report(
    search: Search,
    study: Study,
    sweep_id: str,
    files: Mapping[int, str],
    left_alone: set[int],
    drawn: Path | None,
) -> int:
    """The closing summary."""
    from grpolab.sweep.search.record import arm, describe

    states = describe(search, study)["states"]
    counted = ", ".join(f"{n} {s}" for s, n in states.items()) or "none"
    seeds = search.settings.seeds
    print(f"\nSearch {sweep_id}: {counted}; tuned on seeds {_listed(seeds)}.")
    for trial in study.trials():
        if trial.state.name == "FAIL":
            print(f"  trial {trial.number} failed: {trial.user_attrs.get('reason')}")
    for number in sorted(left_alone):
        print(f"  trial {number} was interrupted; the same command goes on with it.")
    word = "best" if len(search.settings.goals) == 1 else "on the front"
    for trial in study.best():
        values = study.overrides_of(trial.number)
        print(f"  {word}: trial {trial.number}, {_values(search, trial)} on the tuning seeds: "
              f"{arm(values)}")  # fmt: skip
        path = Path(files[trial.number])
        words = [
            "grpolab", "train", "--config-dir", str(path.parents[1]), f"experiment={path.stem}",
            f"output_dir={search.run.output_dir}",
        ]  # fmt: skip
        print(f"    {shlex.join(words)}  # on seeds {_listed(search.report_seeds)}")
    print(f"  {search.folder(sweep_id) / 'search.json'}, optuna.db")
    if drawn is not None:
        print(f"  history and trials: {drawn}")
    ended = not (study.left() or study.begun())
    return 0 if ended and not states.get("fail") else 1
