"""The numbers one run logged, as three arrays: a dictionary a number would be most of the time."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.signedinteger]


@dataclass(frozen=True)
class Points:
    """[n] points by metric name, then step; each pair of the two stands once."""

    names: tuple[str, ...]
    """Of the metrics, sorted; some may have no point."""
    codes: npt.NDArray[np.int32]
    """[n] places in `names`."""
    steps: Ints
    """In 32 bits where they fit."""
    values: Floats

    def __len__(self) -> int:
        return len(self.steps)

    def used(self) -> list[str]:
        """The names that have a point."""
        return [self.names[code] for code in np.unique(self.codes)]

    def coded(self, place: Mapping[str, int]) -> npt.NDArray[np.int32]:
        """[n] places of the metrics in another list of names."""
        table = np.array([place.get(name, -1) for name in self.names], dtype=np.int32)
        return table[self.codes] if len(self) else self.codes

    def of(self, name: str) -> tuple[Ints, Floats]:
        """(steps [k], values [k]) of one metric."""
        if name not in self.names:
            return self.steps[:0], self.values[:0]
        code = self.names.index(name)
        low, high = np.searchsorted(self.codes, [code, code + 1])
        return self.steps[low:high], self.values[low:high]


def points(
    names: Sequence[str], codes: npt.ArrayLike, steps: npt.ArrayLike, values: npt.ArrayLike
) -> Points:
    """Points in the order of logging, put in order; of a step logged twice the later one counts."""
    order = sorted(range(len(names)), key=names.__getitem__)
    rank = np.empty(len(names), dtype=np.int32)
    rank[order] = np.arange(len(names), dtype=np.int32)
    metric = rank[np.asarray(codes, dtype=np.int64)]
    step, value = narrow(np.asarray(steps, dtype=np.int64)), np.asarray(values, dtype=np.float64)
    if not _in_order(metric, step):
        by = np.lexsort((step, metric))  # stable: what was logged later stays behind
        metric, step, value = metric[by], step[by], value[by]
        last = np.append((metric[1:] != metric[:-1]) | (step[1:] != step[:-1]), True)
        metric, step, value = metric[last], step[last], value[last]
    return Points(tuple(names[i] for i in order), metric, step, value)


def narrow(numbers: npt.NDArray[np.int64]) -> Ints:
    """The same whole numbers in 32 bits where they fit, else in 64; never a view, which would keep
    all that it is a view of."""
    fits = not len(numbers) or (
        np.iinfo(np.int32).min <= numbers.min() and numbers.max() <= np.iinfo(np.int32).max
    )
    return numbers.astype(np.int32 if fits else np.int64)


def _in_order(metric: npt.NDArray[np.int32], step: Ints) -> bool:
    later = (metric[1:] == metric[:-1]) & (step[1:] > step[:-1])
    return bool(np.all((metric[1:] > metric[:-1]) | later))


def merged(parts: Sequence[Points]) -> Points:
    """Points of several attempts at a run, the newest last: its numbers count."""
    if len(parts) == 1:
        return parts[0]
    names = sorted({name for part in parts for name in part.names})
    place = {name: i for i, name in enumerate(names)}
    return points(
        names,
        _joined([part.coded(place) for part in parts]),
        _joined([part.steps for part in parts]),
        _joined([part.values for part in parts]),
    )


def _joined(arrays: Iterable[npt.NDArray[np.generic]]) -> npt.NDArray[np.generic]:
    found = list(arrays)
    return np.concatenate(found) if found else np.empty(0, dtype=np.int64)


NONE = points([], [], [], [])
"""Of a run that logged nothing."""
