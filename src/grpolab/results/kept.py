"""A study's numbers as two small parquet files, to be committed beside its verdicts.

`runs.parquet` is the frame of runs as it is. `history.parquet` has what an analysis needs: every
evaluation in full, so that verdicts come out of it to the last digit, and other metrics thinned.
Both are read by `load(kept=folder)` like any other source.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from grpolab.results.frames import (
    FACTOR_PREFIX,
    RUN_COLUMNS,
    X_SOURCES,
    Results,
    ResultsError,
    RunRecord,
    refuse,
)
from grpolab.results.points import NONE, Points, points

RUNS, HISTORY = "runs.parquet", "history.parquet"
EVALUATIONS = "eval/"
USUAL = (
    "reward/mean", "reward/std", "reward/zero_std_share", "policy/entropy", "policy/ratio_mean",
    "policy/ratio_std", "policy/ratio_max", "policy/ess", "clip/low", "clip/high", "clip/share",
    "kl/ref_k1", "kl/ref_k2", "kl/ref_k3", "kl/old_k3", "length/mean", "length/correct",
    "length/wrong", "length/truncated_share", "advantage/std", "advantage/abs_max",
    "advantage/abs_at_*", "loss/total", "optim/grad_norm", "tokens/contributing_share",
    "time/step", "time/sample", "time/score", "time/update",
)  # fmt: skip
"""Metrics kept at every few steps: what the figures are drawn from; * stands for any text."""
_COLUMNS = ("study", "job_id", "metric", "step", "value")


@dataclass(frozen=True)
class Kept:
    """What was written, and how much of the history that is."""

    paths: tuple[Path, Path]
    runs: int
    points: int
    points_before: int

    @property
    def size(self) -> int:
        """Bytes of both files."""
        return sum(path.stat().st_size for path in self.paths)


def write(
    results: Results,
    folder: str | Path,
    metrics: Sequence[str] = USUAL,
    every: int = 5,
    whole: Sequence[str] = (),
) -> Kept:
    """Both files under `folder`.

    Args:
        results: all runs and metrics that there are.
        folder: is made where there is none.
        metrics: names kept where they have evaluations and at every `every`th step, as float32.
        every: at least 1.
        whole: names kept at every step to the last digit, as `eval/…` always are; so are, at the
            steps that are kept, the x columns' sources.

    Raises:
        ResultsError: `whole` names a metric that no run logged.
    """
    import pyarrow
    from pyarrow import parquet

    if every < 1:
        raise ResultsError(f"every={every}: a number of steps of at least 1 is needed")
    logged = sorted(map(str, results.history["metric"].unique()))
    for name in whole:
        if name not in logged:
            raise refuse("whole", name, "no run logged it", logged)
    exact = [name for name in logged if name in whole or name.startswith(EVALUATIONS)]
    meant = [name for name in logged if any(fnmatchcase(name, pattern) for pattern in metrics)]
    table = _thinned(results, exact, [name for name in meant if name not in exact], every)
    place = Path(folder)
    place.mkdir(parents=True, exist_ok=True)
    runs = pyarrow.table({str(name): _column(results.runs[name]) for name in results.runs})
    parquet.write_table(runs, place / RUNS, compression="zstd")
    parquet.write_table(
        pyarrow.table(table),
        place / HISTORY,
        compression="zstd",
        compression_level=19,
        use_dictionary=["study", "job_id", "metric"],
        column_encoding={"step": "DELTA_BINARY_PACKED", "value": "BYTE_STREAM_SPLIT"},
    )
    return Kept(
        (place / RUNS, place / HISTORY),
        len(results.runs),
        len(table["value"]),
        len(results.history),
    )


def _column(values: Any) -> Any:
    """A column of runs: numbers as they are, all else as text, also where every text is missing."""
    import pyarrow

    kind = None if values.dtype.kind in "bi" else pyarrow.string()
    return pyarrow.array(values.tolist(), kind, from_pandas=True)


def _thinned(
    results: Results, exact: Sequence[str], metrics: Sequence[str], every: int
) -> dict[str, Any]:
    """The columns of history.parquet; tokens and wall time stand at every step that is kept."""
    parts: list[dict[str, Any]] = []
    for (study, job), run in results.history.groupby(["study", "job_id"], observed=True, sort=True):
        names = run["metric"].astype(str).to_numpy()
        steps = run["step"].to_numpy(dtype=np.int64)
        values = run["value"].to_numpy(dtype=np.float64)
        whole = np.isin(names, exact)
        evaluated = steps[[name.startswith(EVALUATIONS) for name in names]]
        at = np.isin(steps, evaluated) | (steps % every == 0) | (steps == steps.max())
        sources = np.isin(names, list(X_SOURCES.values())) & _last_before(
            names, steps, np.unique(steps[at | whole])
        )
        rounded = np.isin(names, metrics) & at & ~whole & ~sources
        chosen = whole | sources | rounded
        with np.errstate(over="ignore"):  # what float32 has no number for is an infinity there
            values = np.where(rounded, values.astype(np.float32).astype(np.float64), values)
        count = int(chosen.sum())
        columns = ([str(study)] * count, [str(job)] * count, names[chosen])
        parts.append(dict(zip(_COLUMNS, (*columns, steps[chosen], values[chosen]), strict=True)))
    return {
        name: np.concatenate([part[name] for part in parts]) if parts else np.empty(0)
        for name in _COLUMNS
    }


def _last_before(
    names: npt.NDArray[Any], steps: npt.NDArray[np.int64], wanted: npt.NDArray[np.int64]
) -> npt.NDArray[np.bool_]:
    """[n] points that are the last of their metric at or before a wanted step: what its x is."""
    found = np.zeros(len(names), dtype=bool)
    for source in X_SOURCES.values():
        own = np.flatnonzero(names == source)
        own = own[np.argsort(steps[own], kind="stable")]
        before = np.searchsorted(steps[own], wanted, side="right") - 1
        found[own[before[before >= 0]]] = True
    return found


def records(folder: str | Path, sweep: str | None, study: str | None) -> list[RunRecord]:
    """The runs in `folder`, all of them or those of a sweep (not `latest`) or study.

    Raises:
        ResultsError: the files are not there or not what `write` made, or nothing matches.
    """
    place = Path(folder)
    runs, history = _read(place / RUNS, RUN_COLUMNS), _read(place / HISTORY, _COLUMNS)
    parts = {
        (str(own), str(job)): group
        for (own, job), group in history.groupby(["study", "job_id"], observed=True)
    }
    for key, given in (("study", study), ("sweep", sweep)):
        there = sorted({str(name) for name in runs[key].dropna()})
        if given is not None and given not in there:
            raise refuse(key, given, f"no such {key} in {place}", there)
        runs = runs if given is None else runs[runs[key] == given]
    factors = [str(column) for column in runs if str(column).startswith(FACTOR_PREFIX)]
    keys = [column for column in factors if column != f"{FACTOR_PREFIX}seed"]  # it has its column
    return [_record(row, keys, parts) for row in runs.to_dict("records")]


def _read(path: Path, columns: Sequence[str]) -> Any:
    import pyarrow
    from pyarrow import parquet

    try:
        table = parquet.read_table(path, memory_map=False)
    except FileNotFoundError:
        raise ResultsError(
            f"kept={path.parent}: there is no {path.name}; python experiments/keep.py makes it"
        ) from None
    except (pyarrow.ArrowException, OSError) as error:
        problem = str(error).splitlines()[0]
        raise ResultsError(f"kept={path.parent}: {path.name} is no parquet ({problem})") from error
    absent = [name for name in columns if name not in table.column_names]
    if absent:
        raise ResultsError(f"kept={path.parent}: {path.name} has no column {', '.join(absent)}")
    return table.to_pandas()


def _record(
    row: dict[Any, Any], keys: Sequence[str], parts: dict[tuple[str, str], Any]
) -> RunRecord:
    def text(name: str) -> str | None:
        return row[name] if isinstance(row[name], str) else None

    group = parts.get((str(row["study"]), str(row["job_id"])))
    return RunRecord(
        study=str(row["study"]),
        sweep=text("sweep"),
        job_id=str(row["job_id"]),
        arm=str(row["arm"]),
        baseline=bool(row["baseline"]),
        seed=int(row["seed"]),
        status=str(row["status"]),
        reason=text("reason"),
        factors={key.removeprefix(FACTOR_PREFIX): text(key) for key in keys},
        read=lambda: _points(group),
    )


def _points(group: Any) -> Points:
    if group is None:
        return NONE
    codes, names = group["metric"].factorize()
    return points(
        [str(name) for name in names], codes, group["step"].to_numpy(), group["value"].to_numpy()
    )
