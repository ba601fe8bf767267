"""One number for a learning curve: where it ends, its area, when it gets somewhere."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from grpolab.results.statistics.intervals import Floats

Array = npt.NDArray[np.float64]
FINAL_SHARE_PERCENT = 10


@dataclass(frozen=True)
class Crossing:
    """The x at which a curve first reached a threshold; `reached` False: not by that x."""

    at: float
    reached: bool


def final_value(values: Floats) -> float:
    """Mean of the last 10 % of `values` [evaluations], rounded up to whole ones; NaN if empty."""
    series = np.asarray(values, dtype=float)
    last = -(-len(series) * FINAL_SHARE_PERCENT // 100)
    return float(series[-last:].mean()) if last else float("nan")


def area_per_token(tokens: Floats, values: Floats) -> float:
    """Area under `values` [n] over `tokens` [n], divided by the tokens from first to last.

    The mean height of the curve in the values' own unit, by trapezoids; curves of different budgets
    compare only over the same tokens. NaN without a span. ValueError where tokens decrease.
    """
    x, y = _curve(tokens, values)
    if len(x) < 2 or x[-1] == x[0]:
        return float("nan")
    return float(np.trapezoid(y, x) / (x[-1] - x[0]))


def crossing(x: Floats, values: Floats, threshold: float, higher: bool = True) -> Crossing:
    """The first `x` (steps, tokens) whose value reaches `threshold`, from above if not `higher`.

    A curve that never does is censored at its last x: it takes longer than that, not that long.
    Nothing is interpolated: between evaluations nobody looked.
    """
    at, y = _curve(x, values)
    hit = y >= threshold if higher else y <= threshold
    if hit.any():
        return Crossing(float(at[int(hit.argmax())]), True)
    return Crossing(float(at[-1]) if len(at) else float("nan"), False)


def median_crossing(crossings: list[Crossing]) -> float:
    """Median x of runs some of which are censored, by Kaplan and Meier; inf if half never did.

    S(x) = Π over crossings at or before x of (1 − d / at risk); the median is the first x with
    S ≤ 1/2. A run censored at x counts as at risk there.
    """
    known = [c for c in crossings if np.isfinite(c.at)]
    survival = 1.0 if known else float("nan")
    for at in sorted({c.at for c in known if c.reached}):
        risk = sum(c.at >= at for c in known)
        survival *= 1 - sum(c.reached and c.at == at for c in known) / risk
        if survival <= 0.5 + 1e-12:
            return at
    return float("inf") if known else float("nan")


def _curve(x: Floats, values: Floats) -> tuple[Array, Array]:
    at, y = np.asarray(x, dtype=float), np.asarray(values, dtype=float)
    if at.shape != y.shape or (np.diff(at) < 0).any():
        raise ValueError(f"x: {len(at)} for {len(y)} values given; as many, ascending, are needed")
    return at, y
