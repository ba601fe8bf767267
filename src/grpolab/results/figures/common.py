"""What the figures share: what a figure is, its sentences, its legend, values of runs and arms."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.legend import Legend
from matplotlib.lines import Line2D

from grpolab.results import statistics, style
from grpolab.results.frames import Results, ResultsError
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle, arm_styles
from grpolab.results.summary import LEVEL, check_one_study, run_values

FINAL = "final: mean of the last 10 % of evaluations"
FINAL_STEPS = "mean of the last 10 % of the logged steps"
INTERVAL = "Student-t 95 % interval of the mean"
HANDLE, CHARACTER = 0.42, 0.062  # inches of a legend's handle, and of a character at 7 pt
REFERENCE_LINE = (0, (4, 3))


class Drawn(NamedTuple):
    """A figure and what the file beside it says."""

    figure: Figure
    caption: str


class NothingToDrawError(ResultsError):
    """What the figure shows was not logged or not swept: one sentence."""


@dataclass(frozen=True)
class Arm:
    """Mean of an arm's final values over its n runs that have one, with its t interval."""

    name: str
    mean: float
    low: float
    high: float
    n: int
    runs: int


def need(figure: str, results: Results, *metrics: str) -> None:
    """Raise NothingToDrawError, naming the metrics that no run logged a finite value of."""
    check_one_study(results)
    if results.runs.empty:
        raise NothingToDrawError(f"figures={figure}: there are no runs to draw")
    there = _finite_metrics(results)
    absent = [metric for metric in metrics if metric not in there]
    if absent:
        raise NothingToDrawError(f"figures={figure}: no run logged {' or '.join(absent)}")


def logged(figure: str, results: Results, metrics: Sequence[str]) -> list[str]:
    """Those of the metrics that some run logged a finite value of, in their order.

    Raises NothingToDrawError where it is none of them.
    """
    need(figure, results)
    finite = _finite_metrics(results)
    there = [metric for metric in metrics if metric in finite]
    if not there:
        raise NothingToDrawError(f"figures={figure}: no run logged {' or '.join(metrics)}")
    return there


def _finite_metrics(results: Results) -> set[str]:
    """Those that some run logged a finite value of."""
    history = results.history
    return set(history.loc[np.isfinite(history["value"].to_numpy(dtype=float)), "metric"])


def without(results: Results, metrics: Iterable[str]) -> str:
    """Sentences on arms that logged no value of a metric which others did."""
    arms = list(arm_styles(results.runs))
    said = []
    for metric in metrics:
        there = set(results.history.loc[results.history["metric"] == metric, "arm"])
        absent = [arm for arm in arms if arm not in there]
        if absent:
            said.append(f"{metric} was not logged by {'; '.join(absent)}.")
    return style.join(said)


def seen(
    results: Results, styles: dict[str, ArmStyle], metrics: Iterable[str]
) -> dict[str, ArmStyle]:
    """The styles of the arms that logged one of the metrics: a legend of what is drawn."""
    history = results.history
    there = set(history.loc[history["metric"].isin(list(metrics)), "arm"])
    return {arm: look for arm, look in styles.items() if arm in there}


def finals(results: Results, metric: str) -> pd.DataFrame:
    """Final value of each run: columns arm, seed, status, job_id, final (NaN: not done)."""
    values = run_values(results, metric)
    values["final"] = values["final"].where(np.isfinite(values["final"].to_numpy(dtype=float)))
    return values


def mean_of(name: str, values: pd.Series[float], bounded: bool = False) -> Arm:
    """Mean and t interval of the finite ones among `values` [runs]; `bounded`: cut at 0 and 1."""
    found = statistics.mean_interval(values.dropna().to_numpy(dtype=float), LEVEL)
    low, high = (found.low, found.high) if not bounded else np.clip([found.low, found.high], 0, 1)
    return Arm(name, found.mean, float(low), float(high), found.n, len(values))


def arm_means(values: pd.DataFrame) -> dict[str, Arm]:
    """{arm: mean and interval of its finals}, in the order of `values`."""
    bounded = len(values) > 0 and describe(str(values["metric"].iloc[0])).bounded
    return {
        str(arm): mean_of(str(arm), group["final"], bounded)
        for arm, group in values.groupby("arm", sort=False)
    }


def cut(metric: str) -> str:
    """Words of a caption for intervals that the metric's bounds cut."""
    return ", cut at 0 and 1" if describe(metric).bounded else ""


def counts(results: Results) -> str:
    """`n = 2 an arm`, or the count of each arm where they differ; done runs only."""
    done = results.runs[results.runs["status"] == "done"]
    sizes = {arm: int((done["arm"] == arm).sum()) for arm in arm_styles(results.runs)}
    if len(set(sizes.values())) == 1:
        return f"n = {next(iter(sizes.values()))} finished runs an arm"
    return "finished runs " + ", ".join(f"{arm}: n = {n}" for arm, n in sizes.items())


def definitions(metrics: Sequence[str]) -> list[str]:
    """A sentence a metric: its label, its name, what it is."""
    return [_definition(metric) for metric in metrics]


def _definition(metric: str) -> str:
    found = describe(metric)
    name = metric if found.label == metric else f"{found.label} ({metric})"
    return f"{name}: {found.definition}."


def unfinished(runs: pd.DataFrame, crosses: bool = True) -> str:
    """The runs that are not done, by status: they are an outcome too."""
    states = runs.loc[runs["status"] != "done", "status"].value_counts().sort_index()
    if states.empty:
        return ""
    listed = ", ".join(f"{count} {status}" for status, count in states.items())
    drawn = "; a cross ends a failed run's curve" if crosses else ""
    return f"Not finished: {listed} of {len(runs)} runs{drawn}."


def handle(look: ArmStyle) -> Line2D:
    """An arm in a legend."""
    return Line2D(
        [], [], color=look.colour, linestyle=look.line, lw=look.width, marker=look.marker, ms=3.5,
        mec="white", mew=0.3, label=look.label,
    )  # fmt: skip


def arm_legend(figure: Figure, styles: dict[str, ArmStyle], columns: int = 0) -> Legend:
    """The arms below the figure, as many beside each other as fit its width."""
    handles = [handle(look) for look in styles.values()]
    return legend(figure, handles, columns)


def legend(figure: Figure, handles: Sequence[Artist], columns: int = 0) -> Legend:
    """Handles below the figure; `columns` of 0: as many as fit."""
    width = figure.get_figwidth()
    columns = columns or fitting_columns(handles, width)
    for drawn in handles:
        drawn.set_label(_wrapped(str(drawn.get_label()), width))
    return figure.legend(handles=list(handles), loc="outside lower center", ncols=columns)


def _wrapped(label: str, width: float) -> str:
    """A label that would not fit into `width` inches on a line of its own, on several."""
    characters = int((width - HANDLE) / CHARACTER)
    return label if len(label) <= characters else row_label(label, characters)


def fitting_columns(handles: Sequence[Artist], width: float) -> int:
    """How many columns of labels fit into `width` inches."""
    longest = max((len(str(h.get_label())) for h in handles), default=1)
    return max(1, min(len(handles), int(width / (HANDLE + CHARACTER * longest)), 6))


def legend_height(styles: dict[str, ArmStyle], width: float) -> float:
    """Inches that `arm_legend` takes."""
    columns = fitting_columns([handle(look) for look in styles.values()], width)
    lines = [_wrapped(look.label, width).count("\n") for look in styles.values()]
    return 0.1 + 0.15 * -(-len(styles) // columns) + 0.12 * sum(lines)


def single_or_double(columns: int) -> float:
    """A figure of one panel fills a column, of more the page's width."""
    return style.SINGLE_COLUMN if columns == 1 else style.DOUBLE_COLUMN


def whisker(axes: Axes, at: float, arm: Arm, colour: str, vertical: bool = True) -> None:
    """An arm's interval at a position, nothing where it has none."""
    if not np.isfinite(arm.low):
        return
    along, across = [arm.low, arm.high], [at, at]
    xs, ys = (across, along) if vertical else (along, across)
    axes.plot(xs, ys, color=colour, lw=1.1, solid_capstyle="butt", zorder=3)


def note(axes: Axes, y: float, text: str, colour: str = "0.3") -> None:
    """A few words to the right of the axes at the height of a row."""
    axes.annotate(
        text, (1.01, y), xycoords=("axes fraction", "data"), va="center", fontsize=6.5,
        color=colour, annotation_clip=False,
    )  # fmt: skip


def row_label(arm: str, width: int = 38) -> str:
    """An arm beside its row, in as many lines as it takes; a long override breaks after its =."""
    words = [
        word if len(word) <= width else word.replace("=", "= ", 1)
        for word in style.readable(arm).split(" ")
    ]
    return "\n".join(textwrap.wrap(" ".join(words), width, break_on_hyphens=False))


def row_count(labels: Sequence[str]) -> float:
    """How many rows of one line the labels are as high as."""
    return sum(max(1.0, 0.55 * (1 + label.count("\n"))) for label in labels)


def arm_rows(axes: Axes, labels: Sequence[str]) -> None:
    """One row an arm from top to bottom, without grid lines along the rows."""
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_ylim(len(labels) - 0.4, -0.6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
