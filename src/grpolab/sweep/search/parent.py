"""A search's own MLflow run: what it says of the search, wherever it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from grpolab.tracking.mlflow import safe_name


def tags(search: Mapping[str, Any]) -> dict[str, str]:
    """Of a search, as its manifest describes it."""
    return {
        "grpolab.search": str(search["name"]),
        "grpolab.tuning_seeds": ",".join(map(str, search["tuning_seeds"])),
    }


def end(client: Any, run_id: str, search: Mapping[str, Any]) -> None:
    """Ends the run, with the first of the best trials: FINISHED once no trial is left."""
    for trial in search["best"][:1]:
        client.set_tag(run_id, "grpolab.best_trial", str(trial["trial"]))
        for goal, value in zip(search["objective"], trial["values"] or [], strict=True):
            client.log_metric(run_id, safe_name(goal["metric"]), value)
    over = not search["left"] and not search["states"].get("running")
    client.set_terminated(run_id, status="FINISHED" if over else "KILLED")
