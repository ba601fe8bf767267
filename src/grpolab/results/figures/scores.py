"""Distributions of scores: the share of runs above each score, and pass@k against k."""

from __future__ import annotations

import re

import matplotlib
import numpy as np
import numpy.typing as npt
import pandas as pd

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    INTERVAL,
    Drawn,
    NothingToDrawError,
    arm_legend,
    arm_means,
    counts,
    definitions,
    finals,
    legend_height,
    need,
    seen,
    unfinished,
    whisker,
)
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import arm_styles
from grpolab.results.summary import run_values

Array = npt.NDArray[np.float64]
_PASS = re.compile(r"eval/pass@(\d+)")


def performance_profile(results: Results, metric: str = "eval/accuracy") -> Drawn:
    """Share of an arm's runs whose final `metric` is above τ, for every τ (arXiv:2108.13264).

    All runs count: one that has no final value is above nothing.
    """
    need("performance_profile", results, metric)
    values = finals(results, metric)
    known = values["final"].dropna().to_numpy(dtype=float)
    if not len(known):
        raise NothingToDrawError(f"figures=performance_profile: no finished run has {metric}")
    pad = 0.04 * (np.ptp(known) or 1.0)
    ends = (float(known.min() - pad), float(known.max() + pad))
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        width = style.SINGLE_COLUMN
        figure = style.new_figure(width, 2.1 + legend_height(styles, width))
        axes = figure.subplots()
        for arm, look in styles.items():
            scores = values.loc[values["arm"] == arm, "final"].to_numpy(dtype=float)
            x, y = above(scores, *ends)
            axes.plot(
                x, y, color=look.colour, linestyle=look.line, lw=look.width, label=look.label,
                drawstyle="steps-post", zorder=3 if look.line == "-" else 4,
            )  # fmt: skip
            # one marker where a half of the runs is left tells arms apart without colour
            half = int(np.searchsorted(-y, -0.5))
            axes.plot(
                x[half : half + 1], y[half : half + 1], look.marker, color=look.colour, ms=3.5,
                mec="white", mew=0.3, zorder=5,
            )  # fmt: skip
        axes.set_xlim(*ends)
        axes.set_ylim(-0.03, 1.03)
        axes.set_xlabel(f"{describe(metric).label} τ")
        axes.set_ylabel("Share of runs above τ")
        arm_legend(figure, styles)
    return Drawn(figure, _profile_caption(results, metric, values))


def above(scores: Array, low: float, high: float) -> tuple[Array, Array]:
    """Corners of the step function τ → share of `scores` [runs] above τ, from `low` to `high`."""
    known = np.sort(scores[np.isfinite(scores)])
    left = np.arange(len(known), -1, -1) / max(1, len(scores))
    return np.concatenate([[low], known, [high]]), np.concatenate([left, [left[-1]]])


def _profile_caption(results: Results, metric: str, values: pd.DataFrame) -> str:
    sizes = values.groupby("arm").size()
    n = ", ".join(f"{arm}: n = {sizes[arm]}" for arm in arm_styles(results.runs))
    return style.join(
        [
            f"Share of an arm's runs whose final {describe(metric).in_a_sentence} ({FINAL}) is "
            "above τ, without an interval: a run is one step of 1/n.",
            f"All runs count, {n}; one without a final value is above nothing.",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )


def pass_at_k(results: Results) -> Drawn:
    """Final pass@k against k of each arm, and before training: what more samples would solve."""
    ks = sorted(
        int(match[1]) for m in set(results.history["metric"]) if (match := _PASS.fullmatch(m))
    )
    if len(ks) < 2:
        need("pass_at_k", results, *([] if ks else ["eval/pass@k"]))
        raise NothingToDrawError(
            f"figures=pass_at_k: only k = {ks[0]} was logged; eval.samples gives more"
        )
    metrics = [f"eval/pass@{k}" for k in ks]
    need("pass_at_k", results, *metrics)
    by_k = [arm_means(finals(results, metric)) for metric in metrics]
    start = [float(run_values(results, metric)["start"].mean()) for metric in metrics]
    styles = arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        width = style.SINGLE_COLUMN
        figure = style.new_figure(width, 2.2 + legend_height(styles, width))
        axes = figure.subplots()
        axes.plot(ks, start, color="0.5", lw=1, ls=(0, (1, 1)), zorder=2, label="_start")
        apart = min(0.03, 0.24 / len(styles))  # of an octave
        for i, (arm, look) in enumerate(styles.items()):
            # arms stand beside each other, so that no interval hides another
            at = [k * 2 ** (apart * (i - (len(styles) - 1) / 2)) for k in ks]
            axes.plot(
                at, [means[arm].mean for means in by_k], look.marker, color=look.colour,
                linestyle=look.line, lw=look.width, ms=3.5, mec="white", mew=0.3, label=look.label,
                zorder=4,
            )  # fmt: skip
            for x, means in zip(at, by_k, strict=True):
                whisker(axes, x, means[arm], look.colour)
        axes.set_xscale("log", base=2)
        axes.set_xticks(ks, [str(k) for k in ks])
        axes.minorticks_off()
        axes.set_xlabel("k")
        axes.set_ylabel("Eval pass@k")
        arm_legend(figure, seen(results, styles, metrics))
    return Drawn(figure, _pass_caption(results))


def _pass_caption(results: Results) -> str:
    return style.join(
        [
            f"Final pass@k ({FINAL}): share of evaluation prompts solved by at least one of k "
            "samples (unbiased).",
            f"Markers: means over seeds; bars: {INTERVAL}, cut at 0 and 1; dotted grey: the mean "
            "of all runs before training. Arms are drawn a little beside each k.",
            f"Seeds: {counts(results)}.",
            unfinished(results.runs, crosses=False),
        ]
    )
