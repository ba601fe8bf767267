"""The distance to the reference: its estimators beside each other, and what was gained for it."""

from __future__ import annotations

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd
from matplotlib.axes import Axes

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    FINAL_STEPS,
    INTERVAL,
    Drawn,
    NothingToDrawError,
    arm_legend,
    arm_means,
    counts,
    cut,
    definitions,
    finals,
    handle,
    legend,
    legend_height,
    logged,
    need,
    row_label,
    single_or_double,
    unfinished,
    whisker,
    without,
)
from grpolab.results.figures.curves import label_x, mean_curve, seed_curves, smoothing
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import arm_styles

Array = npt.NDArray[np.float64]
ESTIMATORS = ("kl/ref_k1", "kl/ref_k2", "kl/ref_k3")
MOST_ARMS = 12  # panels of one page
DISTANCE = "kl/ref_k3"  # unbiased and never negative, so that it has a square root


def kl_estimators(results: Results) -> Drawn:
    """k1, k2 and k3 of the same tokens on one axis, a panel an arm: where they part."""
    metrics = logged("kl_estimators", results, ESTIMATORS)
    arms = [arm for arm in arm_styles(results.runs) if _has(results, arm, metrics)]
    shown = arms[:MOST_ARMS]
    columns = min(3, len(shown))
    rows = -(-len(shown) // columns)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(single_or_double(columns), 1.6 * rows + 0.45)
        grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
        for axes in grid.flat[len(shown) :]:
            axes.set_visible(False)
        for axes, arm in zip(grid.flat, shown, strict=False):
            _estimators(axes, results, arm, metrics)
        for axes in grid[:, 0]:
            axes.set_ylabel("KL to reference (nats)")
        for column in range(columns):  # a step axis under the lowest panel of each column
            lowest = grid[(len(shown) - 1 - column) // columns, column]
            label_x(lowest, "step")
            lowest.tick_params(axis="x", labelbottom=True)
        handles = [handle(style.nth_style(i, m.split("_")[-1])) for i, m in enumerate(metrics)]
        for drawn in handles:
            drawn.set_marker("")
        legend(figure, handles)
    left = f"The first {len(shown)} of {len(arms)} arms." if len(shown) < len(arms) else ""
    return Drawn(figure, _estimators_caption(results, metrics, left))


def _has(results: Results, arm: str, metrics: list[str]) -> bool:
    history = results.history
    return bool(((history["arm"] == arm) & history["metric"].isin(metrics)).any())


def _estimators(axes: Axes, results: Results, arm: str, metrics: list[str]) -> None:
    failed = set(results.runs.loc[results.runs["status"] == "failed", "job_id"])
    history = results.history[results.history["arm"] == arm]
    history = history.replace({"value": {np.inf: np.nan, -np.inf: np.nan}})
    for i, metric in enumerate(metrics):
        look = style.nth_style(i, metric.split("_")[-1])
        chosen = history[history["metric"] == metric]
        seeds = dict(seed_curves(chosen, "step", smoothing(results, metric)))
        for curve in seeds.values():
            axes.plot(curve["x"], curve["y"], color=look.colour, lw=0.5, alpha=0.35, zorder=2)
        mean = mean_curve([curve for job_id, curve in seeds.items() if job_id not in failed])
        axes.plot(
            mean["x"], mean["y"], color=look.colour, linestyle=look.line, lw=1.3,
            label=look.label, zorder=3 + i,
        )  # fmt: skip
    axes.annotate(
        row_label(arm, 26), (0.03, 0.97), xycoords="axes fraction", va="top", fontsize=6.5,
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.7, "pad": 1},
    )  # fmt: skip


def _estimators_caption(results: Results, metrics: list[str], left: str) -> str:
    return style.join(
        [
            "Estimators of the KL to the reference on the same tokens, a panel an arm.",
            "Thin lines: single seeds; bold lines: their mean, without an interval.",
            f"Seeds: {counts(results)}.",
            left,
            *definitions(metrics),
            "k1 and k3 are unbiased on samples of the policy, k2 is not; all are logged whichever "
            "is trained on.",
            without(results, metrics),
            unfinished(results.runs, crosses=False),
        ]
    )


def kl_frontier(results: Results, metric: str = "eval/accuracy") -> Drawn:
    """Final `metric` against √KL of each arm and seed, and the hull of what no mixture betters.

    √KL: the axis on which rewards against the distance from the start are close to straight near
    it (Gao, Schulman and Hilton 2022, arXiv:2210.10760).
    """
    need("kl_frontier", results, DISTANCE, metric)
    distance, gained = _paired_finals(results, metric)
    xs, ys = arm_means(distance), arm_means(gained)
    styles = arm_styles(results.runs)
    there = [arm for arm in styles if arm in xs and xs[arm].n]
    if not there:
        raise NothingToDrawError(
            f"figures=kl_frontier: no finished run has both {DISTANCE} and {metric}"
        )
    with matplotlib.rc_context(style.PAPER):
        width = style.SINGLE_COLUMN
        figure = style.new_figure(width, 2.5 + legend_height(styles, width))
        axes = figure.subplots()
        for arm in there:
            look, own = styles[arm], distance["arm"] == arm
            axes.plot(
                distance.loc[own, "final"], gained.loc[own, "final"], look.marker, ms=2.4,
                mfc="none", mec=look.colour, mew=0.5, alpha=0.7, zorder=2,
            )  # fmt: skip
            whisker(axes, xs[arm].mean, ys[arm], look.colour)
            whisker(axes, ys[arm].mean, xs[arm], look.colour, vertical=False)
            axes.plot(
                [xs[arm].mean], [ys[arm].mean], look.marker, color=look.colour, ms=5,
                mec="white", mew=0.4, label=look.label, zorder=5,
            )  # fmt: skip
        up = describe(metric).higher_is_better
        points = np.array([[xs[arm].mean, ys[arm].mean] for arm in there])
        hull = pareto_hull(points[:, 0], points[:, 1] if up else -points[:, 1])
        axes.plot(*points[hull].T, color="0.6", lw=0.9, ls=(0, (4, 3)), zorder=1, label="_hull")
        axes.set_xlabel("√KL to the reference (√nats)")
        axes.set_ylabel(describe(metric).label)
        arm_legend(figure, {arm: styles[arm] for arm in there})
    return Drawn(figure, _frontier_caption(results, metric, distance))


def _paired_finals(results: Results, metric: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Final √KL and final `metric` of the runs that have both."""
    distance, gained = finals(results, DISTANCE), finals(results, metric)
    distance["final"] = np.sqrt(distance["final"].clip(lower=0))
    both = distance["final"].notna() & gained["final"].notna()
    return distance[both], gained[both]


def pareto_hull(x: Array, y: Array) -> npt.NDArray[np.int64]:
    """Indices of the corners, left to right, of the upper concave hull of points [n] in which y
    still rises: lower x is better, higher y is better, and straight lines are mixtures of two."""
    order = np.lexsort((-y, x))
    hull: list[int] = []
    for i in order:
        if hull and y[i] <= y[hull[-1]]:
            continue
        while len(hull) > 1 and _left_turn(x, y, hull[-2], hull[-1], int(i)):
            hull.pop()
        hull.append(int(i))
    return np.array(hull, dtype=np.int64)


def _left_turn(x: Array, y: Array, a: int, b: int, c: int) -> bool:
    """True where b lies on or below the line from a to c."""
    return bool((x[b] - x[a]) * (y[c] - y[a]) - (y[b] - y[a]) * (x[c] - x[a]) >= 0)


def _frontier_caption(results: Results, metric: str, distance: pd.DataFrame) -> str:
    sizes = distance.groupby("arm")["final"].size()
    n = ", ".join(f"{arm}: n = {sizes.get(arm, 0)}" for arm in arm_styles(results.runs))
    return style.join(
        [
            f"Final {describe(metric).in_a_sentence} ({FINAL}) against the root of the final KL to "
            f"the reference ({DISTANCE}, {FINAL_STEPS}).",
            f"Large markers: means over seeds, bars: {INTERVAL}{cut(metric)}; small open markers: "
            f"seeds ({n}).",
            "Dashed: the Pareto hull of the means, the corners from the smallest distance to the "
            "best mean that no mixture of two others betters.",
            *definitions([metric, DISTANCE]),
            unfinished(results.runs, crosses=False),
        ]
    )
