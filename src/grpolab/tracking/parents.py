"""A sweep's own run in a store: one store knows it by the manifest, every store by its tags."""

from __future__ import annotations

from typing import Any

from grpolab.tracking.listing import COUNT


def find_parent(
    client: Any, experiment_id: str | None, sweep: str, known: str | None = None
) -> str | None:
    """The id of the run that lists a sweep's jobs; None where that store has none.

    Args:
        client: of the store.
        experiment_id: of the sweep's study; None where the store has none of that name, as after a
            renaming.
        sweep: its id.
        known: the id that the manifest names, which is that of the store the sweep was logged to;
            another store lacks it, and so does one that was made anew.
    """
    if known and _is_there(client, known):
        return known
    if experiment_id is None or "'" in sweep:
        return None
    where = f"tags.`grpolab.sweep` = '{sweep}' and tags.`{COUNT}` LIKE '%'"
    oldest = ["attributes.start_time ASC"]
    runs = client.search_runs([experiment_id], where, max_results=1, order_by=oldest)
    return str(runs[0].info.run_id) if runs else None


def _is_there(client: Any, run_id: str) -> bool:
    from mlflow.exceptions import MlflowException

    from grpolab.tracking.mlflow import ABSENT

    try:
        return bool(client.get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException as error:
        if error.error_code not in ABSENT:
            raise
        return False
