"""Logged runs as tidy frames, from the files a sweep wrote or from an MLflow store."""

from __future__ import annotations

from pathlib import Path

from grpolab.results import from_files, from_mlflow
from grpolab.results.frames import Results, ResultsError, build

__all__ = ["Results", "ResultsError", "load"]


def load(
    *,
    output_dir: str | Path = "outputs",
    sweep: str | None = None,
    study: str | None = None,
    uri: str | None = None,
) -> Results:
    """The runs of a sweep (`latest`: the newest), of a study, or of everything logged.

    With `uri` the runs come from that MLflow store, else from the files under `output_dir`; both
    give the same frames. From files a sweep's runs are those its manifest lists, wherever in the
    study they were run, and a listed job that never started is a row with status `missing`.
    Raises ResultsError, one sentence with the nearest name, where nothing matches.
    """
    if uri is not None:
        return build(from_mlflow.read(uri, sweep, study))
    return build(from_files.read(Path(output_dir), sweep, study))
