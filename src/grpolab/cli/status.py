"""`grpolab status` and `grpolab resume`: how sweeps stand, and going on with one."""

from __future__ import annotations

import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpolab.cli.inspect import key_values
from grpolab.cli.streams import impatient
from grpolab.component import ConfigError, nearest
from grpolab.sweep.state import SweepState, all_sweeps, newest, single_runs

STATUS_KEYS = {
    "output_dir": "where the runs lie (outputs)",
    "study": "only this study",
    "sweep": "only this sweep; latest: the newest; all (default: the newest that is not finished)",
    "watch": "true: keep the tables up to date to the end (on a terminal: while a run is at work)",
    "json": "true: print JSON instead",
}
RESUME_KEYS = {
    "output_dir": "where the runs lie (outputs)",
    "study": "only this study",
    "sweep": "this sweep (default: the newest that is not finished)",
    "retry": "failed: run those that failed again",
}
REFRESH_SECONDS = 2.0
IDLE_LOOKS = 5  # between one job of a sweep and the next there may be none at work


def status(arguments: Sequence[str]) -> int:
    """Prints the tables of sweeps, or follows them."""
    if any(a in ("-h", "--help") for a in arguments):
        print(usage("status", "how a sweep stands, from its files", STATUS_KEYS))
        return 0
    given = key_values(arguments, STATUS_KEYS)
    as_json = is_true("json", given.get("json", "false"))
    chosen = find(given)
    if as_json:
        print(json.dumps(as_plain(chosen), indent=2))
        return 0
    if not chosen:
        print(f"no runs under {given.get('output_dir', 'outputs')}")
        return 0
    from rich.console import Console

    asked = "watch" in given and is_true("watch", given["watch"])
    looks = asked or ("watch" not in given and on_terminal() and any(map(running, chosen)))
    if looks and not all(map(ended, chosen)) and not Console().is_dumb_terminal:
        with suppress(KeyboardInterrupt):  # the way out of looking on
            _follow(given, chosen, to_the_end=asked)
    else:
        for state in chosen:
            Console().print(screen(state))
    return 0


def find(given: dict[str, str]) -> list[SweepState]:
    """The sweeps, and the runs outside of sweeps, that the keys ask for.

    Raises:
        ConfigError: no such folder, study or sweep.
    """
    output_dir, study = Path(given.get("output_dir", "outputs")), given.get("study")
    if "output_dir" in given and not output_dir.is_dir():
        raise ConfigError(f"output_dir: {str(output_dir)!r} given; allowed: an existing folder.")
    sweeps = all_sweeps(output_dir, study)
    singles = single_runs(output_dir, study)
    if study is not None and not sweeps and not singles:
        names = sorted({p.parents[1].name for p in output_dir.glob("*/*/run.json")})
        raise ConfigError(
            f"study: {study!r} given; allowed: {', '.join(names) or 'none has runs yet'}"
            f"{nearest(study, names) or '.'}"
        )
    wanted = given.get("sweep")
    if wanted == "all":
        return [*sweeps, *singles]
    if wanted == "latest":
        return sweeps[:1]
    if wanted is not None:
        found = [s for s in sweeps if s.sweep == wanted]
        if not found:
            names = [str(s.sweep) for s in sweeps]
            raise ConfigError(
                f"sweep: {wanted!r} given; allowed: latest, all{''.join(f', {n}' for n in names)}"
                f"{nearest(wanted, names) or '.'}"
            )
        return found
    unfinished = [s for s in singles if not ended(s)]
    picked = newest(sweeps)
    if picked is None:
        return singles
    return [picked, *unfinished]


def ended(state: SweepState) -> bool:
    """Whether nothing is at work or left to do."""
    return not (state.counts["running"] or state.counts["pending"])


def as_plain(states: Sequence[SweepState]) -> dict[str, Any]:
    """What `json=true` prints."""
    return {"sweeps": [asdict(s) | {"counts": s.counts} for s in states]}


def screen(state: SweepState) -> Any:
    """A table, arm × seed, and a line below it."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    from grpolab.sweep.watch import duration

    name = f"sweep {state.sweep}" if state.sweep else "single runs"
    grid = Table(title=f"{name}, study {state.study}", title_justify="left")
    for column in ("arm", "seed", "state", "step", "reward", "held-out", "time", "left", ""):
        grid.add_column(column, justify="left" if column in ("arm", "state", "") else "right")
    for job in state.jobs:
        grid.add_row(
            job.arm,
            str(job.seed),
            Text(job.state, style=STYLES[job.state]),
            f"{job.step}/{job.steps}",
            "" if job.reward is None else f"{job.reward:.2f}",
            "" if job.accuracy is None else f"{job.accuracy:.2f}",
            duration(job.seconds) if job.seconds else "",
            duration(job.seconds_left) if job.state in ("running", "pending") else "",
            Text(job.reason or "", overflow="ellipsis", no_wrap=True),
        )
    counts = ", ".join(f"{n} {s}" for s, n in state.counts.items() if n)
    left = "" if ended(state) else f"; about {duration(state.seconds_left)} left"
    lines = [f"{counts}{left}"]
    if state.search is not None:
        lines += about_search(state.search)
    if state.counts["pending"] and not state.counts["running"]:
        lines.append("grpolab resume goes on with it.")
    if state.counts["failed"] and state.sweep:
        lines.append("grpolab resume retry=failed runs the failed ones again.")
    return Group(grid, Text("\n".join(lines)))


def about_search(search: dict[str, Any]) -> list[str]:
    """How a search stands, a sentence each."""
    states = ", ".join(f"{n} {s}" for s, n in search["states"].items()) or "none begun"
    seeds = ", ".join(map(str, search["tuning_seeds"]))
    lines = [
        f"{search['trials']} trials: {states}, {search['left']} to come; tuned on seeds {seeds}"
    ]
    metrics = [goal["metric"] for goal in search["objective"]]
    for best in search["best"]:
        values = zip(metrics, best["values"], strict=True)
        found = ", ".join(f"{metric} {value:.4g}" for metric, value in values)
        lines.append(f"best so far: trial {best['trial']}, {found}")
    return lines


STYLES = {"done": "green", "running": "cyan", "pending": "dim", "failed": "red", "pruned": "yellow"}


def _follow(given: dict[str, str], chosen: Sequence[SweepState], *, to_the_end: bool) -> None:
    """Keeps what was chosen on the screen, whatever other sweep begins.

    Args:
        to_the_end: until all of it has ended; else also where nothing of it has been running for
            some looks, as after a sweep was interrupted.
    """
    from rich.console import Group
    from rich.live import Live

    names = [(s.study, s.sweep) for s in chosen]
    idle = 0
    with Live(auto_refresh=False) as live:
        while True:
            found = find(given | {"sweep": "all"})
            states = [s for s in found if (s.study, s.sweep) in names]
            live.update(Group(*map(screen, states)), refresh=True)
            idle = 0 if any(map(running, states)) else idle + 1
            if all(map(ended, states)) or (idle >= IDLE_LOOKS and not to_the_end):
                return
            wait()


def running(state: SweepState) -> bool:
    """Whether a process is at work on it."""
    return bool(state.counts["running"])


def on_terminal() -> bool:
    """Whether somebody may be looking."""
    return sys.stdout.isatty()


def wait() -> None:
    """Until the next look."""
    time.sleep(REFRESH_SECONDS)


def resume(arguments: Sequence[str]) -> int:
    """Goes on with the newest sweep, or single run, that is not finished."""
    if any(a in ("-h", "--help") for a in arguments):
        print(usage("resume", "goes on with what is not finished", RESUME_KEYS))
        return 0
    impatient()
    given = key_values(arguments, RESUME_KEYS)
    retry = given.pop("retry", None)
    if retry not in (None, "failed"):
        raise ConfigError(f"retry: {retry!r} given; allowed: failed.")
    left = ("pending", "failed") if retry else ("pending",)
    chosen = next((s for s in find({"sweep": "all"} | given) if has(s, left)), None)
    if chosen is None:
        print(f"Nothing is left to do under {given.get('output_dir', 'outputs')}.")
        return 0
    if chosen.sweep is None:
        return _resume_single(Path(given.get("output_dir", "outputs")), chosen, left)
    return _resume_sweep(chosen, retry)


def has(state: SweepState, left: Sequence[str]) -> bool:
    """Whether a sweep has jobs in one of these states."""
    return any(state.counts[s] for s in left)


def _resume_sweep(state: SweepState, retry: str | None) -> int:
    """The sweep's own command, where it was given."""
    from grpolab.cli.train import train
    from grpolab.config import job_id
    from grpolab.sweep.compose import expand, parse_command

    words = shlex.split(state.command)[2:]
    if Path(state.folder).is_dir():
        os.chdir(state.folder)  # relative paths in the command mean those
    print(f"{state.command}  (in {Path.cwd()})", flush=True)
    before: set[str]
    if state.search is not None:
        from grpolab.cli.search import checked

        command = parse_command(words)
        now = {checked(command, expand(command))[0].key}
        before = {state.search["key"]}
    else:
        now = {job_id(job.raw) for job in expand(parse_command(words)).jobs}
        before = {job.job_id for job in state.jobs}
    if now != before:
        raise ConfigError(
            f"sweep: {state.sweep} consists of other jobs now, since the package's sources or the "
            "configuration files have changed; allowed: its command again, as a new sweep."
        )
    return train([*words, f"retry={retry}"] if retry else words)


def _resume_single(output_dir: Path, state: SweepState, left: Sequence[str]) -> int:
    """A run from its own config.yaml."""
    from omegaconf import OmegaConf

    from grpolab.cli.train import run_one
    from grpolab.config import bind_run, job_id

    job = next(j for j in state.jobs if j.state in left)
    folder = output_dir / state.study / job.job_id
    raw: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"), resolve=True)
    raw["output_dir"] = str(output_dir)  # it may have been given from another folder
    print(f"{folder}", flush=True)
    if job_id(raw) != job.job_id:
        raise ConfigError(
            f"{folder}: the package's sources have changed since, so the run would be another one; "
            "allowed: its command again, as a new run."
        )
    return run_one(raw, bind_run(raw))


def usage(command: str, what: str, keys: dict[str, str]) -> str:
    """Help of a command with keys."""
    lines = "\n".join(f"  {k:<12}{v}" for k, v in keys.items())
    return f"usage: grpolab {command} [key=value …]\n\n{what}\n\n{lines}"


def is_true(key: str, value: str) -> bool:
    """A yes or no on the command line."""
    if value.lower() not in ("true", "false"):
        raise ConfigError(f"{key}: {value!r} given; allowed: true, false.")
    return value.lower() == "true"
