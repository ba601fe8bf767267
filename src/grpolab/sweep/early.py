"""The start of a sweep: its workers begin theirs while it is still being checked."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from grpolab.config import Run
from grpolab.sweep.launchers.base import EarlyPool, Launcher
from grpolab.sweep.preflight import check


def checked_with_torch(
    runs: Sequence[Run],
    raws: Sequence[Mapping[str, Any]],
    left: int,
    launcher: Launcher | None,
) -> EarlyPool | None:
    """Tries what needs torch: in the processes that are going to run the jobs, where the launcher
    can start them before the sweep has a folder. They import it anyway, and meanwhile this process
    makes what MLflow needs. What they refuse is tried again here, which says why.

    Args:
        runs: all of the command.
        raws: their resolved configurations.
        left: how many are not done.
        launcher: ours, of a sweep; None: all is checked here.

    Returns:
        The processes, which have loaded what their jobs need; None if none was started.

    Raises:
        ConfigError: one sentence; nothing has been written.
    """
    early = launcher.early_pool(raws) if launcher is not None and left else None
    if early is not None:
        try:
            early.prepare(left)
            if early.passes(raws, meanwhile=partial(meet_mlflow, runs[0])):
                return early
        except BaseException:
            early.close(kill=True)
            raise
        early.close(kill=True)
    for run in runs:
        check(run)
    return None


def meet_mlflow(run: Run) -> None:
    """Imports MLflow and makes an empty store aside, where the sweep will need one."""
    if run.tracking.mlflow:
        from grpolab.tracking.mlflow import make_ahead

        make_ahead(run.tracking.uri, run.output_dir)
