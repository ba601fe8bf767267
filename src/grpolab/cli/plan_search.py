"""`grpolab plan … search=optuna`: what a search would do, and at most cost."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpolab.sweep.compose import Command, Sweep


def planned(words: Sequence[str], command: Command, sweep: Sweep) -> dict[str, Any]:
    """The plan of a search; nothing is written.

    Keys: command, study, output_dir, refused (always empty: what is refused raises), search (what
    a search's manifest says), space {key: [choice] or {low, high, log, step}}, trials_left,
    runs_at_most and tokens_at_most of the trials left, seconds_at_most by past runs of this shape
    (null where there is none).

    Raises:
        ConfigError: the search cannot run.
    """
    from grpolab.cli.search import checked
    from grpolab.sweep.past import estimate, most_tokens, past_runs, shape_of
    from grpolab.sweep.preflight import load_examples
    from grpolab.sweep.search.record import describe, find_search

    search, _ = checked(command, sweep)
    run = search.run
    known = find_search(run.output_dir, run.study, search.key)
    begun = sum((known or {"search": {"states": {}}})["search"]["states"].values())
    left = max(0, search.settings.trials - begun)
    runs = left * len(search.settings.seeds)
    past = past_runs(Path(run.output_dir), {shape_of(run.raw)})
    guess = estimate(run, len(load_examples(run.task).held_out), past)
    return {
        "command": shlex.join(["grpolab", "plan", *words]),
        "study": run.study,
        "output_dir": run.output_dir,
        "refused": [],
        "search": describe(search, None),
        "space": {k: v for k, v in (search.settings.space or {}).items() if v is not None},
        "trials_left": left,
        "runs_at_most": runs,
        "tokens_at_most": runs * most_tokens(run),
        "seconds_at_most": None if guess is None else runs * guess.seconds,
        "pruner": search.settings.pruner,
    }


def show(found: Mapping[str, Any]) -> None:
    """Prints it."""
    from grpolab.cli.plan import clock, count

    search = found["search"]
    seeds = ", ".join(map(str, search["tuning_seeds"]))
    tuning = count(len(search["tuning_seeds"]), "tuning seed")
    trials = count(search["trials"], "trial")
    print(f"{trials} × {tuning} ({seeds}), study {found['study']} in {found['output_dir']}")
    for key, entry in found["space"].items():
        print(f"  {key}: {entry}")
    for goal in search["objective"]:
        print(f"  {goal['direction']} {goal['metric']}: the mean over the tuning seeds")
    begun, left = search["trials"] - found["trials_left"], count(found["trials_left"], "trial")
    stops = " (hyperband stops some early)" if found["pruner"] != "none" else ""
    print(
        f"{begun} begun, {left} left: at most {count(found['runs_at_most'], 'run')}, "
        f"{found['tokens_at_most']:,} tokens sampled for training{stops}."
    )
    seconds = found["seconds_at_most"]
    if seconds is None:
        print("Time: unknown: no past run of this shape.")
    else:
        print(f"At most {clock(seconds)} of training, by past runs of this shape.")
    print(f"The best is reported on seeds {', '.join(map(str, search['report_seeds']))}.")
