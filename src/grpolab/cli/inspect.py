"""`grpolab analyze`, `grpolab list` and `grpolab fetch`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from grpolab.component import ConfigError, nearest

COMPARISON_KEYS = {
    "sweep": "a sweep's id, or latest (the default)",
    "study": "all runs of a study instead of one sweep",
    "output_dir": "where the runs lie (outputs)",
    "uri": "read from this MLflow store instead of the run folders",
    "kept": "read from this folder of runs.parquet and history.parquet instead",
    "metric": "what the comparison is about (eval/accuracy), or metric=[eval/accuracy,length/mean]",
    "where": "only these runs: status == 'done' and factor.clip in ['ppo', 'cispo']",
    "equivalence": "a difference that matters; surely smaller ones are equivalent (null)",
    "correction": "for many arms: holm (the default), bonferroni, bh, dunnett, none",
    "alpha": "chance of any wrong better or worse (.05)",
    "test": "auto (paired t, without shared seeds Welch), paired_t, sign_flip, welch, permutation",
    "by": "a factor within whose levels arms are compared, or several: by=updates_per_batch (null)",
    "figures": "figures=[forest,…] or usual; all that can be drawn",
    "order": "a ladder's changes in this order: order=[clip.high,aggregation,…] (alphabetical)",
    "log": "false: the sweep's MLflow run gets none of it as artifacts (true)",
}
"""What is compared, and how: the keys of `analyze` and `report`."""
ANALYZE_KEYS = COMPARISON_KEYS | {
    "out": "folder for the results (<output_dir>/analysis/<sweep>)",
    "dark": "true: each figure for dark pages too (false)",
}


def analyze(arguments: Sequence[str]) -> int:
    """Writes figures, tables and verdicts of a sweep."""
    given = of_results(
        "analyze", "figures, tables and verdicts of a sweep", arguments, ANALYZE_KEYS
    )
    if given is None:
        return 0
    logged = to_be_logged(given)
    from grpolab.results import analyze as results
    from grpolab.results.frames import ResultsError

    try:
        made = results.analyze(**given)
    except ResultsError as error:
        raise ConfigError(str(error)) from error
    print(results.summary(made))
    if logged:
        log_files(made.files(), made.runs, given)
    return 0


def to_be_logged(given: dict[str, str]) -> bool:
    """Takes `log` out of a command's keys: whether what it writes is the analysis of a whole sweep,
    and is wanted in MLflow."""
    from grpolab.cli.status import is_true

    wanted = is_true("log", given.pop("log", "true"))
    return wanted and "sweep" in given and not given.keys() & {"where", "kept"}


def log_files(files: Mapping[str, Path], runs: Any, given: Mapping[str, str]) -> None:
    """Adds them to the MLflow run of the sweep that `runs` are of; says so where it cannot."""
    from grpolab.results.artifacts import log_analysis

    row = runs.iloc[0]
    problem = log_analysis(
        files,
        output_dir=given.get("output_dir", "outputs"),
        study=str(row["study"]),
        sweep=str(row["sweep"]),
        uri=given.get("uri"),
    )
    if problem:
        print(problem, file=sys.stderr)


def of_results(
    command: str, what: str, arguments: Sequence[str], keys: dict[str, str]
) -> dict[str, str] | None:
    """The keys of a command about logged runs, the latest sweep where none is named; None after
    its help."""
    from grpolab.cli.status import usage

    if any(a in ("-h", "--help") for a in arguments):
        print(usage(command, what, keys))
        return None
    given = key_values(arguments, keys)
    chosen = any(key in given for key in ("sweep", "study", "kept"))
    return given if chosen else given | {"sweep": "latest"}


def key_values(arguments: Sequence[str], allowed: dict[str, str]) -> dict[str, str]:
    """`key=value` words as a mapping; ConfigError for a key that is not allowed."""
    given = {}
    for word in arguments:
        key, separator, value = word.partition("=")
        if not separator or key not in allowed:
            raise ConfigError(
                f"{key}: unknown key (given {word!r}); allowed: {', '.join(allowed)}"
                f"{nearest(key, allowed) or '.'}"
            )
        given[key] = value
    return given


def list_components(arguments: Sequence[str]) -> int:
    """Prints the catalogue, a group of it, or one entry in full."""
    from grpolab.cli import catalogue

    return catalogue.list_components(arguments)


def fetch_model(arguments: Sequence[str]) -> int:
    """Downloads a model into the cache."""
    from grpolab.policy.locate import FETCHABLE, fetch

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: grpolab fetch <model>\n\nmodels: {', '.join(FETCHABLE)}")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    folder: Path = fetch(arguments[0])
    print(f"{arguments[0]} is in {folder}")
    return 0
