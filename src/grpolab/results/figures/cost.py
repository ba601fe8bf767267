"""What it cost: seconds of a step by phase, and tokens and time until a threshold is reached."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import EngFormatter, MaxNLocator

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    INTERVAL,
    Arm,
    Drawn,
    NothingToDrawError,
    arm_rows,
    counts,
    definitions,
    finals,
    legend,
    mean_of,
    need,
    note,
    row_count,
    row_label,
    unfinished,
    whisker,
)
from grpolab.results.figures.curves import X_LABELS
from grpolab.results.frames import Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles

STEP = "time/step"
PHASES = {
    "time/sample": ("sample", "#0072B2", ""),
    "time/score": ("score", "#E69F00", "////"),
    "time/update": ("update", "#56B4E9", ""),
    "other": ("other", "0.75", "...."),
}


def step_time(results: Results) -> Drawn:
    """Mean seconds of a step by phase, an arm a row; what no phase holds is `other`.

    A run's mean leaves out its first step, which warms up, where it has more than one.
    """
    need("step_time", results, STEP)
    phases = seconds(results)
    if phases.empty:
        raise NothingToDrawError("figures=step_time: no finished run logged time/step")
    styles = arm_styles(results.runs)
    arms = [arm for arm in styles if (phases["arm"] == arm).any()]
    labels = [row_label(arm) for arm in arms]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(0.75 * style.DOUBLE_COLUMN, 0.85 + 0.27 * row_count(labels))
        axes = figure.subplots()
        for y, arm in enumerate(arms):
            own = phases[phases["arm"] == arm]
            left = 0.0
            for phase, (_, colour, hatch) in PHASES.items():
                wide = float(own[phase].mean())
                axes.barh(
                    y, wide, left=left, height=0.55, color=colour, hatch=hatch, edgecolor="white",
                    lw=0.4,
                )  # fmt: skip
                left += wide
            total = mean_of(arm, own[STEP])
            whisker(axes, y, total, "0.2", vertical=False)
            note(axes, y, f"{total.mean:.3g} s, n = {total.n}")
        arm_rows(axes, labels)
        axes.set_xlim(left=0)
        axes.set_xlabel("Seconds a step")
        handles = [
            Patch(facecolor=colour, hatch=hatch, edgecolor="white", label=name)
            for name, colour, hatch in PHASES.values()
        ]
        legend(figure, handles, columns=len(handles))
    return Drawn(figure, _step_time_caption(results))


def seconds(results: Results) -> pd.DataFrame:
    """Mean seconds a step of each finished run: columns arm, job_id, time/step, PHASES."""
    done = set(results.runs.loc[results.runs["status"] == "done", "job_id"])
    wanted = [STEP, *(phase for phase in PHASES if phase != "other")]
    chosen = results.history[
        results.history["metric"].isin(wanted) & results.history["job_id"].isin(done)
    ]
    chosen = chosen.sort_values("step")
    table = chosen.pivot_table(
        index=["arm", "job_id"],
        columns="metric",
        values="value",
        aggfunc=_after_the_first,
        observed=True,
    )
    table = pd.DataFrame(table.reindex(columns=wanted).reset_index())
    table = table[np.isfinite(table[STEP].to_numpy(dtype=float))]
    spent = table[wanted[1:]].fillna(0.0)
    other = (table[STEP] - spent.sum(axis="columns")).clip(lower=0.0)
    columns = [table[["arm", "job_id", STEP]], spent, other.rename("other")]
    found: pd.DataFrame = pd.concat(columns, axis="columns")
    return found


def _after_the_first(values: pd.Series[float]) -> float:
    rest = values.iloc[1:] if len(values) > 1 else values
    return float(rest.mean())


def _step_time_caption(results: Results) -> str:
    return style.join(
        [
            "Seconds of a training step by phase, evaluations not included: means over a run's "
            "steps after the first, then over runs; other is what no phase holds.",
            f"Bars at the end: {INTERVAL} of the whole step over {counts(results)}.",
            *definitions([STEP, "time/sample", "time/score", "time/update"]),
            unfinished(results.runs, crosses=False),
        ]
    )


def threshold(results: Results, metric: str = "eval/accuracy", level: float | None = None) -> Drawn:
    """Tokens and wall time until a run's `metric` first reaches `level`, a row an arm.

    `level` is the baseline's mean final value unless given. A run that never reaches it is an open
    arrow at its last value of x: it would have taken longer.
    """
    need("threshold", results, metric)
    level = _default_level(results, metric) if level is None else level
    reached = first_reached(results, metric, level)
    if reached.empty:
        raise NothingToDrawError(f"figures=threshold: no run logged {metric}")
    styles = arm_styles(results.runs)
    arms = [arm for arm in styles if (reached["arm"] == arm).any()]
    labels = [row_label(arm) for arm in arms]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 0.85 + 0.27 * row_count(labels))
        pair = figure.subplots(1, 2, sharey=True)
        for axes, x in zip(pair, ("tokens", "wall"), strict=True):
            for y, arm in enumerate(arms):
                _times(axes, y, reached[reached["arm"] == arm], x, styles[arm])
            axes.set_xlim(left=-0.02 * axes.get_xlim()[1])
            axes.set_xlabel(X_LABELS[x])
            axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
        pair[0].xaxis.set_major_formatter(EngFormatter(sep=""))
        for y, arm in enumerate(arms):
            own = reached[reached["arm"] == arm]
            note(pair[1], y, f"{int(own['reached'].sum())} of {len(own)}")
        arm_rows(pair[0], labels)
        pair[1].grid(visible=False, axis="y")
        legend(figure, _threshold_handles(), columns=3)
    return Drawn(figure, _threshold_caption(results, metric, level))


def _default_level(results: Results, metric: str) -> float:
    values = finals(results, metric)
    found: Arm = mean_of("", values.loc[values["baseline"], "final"])
    if not found.n:
        raise NothingToDrawError(
            f"figures=threshold: no finished baseline run has {metric}, whose mean is the threshold"
        )
    return found.mean


def first_reached(results: Results, metric: str, level: float) -> pd.DataFrame:
    """Of each run that logged `metric`: arm, reached (bool), tokens and wall, there or at its end.

    For metrics that are better when lower, reached means at most `level`.
    """
    chosen = results.history[results.history["metric"] == metric].sort_values("step")
    sign = 1.0 if describe(metric).higher_is_better else -1.0
    rows = []
    for job_id, curve in chosen.groupby("job_id", sort=True, observed=True):
        there = np.flatnonzero(sign * curve["value"].to_numpy(dtype=float) >= sign * level)
        row = curve.iloc[there[0] if len(there) else -1]
        rows.append(
            {
                "arm": row["arm"],
                "job_id": job_id,
                "reached": bool(len(there)),
                "tokens": float(row["tokens"]),
                "wall": float(row["wall"]),
            }
        )
    return pd.DataFrame(rows, columns=["arm", "job_id", "reached", "tokens", "wall"])


def _times(axes: Axes, y: int, runs: pd.DataFrame, x: str, look: ArmStyle) -> None:
    there, never = runs.loc[runs["reached"], x], runs.loc[~runs["reached"], x]
    axes.plot(there, np.full(len(there), y), "o", ms=2.8, mfc="none", mec=look.colour, mew=0.7)
    axes.plot(never, np.full(len(never), y), ">", ms=3.4, mfc="white", mec="0.5", mew=0.7)
    # the median is known while more than half of the runs got there
    if 2 * len(there) > len(runs):
        times = np.where(runs["reached"], runs[x], np.inf)
        axes.plot(
            [float(np.median(times))], [y], look.marker, color=look.colour, ms=5, mec="white",
            mew=0.4, zorder=4,
        )  # fmt: skip


def _threshold_handles() -> list[Line2D]:
    looks = [("median", "o", 5.0, "0.2", "white"), ("run", "o", 2.8, "none", "0.2"),
             ("run that never got there, at its end", ">", 3.4, "white", "0.5")]  # fmt: skip
    return [
        Line2D([], [], ls="", marker=marker, ms=size, mfc=face, mec=edge, mew=0.7, label=label)
        for label, marker, size, face, edge in looks
    ]


def _threshold_caption(results: Results, metric: str, level: float) -> str:
    return style.join(
        [
            f"Generated tokens and wall time until {describe(metric).in_a_sentence} first reached "
            f"{level:.3f} (unless given, the baseline's mean final value; {FINAL}), as far as "
            "evaluations are apart.",
            "Large markers: medians over all runs of the arm, drawn where more than half of them "
            "got there, without an interval; beside the rows how many did.",
            f"Seeds: {counts(results)}.",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )
