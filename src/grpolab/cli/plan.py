"""`grpolab plan`: what a sweep would do, and whether it can answer its question."""

from __future__ import annotations

import json
import math
import shlex
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.component import ConfigError, nearest
from grpolab.results.family import METRIC, names_of

if TYPE_CHECKING:
    from grpolab.sweep.compose import Refused, Sweep
    from grpolab.sweep.plan import Checked

OWN_KEYS = {
    "out": "write the plan to this .json file, too",
    "plan.effect": "the effect to find, in standard deviations of a run over seeds (1.0)",
    "plan.correlation": "between the runs of one seed in two arms (0.5)",
    "plan.metric": "what analyze's metric= will be, one or several (eval/accuracy)",
    "plan.by": "what analyze's by= will be: factors within whose levels arms are compared (null)",
}
USAGE = """usage: grpolab plan [-m] <what grpolab train would get> [key=value …]

Expands a sweep, checks every job, and prints jobs and arms, what the seeds can show, tokens, time
and disk by past runs in the same output_dir, and what is done already. Trains nothing.

{keys}

design=product|one_factor|leave_one_out|ladder|zip|random|latin_hypercube|fractional_factorial
chooses the combinations of the swept factors: grpolab list design
search=optuna searches settings instead: its space is checked, and trials × seeds are said

exit code: 0, or 2 if a job is refused (each is said)"""
MOST_ROWS = 40
"""Jobs that are listed on the screen."""


def plan(arguments: Sequence[str]) -> int:
    """Prints the plan of a sweep; 2 if some of its jobs are refused."""
    if any(a in ("-h", "--help") for a in arguments):
        print(USAGE.format(keys="\n".join(f"  {k:<18}{v}" for k, v in OWN_KEYS.items())))
        return 0
    words, own = split(arguments)
    effect = number("plan.effect", own.get("plan.effect", "1.0"), "a number above 0")
    correlation = number(
        "plan.correlation", own.get("plan.correlation", "0.5"), "a number from -1 to below 1"
    )
    if effect <= 0:
        raise ConfigError(f"plan.effect: {effect:g} given; allowed: a number above 0.")
    if not -1 <= correlation < 1:
        raise ConfigError(
            f"plan.correlation: {correlation:g} given; allowed: a number from -1 to below 1."
        )
    out = output_file(own.get("out"))
    metrics = names_of(own.get("plan.metric", METRIC))
    if not metrics:
        raise ConfigError("plan.metric: no name given; allowed: one or more metrics.")
    found = made(words, effect, correlation, metrics, names_of(own.get("plan.by")))
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(json.dumps(found, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    if not found["refused"]:
        show(found)
        return 0
    for one in found["refused"]:
        job = " ".join(o for o in one["overrides"] if is_swept(o, found["factors"]))
        print(f"grpolab: {one['error']}{f' (job {job})' if job else ''}", file=sys.stderr)
    return 2


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Hydra's words, and the command's own keys."""
    words: list[str] = []
    own: dict[str, str] = {}
    for word in arguments:
        key, separator, value = word.partition("=")
        if not (key == "out" or key.startswith("plan.")):
            words.append(word)
        elif key in OWN_KEYS and separator:
            own[key] = value
        else:
            raise ConfigError(
                f"{key}: unknown key (given {word!r}); allowed: {', '.join(OWN_KEYS)}"
                f"{nearest(key, OWN_KEYS) or '.'}"
            )
    return words, own


def number(key: str, text: str, allowed: str) -> float:
    """A finite number of the command line."""
    try:
        found = float(text)
    except ValueError:
        found = math.nan
    if not math.isfinite(found):
        raise ConfigError(f"{key}: {text!r} given; allowed: {allowed}.")
    return found


def output_file(text: str | None) -> Path | None:
    """Where the plan is written."""
    from grpolab.sweep.preflight import check_writable

    if text is None:
        return None
    path = Path(text)
    if path.suffix != ".json" or path.is_dir():
        raise ConfigError(f"out: {text!r} given; allowed: a file name that ends in .json.")
    check_writable(str(path.parent), "out")
    return path


def made(
    words: Sequence[str],
    effect: float,
    correlation: float,
    metrics: Sequence[str] = (METRIC,),
    by: Sequence[str] = (),
) -> dict[str, Any]:
    """The plan; without any job that could run, what was refused alone."""
    from grpolab.cli.train import own_launcher
    from grpolab.sweep import plan as planning
    from grpolab.sweep.compose import expand, parse_command

    command = parse_command(words)
    if command.rest:
        raise ConfigError(f"{command.rest[0]}: unknown flag; allowed: -m, --config-dir, --help.")
    command.multirun = True
    refused: list[Refused] = []
    sweep = expand(command, refused)
    if sweep.searched:
        from grpolab.cli.plan_search import planned

        return planned(words, command, sweep)
    jobs = check_all(sweep, refused)
    text = shlex.join(["grpolab", "plan", *words])
    if refused:
        return planning.refusal(sweep, refused, text)
    launcher = own_launcher(sweep.launcher)
    if launcher is not None:
        launcher.check([job.raw for job in sweep.jobs])
    return planning.plan(
        sweep,
        jobs,
        command=text,
        effect=effect,
        correlation=correlation,
        workers=jobs_at_once(launcher, sweep),
        metrics=metrics,
        by=by,
    )


def check_all(sweep: Sweep, refused: list[Refused]) -> list[Checked]:
    """The jobs that pass every check `grpolab train` makes; the others go to `refused`."""
    from grpolab.cli.train import closing_report
    from grpolab.config import bind_run
    from grpolab.sweep.compose import Refused
    from grpolab.sweep.plan import Checked
    from grpolab.sweep.preflight import check

    found = []
    for job in sweep.jobs:
        try:
            run = bind_run(job.raw)
            ready = check(run)
            if run.report is not None:
                closing_report(run.report)
        except ConfigError as error:
            refused.append(Refused(job.overrides, str(error)))
        else:
            found.append(Checked(job, run, len(ready.examples.held_out)))
    return found


def jobs_at_once(launcher: Any, sweep: Sweep) -> int | None:
    """As many as the local launcher has places for; None for other launchers."""
    from grpolab.sweep.launchers.local import Local

    if not isinstance(launcher, Local):
        return None
    raws = [job.raw for job in sweep.jobs]
    return launcher.pool(raws, Path()).size  # which starts no process until it gets a job


def is_swept(override: str, factors: Mapping[str, Any]) -> bool:
    """Whether an override sets one of the factors, or the seed."""
    return override.lstrip("+").partition("=")[0] in factors


# -- the screen --------------------------------------------------------------------------------


def show(found: Mapping[str, Any]) -> None:
    """Prints a plan."""
    if "space" in found:
        from grpolab.cli.plan_search import show as show_search

        show_search(found)
        return
    from grpolab.cli.catalogue import console

    screen = console()
    with screen.capture() as captured:
        screen.print(headline(found))
        for sentence in found["design"]["about"]:
            screen.print(f"  {sentence}")
        screen.print(arms_table(found), jobs_table(found))
        for sentence in (found["seeds_can_show"] or NOTHING_COMPARED)["sentences"]:
            screen.print(sentence)
        screen.print()
        for sentence in cost_sentences(found["cost"]):
            screen.print(sentence)
        for note in found["notes"]:
            screen.print(f"Note: {note}")
    # a table fills its last column with spaces, which whoever reads the pipe would have to strip
    print("\n".join(line.rstrip() for line in captured.get().splitlines()))


NOTHING_COMPARED = {"sentences": ["One arm: nothing is compared."]}


def headline(found: Mapping[str, Any]) -> str:
    """Jobs, arms and seeds, and where they go."""
    seeds = found["seeds"]
    return (
        f"{count(len(found['jobs']), 'job')}: {count(len(found['arms']), 'arm')} × "
        f"{count(len(seeds), 'seed')} ({', '.join(map(str, seeds))}), "
        f"design={found['design']['name']}, study {found['study']} in {found['output_dir']}"
    )


def arms_table(found: Mapping[str, Any]) -> Any:
    """Each arm, what it changes against the baseline, and how its runs stand."""
    from rich.table import Table

    grid = Table("arm", "against the baseline", "seeds", "runs", title="Arms", title_justify="left")
    for arm in found["arms"]:
        changes = [f"{k}: {c['from']} → {c['to']}" for k, c in arm["changes"].items()]
        base = ", ".join(f"{k}={v}" for k, v in found["baseline"].items())
        grid.add_row(
            arm["arm"],
            f"({base})" if arm["baseline"] else "\n".join(changes),
            ", ".join(map(str, arm["seeds"])),
            ", ".join(f"{n} {state}" for state, n in arm["states"].items()),
        )
    return grid


def jobs_table(found: Mapping[str, Any]) -> Any:
    """Each job; the first of them where they are many."""
    from rich.table import Table

    jobs = found["jobs"]
    left_out = max(0, len(jobs) - MOST_ROWS)
    grid = Table(title="Jobs", title_justify="left")
    for column in ("job", "arm", "seed", "state", "steps", "tokens", "time", "disk"):
        grid.add_column(column, justify="left" if column in ("job", "arm", "state") else "right")
    for job in jobs[:MOST_ROWS]:
        guess = job["estimate"] or {"seconds": None, "bytes": None}
        most = f"≤ {job['tokens_at_most']:,}"
        grid.add_row(
            job["job_id"], job["arm"], str(job["seed"]), job["state"], str(job["steps"]),
            f"{guess['tokens']:,.0f}" if job["estimate"] else most,
            clock(guess["seconds"]), size(guess["bytes"]),
        )  # fmt: skip
    if left_out:
        grid.caption = f"and {left_out} more (all of them: out=FILE.json)"
    return grid


def cost_sentences(cost: Mapping[str, Any]) -> list[str]:
    """Tokens, time and disk of what is left to do."""
    if not cost["jobs"]:
        return ["Nothing is left to do."]
    left = f"{count(cost['jobs'], 'job')} left to run"
    most = f"at most {cost['tokens_at_most']:,} tokens sampled for training"
    known = cost["jobs_with_estimate"]
    if not known:
        return [f"{left}: {most}. Time and disk: unknown: no past run of this shape."]
    of = "" if known == cost["jobs"] else f" (of {known} of them; the others: no past run)"
    at_once = cost["workers"]
    wall = "" if at_once is None else f", {clock(cost['wall_seconds'])} with {at_once} at once"
    return [
        f"{left}{of}, by {count(cost['past_runs'], 'past run')} of this shape: "
        f"{cost['tokens']:,.0f} tokens, {clock(cost['seconds'])} of training{wall}, "
        f"{size(cost['bytes']) or 'disk unknown: none of them finished'}. {most.capitalize()}.",
    ]


def count(n: int, word: str) -> str:
    """3 jobs, 1 job."""
    return f"{n} {word}{'' if n == 1 else 's'}"


def clock(seconds: float | None) -> str:
    """A duration; empty where it is unknown."""
    from grpolab.sweep.watch import duration

    return "" if seconds is None else duration(seconds)


def size(number_of: float | None) -> str:
    """Bytes as people say them; empty where they are unknown."""
    if number_of is None:
        return ""
    for unit in ("B", "KiB", "MiB"):
        if number_of < 1024:
            return f"{number_of:.0f} {unit}"
        number_of /= 1024
    return f"{number_of:.1f} GiB"
