"""`grpolab sync`: what MLflow has missed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from grpolab.cli.inspect import key_values
from grpolab.cli.status import usage
from grpolab.component import ConfigError

KEYS = {
    "output_dir": "where the runs lie (outputs)",
    "study": "only this study",
    "uri": "another store, which gets everything (default: the one each run was logged to)",
}


def sync(arguments: Sequence[str]) -> int:
    """Replays metrics.jsonl into MLflow; 1 if a run could not be brought up to date."""
    if any(a in ("-h", "--help") for a in arguments):
        print(usage("sync", "sends MLflow what it has missed of the runs, each number once", KEYS))
        return 0
    given = key_values(arguments, KEYS)
    output_dir = Path(given.get("output_dir", "outputs"))
    if not output_dir.is_dir():
        raise ConfigError(f"output_dir: {str(output_dir)!r} given; allowed: an existing folder.")
    from grpolab.sweep.sync import run_folders
    from grpolab.sweep.sync import sync as replay
    from grpolab.tracking.mlflow import check_reachable

    if "uri" in given:
        check_reachable(given["uri"])
    from rich.console import Console
    from rich.progress import track

    total = len(run_folders(output_dir, given.get("study")))
    work = replay(output_dir, study=given.get("study"), uri=given.get("uri"))
    shown = track(work, "sync", total=total, console=Console(stderr=True), transient=True)
    done = list(shown)
    broken = [d for d in done if d.error]
    for d in broken:
        print(f"  {d.folder}: {str(d.error).splitlines()[0]}", file=sys.stderr)
    print(f"{len(done) - len(broken)} of {len(done)} runs up to date, "
          f"{sum(d.sent for d in done)} numbers sent.")  # fmt: skip
    return 1 if broken else 0
