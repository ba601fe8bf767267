"""The final value of each arm: mean, interval, seeds and start."""

from __future__ import annotations

from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    arm_rows,
    counts,
    definitions,
    note,
    row_count,
    row_label,
    unfinished,
)
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles
from grpolab.results.summary import arm_table, check_one_study, run_values


def final_comparison(results: Results, metric: str = "eval/accuracy") -> Figure:
    """Arms from top to bottom, baseline first: final mean, Student-t 95 % interval, seeds, start.

    Small circles are the seeds, the grey tick is the mean before training, the dashed line is the
    baseline's mean. Raises ResultsError for a metric that no run logged.
    """
    check_one_study(results)
    table, values = arm_table(results, metric), run_values(results, metric)
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        labels = [row_label(str(arm)) for arm in table["arm"]]
        figure = style.new_figure(0.75 * style.DOUBLE_COLUMN, 0.85 + 0.25 * row_count(labels))
        axes = figure.subplots()
        for y, row in enumerate(table.itertuples(index=False)):
            seeds = values.loc[values["arm"] == row.arm, "final"].dropna()
            _arm_row(axes, y, row, seeds, styles[str(row.arm)])
        arm_rows(axes, labels)
        axes.set_xlim(*_final_limits(table, values, describe(metric).bounded))
        axes.set_xlabel(f"{describe(metric).label} ({FINAL})")
        _baseline_line(axes, table)
        figure.legend(handles=_final_handles(), loc="outside lower center", ncols=3)
    return figure


def final_comparison_caption(results: Results, metric: str = "eval/accuracy") -> str:
    """What the comparison shows: n, the interval, the definitions, runs not done."""
    bounded = "Intervals are cut at 0 and 1. " if describe(metric).bounded else ""
    return style.join(
        [
            f"Final {describe(metric).in_a_sentence} of each arm ({FINAL}, at least one).",
            "Large marker: mean over seeds; bar: Student-t 95 % interval of that mean (none for "
            "a single seed); small circles: seeds; grey tick: mean of the first evaluation; "
            "dashed line: baseline mean. " + bounded.strip(),
            "Intervals are per arm; arms are paired by seed, so verdicts rest on the paired "
            "differences and not on overlap here.",
            f"Seeds: {counts(results)}.",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )


def _arm_row(axes: Axes, y: int, row: Any, seeds: pd.Series[float], look: ArmStyle) -> None:
    final, ends = float(row.final), np.array([row.low, row.high], dtype=float)
    if describe(str(row.metric)).bounded:
        ends = ends.clip(0, 1)
    axes.plot(ends, [y, y], color=look.colour, lw=1.4, solid_capstyle="butt", zorder=3)
    axes.plot(
        seeds, np.full(len(seeds), y + 0.28), "o", ms=2.6, mfc="none", mec=look.colour, mew=0.6
    )
    start = float(row.start)
    axes.plot([start], [y], "|", color="0.45", ms=8, mew=1.2, zorder=2)
    axes.plot([final], [y], look.marker, color=look.colour, ms=5, mec="white", mew=0.4, zorder=4)
    text = f"n = {row.n}" if row.n == row.runs else f"n = {row.n} of {row.runs}"
    note(axes, y, text)


def _final_limits(table: pd.DataFrame, values: pd.DataFrame, bounded: bool) -> tuple[float, float]:
    """Everything shown with a margin; intervals of a bounded metric end at 0 and 1."""
    ends = table[["low", "high"]].to_numpy(dtype=float).ravel()
    if bounded:
        ends = ends.clip(0, 1)
    shown = np.concatenate([ends, values[["start", "final"]].to_numpy(dtype=float).ravel()])
    shown = shown[np.isfinite(shown)]
    if not len(shown):
        return 0.0, 1.0
    margin = 0.04 * (np.ptp(shown) or 1.0)
    low, high = float(shown.min() - margin), float(shown.max() + margin)
    return (max(low, -0.02), min(high, 1.02)) if bounded else (low, high)


def _baseline_line(axes: Axes, table: pd.DataFrame) -> None:
    means = table.loc[table["baseline"], "final"].dropna()
    if len(means):
        axes.axvline(float(means.iloc[0]), color="0.5", lw=0.7, ls=(0, (4, 3)), zorder=1)


def _final_handles() -> list[Line2D]:
    bar = Line2D([], [], color="0.2", marker="o", ms=4.5, lw=1.4, label="mean, 95 % interval")
    seed = Line2D([], [], color="0.2", marker="o", ls="", ms=2.6, mfc="none", label="seed")
    start = Line2D([], [], color="0.45", marker="|", ls="", ms=8, mew=1.2, label="before training")
    return [bar, seed, start]
