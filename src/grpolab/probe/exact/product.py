"""A product of all factors: what each choice does to the error, whatever it is combined with."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.probe.exact.arms import FACTORS

MEASURED = ("scale", "direction_bias", "noise_to_signal", "rescaled_mse")
"""What a compact table keeps of an arm."""
CROSSED = ("advantage", "clip", "kl", "aggregation", "correction")
"""The factors of a balanced product: a KL with its placement is one, since none has no place."""


def write_compact(frame: pd.DataFrame, path: Path, digits: int = 4) -> None:
    """bias.parquet: factors, conditions, `MEASURED` of so many significant digits, exact."""
    conditions = ["group_size", "staleness", "mismatch", "beta"]
    kept = frame[[*FACTORS, *conditions, *MEASURED, "exact"]].copy()
    for name in FACTORS:
        kept[name] = kept[name].astype("category")
    for name in MEASURED:
        kept[name] = significant(kept[name].to_numpy(), digits)
    kept.to_parquet(path, index=False, compression="zstd", compression_level=19)


def significant(values: npt.NDArray[np.float64], digits: int) -> npt.NDArray[np.float32]:
    """Values rounded to so many significant digits; what is below 1e-9, an exact zero in all but
    rounding, is 0."""
    rounds = np.isfinite(values) & (np.abs(values) > 1e-9)
    known = np.where(rounds, values, 1.0)
    unit = 10.0 ** (np.floor(np.log10(np.abs(known))) - digits + 1)
    rounded = np.where(rounds, np.round(known / unit) * unit, 0.0)
    return np.where(np.isfinite(values), rounded, values).astype(np.float32)


def crossed(frame: pd.DataFrame) -> pd.DataFrame:
    """The frame with `kl` as a factor of its own right: `k3 in the reward`, `none`."""
    where = frame["placement"].astype(str).str.replace("_", " ")
    named = frame["kl"].astype(str) + " in the " + where
    return frame.assign(kl=named.where(frame["kl"] != "none", "none"))


def shares(frame: pd.DataFrame, y: str = "rescaled_mse") -> pd.DataFrame:
    """How much of the variance of `y` over the arms is whose doing.

    Sums of squares of a balanced product: those of a factor's means, and for a pair those of its
    cells' means less what both do alone.

    Returns:
        a row for each factor (first = second) and pair with columns first, second, share; the last,
        first = `more`, is what only three or more factors together explain.

    Raises:
        ValueError: some combination is missing or there twice, so that there is no such split.
    """
    table = crossed(frame)
    counts = {f: table[f].nunique() for f in CROSSED}
    names = [f for f in CROSSED if counts[f] > 1]
    if len(table) != np.prod(list(counts.values())) or table[list(CROSSED)].duplicated().any():
        raise ValueError("shares: the arms are no full product; allowed: every combination once.")
    cells = table.set_index(names)[y].sort_index()
    grand, whole = cells.mean(), ((cells - cells.mean()) ** 2).mean()
    alone = {f: cells.groupby(level=f).mean() - grand for f in names}
    rows = [_share(f, f, alone[f], whole) for f in names]
    for a, b in itertools.combinations(names, 2):
        both = cells.groupby(level=[a, b]).mean() - grand
        rest = both.sub(alone[a], level=a).sub(alone[b], level=b)
        rows.append(_share(a, b, rest, whole))
    found = pd.DataFrame(rows)
    left = {"first": "more", "second": "more", "share": 1 - found["share"].sum()}
    return pd.concat([found, pd.DataFrame([left])], ignore_index=True)


def _share(a: str, b: str, means: pd.Series[float], whole: float) -> dict[str, object]:
    return {"first": a, "second": b, "share": float((means**2).mean() / whole) if whole else 0.0}


def ranges(
    frame: pd.DataFrame, factors: Sequence[str] = FACTORS, y: str = "rescaled_mse"
) -> pd.DataFrame:
    """Columns factor, choice, low, median, high: the 5th, 50th and 95th percentile of `y` over all
    that a choice is combined with. A placement's are those of arms with a KL."""
    rows = []
    for factor in factors:
        own = frame[frame["kl"] != "none"] if factor == "placement" else frame
        for choice, group in own.groupby(factor, observed=True):
            low, median, high = np.quantile(group[y], [0.05, 0.5, 0.95])
            rows.append(
                {"factor": factor, "choice": choice, "low": low, "median": median, "high": high}
            )
    return pd.DataFrame(rows)
