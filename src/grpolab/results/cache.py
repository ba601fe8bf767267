"""Points that were read before, as parquet: a store is asked for what has changed since.

A cache is a help and never a condition: one that is corrupt, of another version, or in a place that
cannot be written counts as none. Numbers and names are all it holds; nothing in it is executed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from grpolab.results.points import Points, points

VERSION = "1"
SMALLEST = 50_000
"""Points from which on a cache is read faster than the source."""
KEPT = 32
"""Files; the ones not used for longest go."""


def folder() -> Path:
    """Where caches lie: $GRPOLAB_CACHE, or ~/.cache/grpolab."""
    return Path(os.environ.get("GRPOLAB_CACHE") or Path.home() / ".cache" / "grpolab") / "results"


def path_of(*request: object) -> Path:
    """The file for a source and what is asked of it."""
    name = hashlib.sha256(json.dumps([VERSION, *map(str, request)]).encode()).hexdigest()[:24]
    return folder() / f"{name}.parquet"


def read(path: Path) -> dict[str, Points]:
    """{fingerprint: points}; empty where there is nothing usable."""
    if not path.is_file():
        return {}
    import pyarrow
    from pyarrow import parquet

    try:
        with _system_memory(), parquet.ParquetFile(path, memory_map=False) as file:
            notes = json.loads(file.schema_arrow.metadata[b"grpolab"])
            if notes["version"] != VERSION or sum(notes["counts"]) != file.metadata.num_rows:
                return {}
            # a column at a time: Arrow's copy of one is gone before the next one's is made
            columns = [file.read([name], use_threads=False)[name].to_numpy() for name in _COLUMNS]
        found = _parts(columns, notes)
        os.utime(path)
        return found
    except (pyarrow.ArrowException, OSError, ValueError, KeyError, TypeError, IndexError):
        return {}


_COLUMNS = ("metric", "step", "value")


@contextmanager
def _system_memory() -> Iterator[None]:
    """Arrow's own pool keeps much of what was freed, the system's does not."""
    import pyarrow

    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pyarrow.system_memory_pool())
    try:
        yield
    finally:
        pyarrow.set_memory_pool(before)


def _parts(columns: Sequence[Any], notes: Any) -> dict[str, Points]:
    codes, steps, values = columns
    names = [str(name) for name in notes["names"]]
    if len(codes) and not 0 <= codes.min() <= codes.max() < len(names):
        raise ValueError("a metric without a name")
    found, start = {}, 0
    for fingerprint, count in zip(notes["fingerprints"], notes["counts"], strict=True):
        part = slice(start, start + int(count))
        found[str(fingerprint)] = points(names, codes[part], steps[part], values[part])
        start += int(count)
    return found


def write(path: Path, fingerprints: Sequence[str], parts: Sequence[Points]) -> None:
    """Replaces a cache whole, or leaves it."""
    counts = [len(part) for part in parts]
    if sum(counts) < SMALLEST:
        return
    import pyarrow
    from pyarrow import parquet

    names = sorted({name for part in parts for name in part.names})
    place = {name: i for i, name in enumerate(names)}
    notes = {
        "version": VERSION,
        "names": names,
        "fingerprints": list(fingerprints),
        "counts": counts,
    }
    kind = np.result_type(*(part.steps.dtype for part in parts))
    table = pyarrow.table(
        {
            "metric": pyarrow.chunked_array([part.coded(place) for part in parts]),
            "step": pyarrow.chunked_array([part.steps.astype(kind, copy=False) for part in parts]),
            "value": pyarrow.chunked_array([part.values for part in parts]),
        }
    ).replace_schema_metadata({"grpolab": json.dumps(notes)})
    with suppress(OSError, pyarrow.ArrowException):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, scratch = tempfile.mkstemp(dir=path.parent, suffix=".tmp")
        os.close(handle)
        try:
            parquet.write_table(table, scratch, compression="zstd")
            Path(scratch).replace(path)
        finally:
            Path(scratch).unlink(missing_ok=True)
        _prune(path.parent)


def _prune(place: Path) -> None:
    files = sorted(place.glob("*.parquet"), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in files[KEPT:]:
        old.unlink(missing_ok=True)
