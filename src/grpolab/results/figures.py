"""The figures: each one function from tidy frames to a Figure, and one to its caption."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import EngFormatter, MaxNLocator

from grpolab.results import style
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles
from grpolab.results.summary import arm_table, check_metric, check_one_study, run_values

X_AXES = ("step", "tokens", "wall")
_X_LABELS = {"step": "Step", "tokens": "Generated tokens", "wall": "Wall time (s)"}
_FINAL = "final: mean of the last 10 % of evaluations"


def learning_curves(
    results: Results,
    metrics: Sequence[str] = ("reward/mean", "eval/accuracy"),
    xs: Sequence[str] = X_AXES,
) -> Figure:
    """A grid of curves: a row a metric, a column an x axis (step, tokens or wall).

    Seeds are faint, their mean is bold. A mean point is the mean of x and of y over the seeds at
    the same step, and is drawn at the steps that every run of the arm that did not fail reached;
    a failed run ends in a cross. Raises ResultsError for a metric that no run logged.
    """
    check_one_study(results)
    for metric in metrics:
        check_metric(results, metric)
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        legend_rows = -(-len(styles) // 4)
        height = 1.75 * len(metrics) + 0.2 + 0.16 * legend_rows
        figure = style.new_figure(_grid_width(len(xs)), height)
        grid = figure.subplots(len(metrics), len(xs), sharex="col", sharey="row", squeeze=False)
        for row, metric in zip(grid, metrics, strict=True):
            for axes, x in zip(row, xs, strict=True):
                _panel(axes, results, metric, x, styles)
            row[0].set_ylabel(describe(metric).label)
        for axes, x in zip(grid[-1], xs, strict=True):
            _label_x(axes, x)
        handles = [_handle(arm_style) for arm_style in styles.values()]
        columns = min(4 if len(xs) > 1 else 2, len(handles))
        figure.legend(handles=handles, loc="outside lower center", ncols=columns)
    return figure


def learning_curves_caption(
    results: Results,
    metrics: Sequence[str] = ("reward/mean", "eval/accuracy"),
    xs: Sequence[str] = X_AXES,
) -> str:
    """What the curves show: n, what is faint and bold, smoothing, definitions, runs not done."""
    against = ", ".join(_X_LABELS[x].lower() for x in xs)
    windows = [
        f"{describe(metric).label} is a centred rolling mean over {smoothing(results, metric)} "
        "steps, for drawing only."
        for metric in metrics
        if smoothing(results, metric) > 1
    ]
    return style.join(
        [
            f"Learning curves against {against}.",
            "Thin lines: single seeds; bold lines: their mean at equal steps (mean of x against "
            "mean of y), without an interval.",
            f"Seeds: {_counts(results)}.",
            *windows,
            *_definitions(metrics),
            _unfinished(results.runs),
        ]
    )


def final_comparison(results: Results, metric: str = "eval/accuracy") -> Figure:
    """Arms from top to bottom, baseline first: final mean, Student-t 95 % interval, seeds, start.

    Small circles are the seeds, the grey tick is the mean before training, the dashed line is the
    baseline's mean. Raises ResultsError for a metric that no run logged.
    """
    check_one_study(results)
    table, values = arm_table(results, metric), run_values(results, metric)
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(0.75 * style.DOUBLE_COLUMN, 0.85 + 0.25 * len(table))
        axes = figure.subplots()
        for y, row in enumerate(table.itertuples(index=False)):
            seeds = values.loc[values["arm"] == row.arm, "final"].dropna()
            _arm_row(axes, y, row, seeds, styles[str(row.arm)])
        axes.set_yticks(range(len(table)), [styles[str(arm)].label for arm in table["arm"]])
        axes.set_ylim(len(table) - 0.4, -0.6)
        axes.tick_params(axis="y", length=0)
        axes.grid(visible=False, axis="y")
        axes.set_xlim(*_final_limits(table, values, describe(metric).bounded))
        axes.set_xlabel(f"{describe(metric).label} ({_FINAL})")
        _baseline_line(axes, table)
        figure.legend(handles=_final_handles(), loc="outside lower center", ncols=3)
    return figure


def final_comparison_caption(results: Results, metric: str = "eval/accuracy") -> str:
    """What the comparison shows: n, the interval, the definitions, runs not done."""
    bounded = "Intervals are cut at 0 and 1. " if describe(metric).bounded else ""
    return style.join(
        [
            f"Final {describe(metric).label.lower()} of each arm ({_FINAL}, at least one).",
            "Large marker: mean over seeds; bar: Student-t 95 % interval of that mean (none for "
            "a single seed); small circles: seeds; grey tick: mean of the first evaluation; "
            "dashed line: baseline mean. " + bounded.strip(),
            "Intervals are per arm; arms are paired by seed, so verdicts rest on the paired "
            "differences and not on overlap here.",
            f"Seeds: {_counts(results)}.",
            *_definitions([metric]),
            _unfinished(results.runs),
        ]
    )


def smoothing(results: Results, metric: str) -> int:
    """The rolling window in steps for drawing `metric`: a twentieth of the longest run, odd.

    1 (none) for evaluations and for runs of fewer than 40 logged steps.
    """
    counts = results.history.loc[results.history["metric"] == metric].groupby("job_id").size()
    if not describe(metric).every_step or counts.empty or counts.max() < 40:
        return 1
    return int(counts.max()) // 20 // 2 * 2 + 1


def _panel(axes: Axes, results: Results, metric: str, x: str, styles: dict[str, ArmStyle]) -> None:
    window = smoothing(results, metric)
    chosen = results.history[results.history["metric"] == metric]
    chosen = chosen.replace({"value": {np.inf: np.nan, -np.inf: np.nan}})
    failed = set(results.runs.loc[results.runs["status"] == "failed", "job_id"])
    # the baseline last, on top: every other curve is read against it
    for arm in reversed(list(styles)):
        look = styles[arm]
        seeds = dict(_seed_curves(chosen[chosen["arm"] == arm], x, window))
        for job_id, curve in seeds.items():
            axes.plot(curve["x"], curve["y"], color=look.colour, lw=0.5, alpha=0.35, zorder=2)
            if job_id in failed and len(curve):
                end = curve.iloc[-1:]
                axes.plot(end["x"], end["y"], "x", color=look.colour, ms=4, mew=1, zorder=5)
        mean = _mean_curve([curve for job_id, curve in seeds.items() if job_id not in failed])
        # a marker on each of up to 12 evaluations; thousands of training steps get none
        sparse = not describe(metric).every_step
        axes.plot(
            mean["x"],
            mean["y"],
            color=look.colour,
            linestyle=look.line,
            lw=look.width,
            marker=look.marker if sparse else "",
            markevery=max(1, len(mean) // 12),
            ms=3,
            mec="white",
            mew=0.3,
            label=look.label,
            zorder=4 if look.colour == "black" else 3,
        )


def _seed_curves(history: pd.DataFrame, x: str, window: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """(job_id, frame of x and y indexed by step), y smoothed."""
    for job_id, group in history.groupby("job_id", sort=True):
        curve = group.sort_values("step").set_index("step")
        rolled = curve["value"].rolling(window, center=True, min_periods=1).mean()
        xs = curve.index.to_numpy() if x == "step" else curve[x].to_numpy()
        yield str(job_id), pd.DataFrame({"x": xs, "y": rolled}, index=curve.index)


def _mean_curve(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean of x and y over seeds at the steps all of them have."""
    if not curves:
        return pd.DataFrame({"x": [], "y": []})
    together = pd.concat(curves).groupby(level=0)
    # min_count: a diverged seed's NaN breaks the line, it does not leave the mean
    mean: pd.DataFrame = together.sum(min_count=len(curves)) / len(curves)
    return mean[together.size() == len(curves)]


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
    axes.annotate(
        text,
        (1.01, y),
        xycoords=("axes fraction", "data"),
        va="center",
        fontsize=6.5,
        color="0.3",
        annotation_clip=False,
    )


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


def _handle(look: ArmStyle) -> Line2D:
    return Line2D(
        [], [], color=look.colour, linestyle=look.line, lw=look.width, marker=look.marker, ms=3.5,
        mec="white", mew=0.3, label=look.label,
    )  # fmt: skip


def _final_handles() -> list[Line2D]:
    bar = Line2D([], [], color="0.2", marker="o", ms=4.5, lw=1.4, label="mean, 95 % interval")
    seed = Line2D([], [], color="0.2", marker="o", ls="", ms=2.6, mfc="none", label="seed")
    start = Line2D([], [], color="0.45", marker="|", ls="", ms=8, mew=1.2, label="before training")
    return [bar, seed, start]


def _label_x(axes: Axes, x: str) -> None:
    axes.set_xlabel(_X_LABELS[x])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=x == "step"))
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))


def _grid_width(columns: int) -> float:
    return style.SINGLE_COLUMN if columns == 1 else style.DOUBLE_COLUMN


def _counts(results: Results) -> str:
    """`n = 2 an arm`, or the count of each arm where they differ; done runs only."""
    done = results.runs[results.runs["status"] == "done"]
    sizes = {arm: int((done["arm"] == arm).sum()) for arm in arm_styles(results.runs)}
    if len(set(sizes.values())) == 1:
        return f"n = {next(iter(sizes.values()))} finished runs an arm"
    return "finished runs " + ", ".join(f"{arm}: n = {n}" for arm, n in sizes.items())


def _definitions(metrics: Sequence[str]) -> list[str]:
    return [f"{describe(m).label} ({m}): {describe(m).definition}." for m in metrics]


def _unfinished(runs: pd.DataFrame) -> str:
    """The runs that are not done, by status: they are an outcome too."""
    counts = runs.loc[runs["status"] != "done", "status"].value_counts().sort_index()
    if counts.empty:
        return ""
    listed = ", ".join(f"{count} {status}" for status, count in counts.items())
    return f"Not finished: {listed} of {len(runs)} runs; a cross ends a failed run's curve."
