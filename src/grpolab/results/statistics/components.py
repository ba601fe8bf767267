"""Where the spread of final values comes from, and what each factor of a design does."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from grpolab.results.statistics.compare import Comparison, paired
from grpolab.results.statistics.intervals import Floats

Array = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Components:
    """Variances of a run's final value: what its seed brings to all arms, and what is its own."""

    seed: float
    residual: float

    @property
    def correlation(self) -> float:
        """ρ of two arms' runs of one seed, which `grpolab plan` asks for; what pairing gains."""
        whole = self.seed + self.residual
        return self.seed / whole if whole > 0 else float("nan")


def variance_components(values: Floats) -> Components:
    """Of `values` [arms, seeds] = arm + seed + rest, by the mean squares of the two-way table.

    σ²_rest = MS_rest; σ²_seed = (MS_seed − MS_rest) / arms, not below 0. ValueError for fewer than
    2 arms or seeds, or values that are not finite.
    """
    data = np.asarray(values, dtype=float)
    if data.ndim != 2 or min(data.shape) < 2 or not np.isfinite(data).all():
        raise ValueError(f"values: shape {data.shape}, at least 2 arms and 2 seeds are needed")
    arms, seeds = data.shape
    by_seed = data.mean(axis=0) - data.mean()
    rest = data - data.mean(axis=1, keepdims=True) - by_seed
    of_rest = float((rest**2).sum()) / ((arms - 1) * (seeds - 1))
    of_seed = arms * float((by_seed**2).sum()) / (seeds - 1)
    return Components(max(0.0, (of_seed - of_rest) / arms), of_rest)


def factorial_effects(
    levels: npt.ArrayLike, values: Floats, names: list[str], level: float = 0.95
) -> dict[str, Comparison]:
    """Main effects and two-way interactions of a balanced two-level design, by seed.

    `levels` [arms, factors] of −1 and +1, `values` [arms, seeds], `names` [factors]. An effect is
    the mean at +1 less the mean at −1 (an interaction's sign: the product), taken within each seed
    and judged over seeds by the paired t test. In a fraction aliased effects come out equal.
    ValueError where a column is not half −1 and half +1, but for an interaction that is constant
    (aliased with the mean), which is left out.
    """
    signs, data = np.asarray(levels, dtype=float), np.asarray(values, dtype=float)
    if signs.shape != (len(data), len(names)) or not np.isin(signs, (-1.0, 1.0)).all():
        raise ValueError(f"levels: shape {signs.shape} of −1 and +1, [arms, factors], is needed")
    columns = {name: signs[:, i] for i, name in enumerate(names)}
    for name, column in columns.items():
        if column.sum() != 0:
            raise ValueError(f"levels: {name} is not at −1 and at +1 in as many arms")
    for (one, a), (other, b) in combinations(list(columns.items()), 2):
        columns[f"{one}×{other}"] = a * b
    return {
        name: paired(data[column > 0].mean(axis=0), data[column < 0].mean(axis=0), level)
        for name, column in columns.items()
        if abs(column.sum()) < len(column)
    }
