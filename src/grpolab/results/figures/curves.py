"""Curves over training: a metric against steps, tokens or wall time, seeds faint, mean bold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator

from grpolab.results import style
from grpolab.results.figures.common import (
    arm_legend,
    counts,
    definitions,
    legend_height,
    seen,
    single_or_double,
    unfinished,
)
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles
from grpolab.results.summary import check_metric, check_one_study

X_AXES = ("step", "tokens", "wall")
X_LABELS = {"step": "Step", "tokens": "Generated tokens", "wall": "Wall time (s)"}


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
        width = single_or_double(len(xs))
        height = 1.75 * len(metrics) + 0.1 + legend_height(styles, width)
        figure = style.new_figure(width, height)
        grid = figure.subplots(len(metrics), len(xs), sharex="col", sharey="row", squeeze=False)
        for row, metric in zip(grid, metrics, strict=True):
            for axes, x in zip(row, xs, strict=True):
                panel(axes, results, metric, x, styles)
            row[0].set_ylabel(describe(metric).label)
        for axes, x in zip(grid[-1], xs, strict=True):
            label_x(axes, x)
        arm_legend(figure, seen(results, styles, metrics))
    return figure


def learning_curves_caption(
    results: Results,
    metrics: Sequence[str] = ("reward/mean", "eval/accuracy"),
    xs: Sequence[str] = X_AXES,
) -> str:
    """What the curves show: n, what is faint and bold, smoothing, definitions, runs not done."""
    against = ", ".join(X_LABELS[x].lower() for x in xs)
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
            f"Seeds: {counts(results)}.",
            *windows,
            *definitions(metrics),
            unfinished(results.runs),
        ]
    )


def smoothing(results: Results, metric: str) -> int:
    """The rolling window in steps for drawing `metric`: a twentieth of the longest run, odd.

    1 (none) for evaluations and for runs of fewer than 40 logged steps.
    """
    counts = (
        results.history.loc[results.history["metric"] == metric]
        .groupby("job_id", observed=True)
        .size()
    )
    if not describe(metric).every_step or counts.empty or counts.max() < 40:
        return 1
    return int(counts.max()) // 20 // 2 * 2 + 1


def panel(axes: Axes, results: Results, metric: str, x: str, styles: dict[str, ArmStyle]) -> None:
    window = smoothing(results, metric)
    chosen = results.history[results.history["metric"] == metric]
    chosen = chosen.replace({"value": {np.inf: np.nan, -np.inf: np.nan}})
    failed = set(results.runs.loc[results.runs["status"] == "failed", "job_id"])
    faint = max(0.15, min(0.35, 6 / max(1, len(results.runs))))  # of many seeds: a haze
    # solid lines first, the baseline's widest of all: where curves coincide, both stay visible
    for arm in styles:
        look = styles[arm]
        seeds = dict(seed_curves(chosen[chosen["arm"] == arm], x, window))
        for job_id, curve in seeds.items():
            axes.plot(curve["x"], curve["y"], color=look.colour, lw=0.5, alpha=faint, zorder=2)
            if job_id in failed:
                _cross(axes, curve, look)
        mean = mean_curve([curve for job_id, curve in seeds.items() if job_id not in failed])
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
            zorder=3 if look.line == "-" else 4,
        )


def _cross(axes: Axes, curve: pd.DataFrame, look: ArmStyle) -> None:
    """Where a failed run ends: at its last finite value, on the axis where it has none."""
    finite = curve[np.isfinite(curve["y"].to_numpy(dtype=float))]
    end = (finite if len(finite) else curve.fillna({"y": 0.0})).iloc[-1:]
    where = axes.transData if len(finite) else axes.get_xaxis_transform()
    axes.plot(
        end["x"], end["y"], "x", color=look.colour, ms=4, mew=1, zorder=5, transform=where,
        clip_on=False,
    )  # fmt: skip


def seed_curves(history: pd.DataFrame, x: str, window: int) -> Iterator[tuple[str, pd.DataFrame]]:
    """(job_id, frame of x and y indexed by step), y smoothed."""
    for job_id, group in history.groupby("job_id", sort=True, observed=True):
        curve = group.sort_values("step").set_index("step")
        rolled = curve["value"].rolling(window, center=True, min_periods=1).mean()
        xs = curve.index.to_numpy() if x == "step" else curve[x].to_numpy()
        yield str(job_id), pd.DataFrame({"x": xs, "y": rolled}, index=curve.index)


def mean_curve(curves: Sequence[pd.DataFrame]) -> pd.DataFrame:
    """Mean of x and y over seeds at the steps all of them have."""
    if not curves:
        return pd.DataFrame({"x": [], "y": []})
    together = pd.concat(curves).groupby(level=0)
    # min_count: a diverged seed's NaN breaks the line, it does not leave the mean
    mean: pd.DataFrame = together.sum(min_count=len(curves)) / len(curves)
    return mean[together.size() == len(curves)]


def label_x(axes: Axes, x: str) -> None:
    axes.set_xlabel(X_LABELS[x])
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=x == "step"))
    if x == "tokens":
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
