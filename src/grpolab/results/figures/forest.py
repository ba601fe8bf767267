"""The verdicts as a forest plot: each arm's difference to the baseline with its interval."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    Drawn,
    NothingToDrawError,
    arm_rows,
    legend,
    note,
    row_count,
    row_label,
)
from grpolab.results.frames import refuse
from grpolab.results.metrics import decimals, describe, spoken


class Look(NamedTuple):
    """How a verdict is drawn: colour and marker both tell it, for prints without colour."""

    colour: str
    marker: str
    filled: bool


LOOKS = {
    "better": Look("#0072B2", "^", True),
    "worse": Look("#D55E00", "v", True),
    "equivalent": Look("#009E73", "s", True),
    "undecided": Look("0.35", "o", False),
}


def forest(verdicts: pd.DataFrame, margin: float | None = None) -> Drawn:
    """One row an arm, best on top: Δ = arm − baseline, its interval, its verdict, n.

    `verdicts` has the columns of `verdicts.csv`, of one study and metric. The interval is the one
    of the frame (`low`, `high`, named in `interval`); ±`margin`, where given, is shaded. An arm
    without a finite difference keeps its row and says so.
    """
    table = _rows(verdicts)
    labels = [row_label(str(arm)) for arm in table["arm"]]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 0.8 + 0.24 * row_count(labels))
        axes = figure.subplots()
        _frame(axes, table, margin)
        for y, row in enumerate(table.to_dict("records")):
            _draw_row(axes, y, row)
        arm_rows(axes, labels)
        label = describe(str(table["metric"].iloc[0])).label
        axes.set_xlabel(f"Δ {label} against {_baseline(table)}")
        _legend(figure, table, margin)
    return Drawn(figure, _caption(table, margin))


def _baseline(table: pd.DataFrame) -> str:
    """What the arms are compared with, in words, be it one arm or each row's own."""
    names = [style.readable(str(name)) for name in dict.fromkeys(table["baseline"])]
    return names[0] if len(names) == 1 else "the baseline's choice at the same level"


def _rows(verdicts: pd.DataFrame) -> pd.DataFrame:
    """Rows of one study and metric, the best arm first, arms without a difference last."""
    if verdicts.empty:
        raise NothingToDrawError(
            "figures=forest: no verdicts, there is no arm to compare with a baseline"
        )
    for column in ("study", "metric"):
        found = sorted({str(value) for value in verdicts[column]})
        if len(found) > 1:
            raise refuse(column, "null", f"the verdicts are of several, choose one {column}", found)
    up = describe(str(verdicts["metric"].iloc[0])).higher_is_better
    return verdicts.sort_values(
        ["delta", "arm"], ascending=[not up, True], na_position="last"
    ).reset_index(drop=True)


def _frame(axes: Axes, table: pd.DataFrame, margin: float | None) -> None:
    """The line of no difference, the margin's band, and limits that show all of it."""
    axes.axvline(0, color="0.3", lw=0.8, zorder=1)
    ends = table[["delta", "low", "high"]].to_numpy(dtype=float).ravel()
    shown = np.concatenate([ends[np.isfinite(ends)], [0.0]])
    if margin is not None:
        axes.axvspan(-margin, margin, color="0.88", lw=0, zorder=0)
        shown = np.concatenate([shown, [-margin, margin]])
    pad = 0.05 * (np.ptp(shown) or 1.0)
    axes.set_xlim(float(shown.min() - pad), float(shown.max() + pad))


def _draw_row(axes: Axes, y: int, row: dict[Any, Any]) -> None:
    delta, low, high = float(row["delta"]), float(row["low"]), float(row["high"])
    look = LOOKS[str(row["verdict"])]
    _, _, failed = str(row["test"]).partition("; failed: ")
    lost = f"  failed {failed.split(',')[0]}" if failed and not failed.startswith("0 ") else ""
    if not math.isfinite(delta):
        note(axes, y, f"n = {row['n']}  nothing to compare{lost}")
        return
    # a bound of NaN or infinity: nothing is drawn rather than a bar that ends somewhere
    if math.isfinite(low) and math.isfinite(high):
        axes.plot([low, high], [y, y], color=look.colour, lw=1.4, solid_capstyle="butt", zorder=3)
        span = f"[{decimals(low, signed=True)}, {decimals(high, signed=True)}]"
    else:
        span = "no interval"
    axes.plot(
        [delta], [y], look.marker, color=look.colour, ms=5, mew=1,
        mfc=look.colour if look.filled else "white", zorder=4,
    )  # fmt: skip
    told = f"n = {row['n']}  {decimals(delta, signed=True)} {span}{lost}"
    note(axes, y, told.replace("-", "−"))


def _legend(figure: Figure, table: pd.DataFrame, margin: float | None) -> None:
    used = [name for name in LOOKS if (table["verdict"] == name).any()]
    metric = str(table["metric"].iloc[0])
    handles = [
        Line2D(
            [], [], color=look.colour, marker=look.marker, lw=1.4, ms=5, mew=1,
            mfc=look.colour if look.filled else "white", label=spoken(name, metric),
        )
        for name, look in ((name, LOOKS[name]) for name in used)
    ]  # fmt: skip
    if margin is not None:
        handles.append(Line2D([], [], color="0.88", lw=7, label=f"equivalence margin ±{margin:g}"))
    legend(figure, handles)


def _caption(table: pd.DataFrame, margin: float | None) -> str:
    metric = describe(str(table["metric"].iloc[0]))
    means = ", ".join(sorted({f"{value:.3f}" for value in table["baseline_mean"].dropna()}))
    kinds = ", ".join(dict.fromkeys(str(kind) for kind in table["interval"] if kind))
    tests = ", ".join(dict.fromkeys(str(test).partition(";")[0] for test in table["test"]))
    sizes = [int(n) for n in table["n"]]
    n = f"n = {sizes[0]}" if len(set(sizes)) == 1 else f"n = {min(sizes)} to {max(sizes)}"
    side = "right" if metric.higher_is_better else "left"
    better = "" if metric.better == "neither" else f"; better is to the {side}"
    band = f"Grey band: equivalence margin ±{margin:g}." if margin is not None else ""
    return style.join(
        [
            f"Difference of each arm's {metric.in_a_sentence} to the baseline's ({FINAL}; "
            f"baseline: {_baseline(table)}, mean {means or 'none'}){better}.",
            f"Bars: {kinds or 'no'} intervals of the difference; {n} runs or pairs of runs of one "
            "seed, beside each row.",
            f"Verdicts, by colour and marker, from p by {tests}, corrected over arms: "
            f"{', '.join(dict.fromkeys(str(c) for c in table['correction']))}.",
            "Failed runs have no value and leave n; how many failed stands beside their arm.",
            band,
            f"{metric.label} ({metric.name}): {metric.definition}.",
        ]
    )
