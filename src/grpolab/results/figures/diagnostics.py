"""What training did besides learning: clip shares, ratios, entropy, lengths against the step."""

from __future__ import annotations

from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.results import style
from grpolab.results.figures.common import (
    Drawn,
    arm_legend,
    counts,
    definitions,
    legend_height,
    logged,
    need,
    seen,
    single_or_double,
    unfinished,
    without,
)
from grpolab.results.figures.curves import label_x, mean_curve, panel, seed_curves, smoothing
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles

CLIP = ("clip/low", "clip/high", "clip/share")
RATIO = ("policy/ratio_std", "policy/ratio_max", "policy/ess")
LENGTHS = ("length/mean", "length/correct", "length/wrong", "length/truncated_share")
LOG_Y = {"policy/ratio_std", "policy/ratio_max"}  # a single token's ratio can be e^20


def clip_shares(results: Results) -> Drawn:
    """Shares of tokens at which the clip changes the gradient: both bounds, lower, upper."""
    metrics = logged("clip_shares", results, CLIP)
    figure = _panels(results, metrics, len(metrics), sharey=True)
    return Drawn(figure, _caption("Clipped tokens", results, metrics))


def ratios(results: Results) -> Drawn:
    """How far the updates left the policy that sampled: spread and maximum of r, its ESS."""
    metrics = logged("ratios", results, RATIO)
    figure = _panels(results, metrics, len(metrics))
    return Drawn(figure, _caption("The importance ratio r = π/π_old", results, metrics))


def lengths(results: Results) -> Drawn:
    """Tokens of a completion, of the correct and the wrong ones, and the share cut off."""
    metrics = logged("lengths", results, LENGTHS)
    figure = _panels(results, metrics, 2 if len(metrics) > 3 else len(metrics))
    return Drawn(figure, _caption("Lengths of completions", results, metrics))


def entropy(results: Results) -> Drawn:
    """The policy's entropy against the step, and the reward against the entropy."""
    need("entropy", results, "policy/entropy", "reward/mean")
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.2 + legend_height(styles, 6.9))
        left, right = figure.subplots(1, 2)
        panel(left, results, "policy/entropy", "step", styles)
        left.set_ylabel(describe("policy/entropy").label)
        label_x(left, "step")
        for arm, look in styles.items():
            _path(right, results, arm, look)
        right.set_xlabel(describe("policy/entropy").label)
        right.set_ylabel(describe("reward/mean").label)
        arm_legend(figure, seen(results, styles, ["policy/entropy"]))
    caption = _caption("Entropy of the policy", results, ["policy/entropy", "reward/mean"])
    return Drawn(
        figure,
        f"{caption} Right: mean reward against mean entropy at equal steps, from the open marker "
        "at the first step to the filled one at the last that all runs of the arm reached; failed "
        "runs left out.",
    )


def _path(axes: Axes, results: Results, arm: str, look: ArmStyle) -> None:
    """An arm's mean reward against its mean entropy, step by step."""
    entropies, rewards = (mean_of_arm(results, arm, m) for m in ("policy/entropy", "reward/mean"))
    steps = entropies.index.intersection(rewards.index)
    if not len(steps):
        return
    x = entropies.loc[steps, "y"].to_numpy(dtype=float)
    y = rewards.loc[steps, "y"].to_numpy(dtype=float)
    axes.plot(x, y, color=look.colour, linestyle=look.line, lw=look.width, label=look.label)
    ends = ((0, "white", look.colour), (-1, look.colour, "white"))
    for at, face, edge in ends:
        axes.plot([x[at]], [y[at]], look.marker, mfc=face, mec=edge, mew=0.8, ms=4.5, zorder=5)


def mean_of_arm(results: Results, arm: str, metric: str) -> pd.DataFrame:
    """x and y by step: the mean over the arm's runs that did not fail, smoothed as in curves."""
    failed = set(results.runs.loc[results.runs["status"] == "failed", "job_id"])
    history = results.history
    chosen = history[(history["metric"] == metric) & (history["arm"] == arm)]
    chosen = chosen[~chosen["job_id"].isin(failed)]
    chosen = chosen.replace({"value": {np.inf: np.nan, -np.inf: np.nan}})
    curves = seed_curves(chosen, "step", smoothing(results, metric))
    return mean_curve([curve for _, curve in curves])


def _panels(results: Results, metrics: Sequence[str], columns: int, sharey: bool = False) -> Figure:
    """One panel a metric against the step, `columns` beside each other."""
    styles = arm_styles(results.runs)
    rows = -(-len(metrics) // columns)
    with matplotlib.rc_context(style.PAPER):
        width = single_or_double(columns)
        figure = style.new_figure(width, 1.75 * rows + 0.2 + legend_height(styles, width))
        grid = figure.subplots(rows, columns, sharex=True, sharey=sharey, squeeze=False)
        for axes in grid.flat[len(metrics) :]:
            axes.set_visible(False)
        for axes, metric in zip(grid.flat, metrics, strict=False):
            panel(axes, results, metric, "step", styles)
            axes.set_ylabel(describe(metric).label)
            if metric in LOG_Y and _positive(results, metric):
                axes.set_yscale("log")
        for axes in grid[-1]:
            label_x(axes, "step")
        arm_legend(figure, seen(results, styles, metrics))
    return figure


def _positive(results: Results, metric: str) -> bool:
    """False where a logarithmic axis would hide values: r has no spread in the first update."""
    values = results.history.loc[results.history["metric"] == metric, "value"]
    return bool((values.dropna() > 0).all())


def _caption(what: str, results: Results, metrics: Sequence[str]) -> str:
    windows = {smoothing(results, metric) for metric in metrics} - {1}
    smoothed = (
        f"Curves are centred rolling means over {max(windows)} steps, for drawing only."
        if windows
        else ""
    )
    return style.join(
        [
            f"{what} against the step.",
            "Thin lines: single seeds; bold lines: their mean, without an interval.",
            f"Seeds: {counts(results)}.",
            smoothed,
            *definitions(metrics),
            without(results, metrics),
            unfinished(results.runs),
        ]
    )
