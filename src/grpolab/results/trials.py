"""A search's analysis: its history as a figure, its trials as a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from grpolab.results import style
from grpolab.results.figures.common import Drawn, definitions, legend
from grpolab.results.metrics import describe
from grpolab.tracking.disk import staged

HISTORY = "search_history"
VALUE, BEST = style.COLOURS[0], "black"
ENDED = {"pruned": ("v", "0.45"), "fail": ("x", style.COLOURS[1])}
"""Trials without a value: marker and colour, on the axis."""


def write(found: Mapping[str, Any], folder: Path) -> dict[str, Path]:
    """figures/search_history and tables/trials.csv and .md under `folder`.

    Args:
        found: what search.json says.
        folder: is made where there is none.

    Returns:
        {name below the folder, with slashes: path} of what was written.
    """
    table = trial_table(found)
    with staged(folder) as scratch:
        (scratch / "tables").mkdir(parents=True)
        table.to_csv(scratch / "tables" / "trials.csv", index=False)
        text = trials_markdown(table, found)
        (scratch / "tables" / "trials.md").write_text(text, encoding="utf-8")
        if any(trial["values"] for trial in found["all"]):
            figure, caption = history(found)
            style.save(figure, scratch / "figures", HISTORY, caption)
        names = [p.relative_to(scratch) for p in sorted(scratch.rglob("*.*")) if p.is_file()]
    return {name.as_posix(): folder / name for name in names}


def trial_table(found: Mapping[str, Any]) -> pd.DataFrame:
    """A row a trial: trial, state, best, a column an objective, a column a setting, steps, reason.

    `best` marks the best trial, or those of the Pareto front. What is missing is empty.
    """
    best = {trial["trial"] for trial in found["best"]}
    goals = [goal["metric"] for goal in found["objective"]]
    keys = sorted({key for trial in found["all"] for key in trial["overrides"] or {}})
    rows = []
    for trial in found["all"]:
        values = trial["values"] or [None] * len(goals)
        settings = trial["overrides"] or {}
        rows.append(
            {
                "trial": trial["trial"],
                "state": trial["state"],
                "best": trial["trial"] in best,
                **dict(zip(goals, values, strict=True)),
                **{key: settings.get(key) for key in keys},
                "steps": trial["steps"],
                "reason": trial["reason"],
            }
        )
    columns = ["trial", "state", "best", *goals, *keys, "steps", "reason"]
    return pd.DataFrame(rows, columns=columns)


def trials_markdown(table: pd.DataFrame, found: Mapping[str, Any]) -> str:
    """The table to read: the best trials bold, four digits."""
    goals = [goal["metric"] for goal in found["objective"]]
    shown = [str(name) for name in table if name not in ("best", "reason")]
    lines = [shown, ["---:" if name in ("trial", "steps", *goals) else "---" for name in shown]]
    for row in table.to_dict("records"):
        cells = [_cell(row[name]) for name in shown]
        lines.append([f"**{cell}**" for cell in cells] if row["best"] else cells)
    text = "\n".join("| " + " | ".join(cells) + " |" for cells in lines)
    return f"{text}\n\n{_about(found)} Bold: {_best(found)}.\n"


def history(found: Mapping[str, Any]) -> Drawn:
    """Each trial's value against its number, a panel an objective; of one alone, the best so far.

    `found` is what search.json says, with at least one trial that has values.
    """
    goals = found["objective"]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.SINGLE_COLUMN, 0.35 + 1.75 * len(goals))
        panels = figure.subplots(len(goals), 1, sharex=True, squeeze=False)[:, 0]
        for at, (axes, goal) in enumerate(zip(panels, goals, strict=True)):
            _panel(axes, found["all"], at, str(goal["direction"]) if len(goals) == 1 else None)
            axes.set_ylabel(describe(str(goal["metric"])).label)
        panels[-1].set_xlabel("Trial")
        panels[-1].xaxis.set_major_locator(MaxNLocator(8, integer=True))
        panels[-1].set_xlim(-0.5, len(found["all"]) - 0.5)
        best = {trial["trial"] for trial in found["best"]}
        for at, axes in enumerate(panels):
            _ring(axes, [t for t in found["all"] if t["trial"] in best], at)
        legend(figure, _handles(found))
    return Drawn(figure, _caption(found))


def _panel(axes: Axes, trials: Sequence[Mapping[str, Any]], at: int, direction: str | None) -> None:
    known = [t for t in trials if t["values"]]
    x = np.array([t["trial"] for t in known])
    y = np.array([t["values"][at] for t in known], dtype=float)
    axes.plot(x, y, "o", color=VALUE, ms=3.5, mec="white", mew=0.3, zorder=3)
    if direction is not None:
        so_far = (np.maximum if direction == "maximize" else np.minimum).accumulate(y)
        axes.plot([*x, len(trials) - 1], [*so_far, so_far[-1]], color=BEST, lw=1.2,
                  drawstyle="steps-post", zorder=2)  # fmt: skip
    for state, (marker, colour) in ENDED.items():
        ended = [t["trial"] for t in trials if t["state"] == state]
        axes.plot(ended, np.full(len(ended), 0.03), marker, color=colour, ms=4, mew=1.1,
                  transform=axes.get_xaxis_transform(), clip_on=False)  # fmt: skip
    axes.margins(y=0.12)


def _ring(axes: Axes, best: Sequence[Mapping[str, Any]], at: int) -> None:
    axes.plot([t["trial"] for t in best], [t["values"][at] for t in best], "o", color=BEST,
              mfc="none", ms=7, mew=1, zorder=4)  # fmt: skip


def _handles(found: Mapping[str, Any]) -> list[Line2D]:
    states = {trial["state"] for trial in found["all"]}
    front = len(found["objective"]) > 1
    none: list[float] = []
    handles = [
        Line2D(none, none, color=VALUE, marker="o", lw=0, ms=3.5, label="complete"),
        Line2D(none, none, color=BEST, marker="o", mfc="none", lw=0, ms=6,
               label="Pareto front" if front else "best"),
        *([] if front else [Line2D(none, none, color=BEST, lw=1.2, label="best so far")]),
    ]  # fmt: skip
    return handles + [
        Line2D(none, none, color=colour, marker=marker, lw=0, ms=4, mew=1.1,
               label={"fail": "failed"}.get(state, state))
        for state, (marker, colour) in ENDED.items() if state in states
    ]  # fmt: skip


def _caption(found: Mapping[str, Any]) -> str:
    ended = any(trial["state"] in ENDED for trial in found["all"])
    return style.join(
        [
            "A search's trials in the order in which they were drawn.",
            _about(found),
            f"Ring: {_best(found)}.",
            "On the axis: trials without a value." if ended else "",
            "The best of several trials flatters itself: it is to be reported on other seeds.",
            *definitions([str(goal["metric"]) for goal in found["objective"]]),
        ]
    )


def _about(found: Mapping[str, Any]) -> str:
    seeds = found["tuning_seeds"]
    return (
        f"Values: mean over n = {len(seeds)} tuning seed{'s' * (len(seeds) > 1)} "
        f"({', '.join(map(str, seeds))}) of the mean of the last 10 % of evaluations, without an "
        "interval."
    )


def _best(found: Mapping[str, Any]) -> str:
    goals = [f"{goal['direction']} {goal['metric']}" for goal in found["objective"]]
    named = [str(trial["trial"]) for trial in found["best"]]
    what = "the best trial" if len(goals) == 1 else "the Pareto front"
    return f"{what} ({', '.join(goals)}): {', '.join(named) or 'none is complete'}"


def _cell(value: Any) -> str:
    if value is None or value != value:
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", r"\|")
