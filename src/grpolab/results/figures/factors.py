"""The swept factors: sensitivity of a number, a grid of two factors."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from grpolab.results import style, theme
from grpolab.results.figures.common import (
    FINAL,
    INTERVAL,
    Arm,
    Drawn,
    NothingToDrawError,
    counts,
    cut,
    definitions,
    finals,
    handle,
    legend,
    mean_of,
    need,
    single_or_double,
    unfinished,
    whisker,
)
from grpolab.results.frames import FACTOR_PREFIX, Results
from grpolab.results.metrics import describe
from grpolab.results.style import ArmStyle

FEWEST_VALUES = 3  # two points always lie on a line
MOST_PANELS = 3
MOST_LINES = 6


def swept(values: pd.DataFrame) -> dict[str, pd.Series[str]]:
    """{config key: its text in each run} of the factors that take more than one value.

    The seed is none: it is what arms are repeated over.
    """
    columns = [str(column) for column in values if str(column).startswith(FACTOR_PREFIX)]
    found = {c.removeprefix(FACTOR_PREFIX): values[c].fillna("null").astype(str) for c in columns}
    return {k: texts for k, texts in found.items() if k != "seed" and len(set(texts)) > 1}


def started(results: Results, metric: str) -> pd.DataFrame:
    """Final values of the runs that left a trace: the others' factors are not known."""
    values = finals(results, metric)
    return values[~values["status"].isin(["missing", "pending"])].reset_index(drop=True)


def number(text: str) -> float:
    """The finite number a factor's text stands for, NaN for anything else."""
    try:
        value = float(text)
    except ValueError:
        return math.nan
    return value if math.isfinite(value) else math.nan


def sensitivity(results: Results, metric: str = "eval/accuracy") -> Drawn:
    """Final `metric` against each swept factor that took three or more numbers, a panel a factor.

    A line joins arms that differ in that factor alone.
    """
    need("sensitivity", results, metric)
    values = started(results, metric)
    factors = swept(values)
    numeric = {key: texts.map(number) for key, texts in factors.items()}
    keys = [key for key, xs in numeric.items() if xs.nunique() >= FEWEST_VALUES]
    if not keys:
        raise NothingToDrawError(
            f"figures=sensitivity: no swept factor took {FEWEST_VALUES} or more numbers"
        )
    shown = keys[:MOST_PANELS]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(single_or_double(len(shown)), 2.5)
        row = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
        looks: dict[str, ArmStyle] = {}
        for axes, key in zip(row, shown, strict=True):
            table = values.assign(x=numeric[key], line=_others(factors, key, values))
            looks |= _lines(axes, table[table["x"].notna()])
            _numbers(axes, numeric[key], key)
        row[0].set_ylabel(describe(metric).label)
        if len(looks) > 1:
            legend(figure, [handle(look) for look in looks.values()])
    return Drawn(figure, _sensitivity_caption(results, metric, keys, shown))


def _others(factors: dict[str, pd.Series[str]], key: str, values: pd.DataFrame) -> pd.Series[str]:
    """What the other factors are in each run, as `kl=k3, clip=ppo`; empty where there are none."""
    parts = [f"{other}=" + texts for other, texts in factors.items() if other != key]
    text = pd.Series("", index=values.index)
    for i, part in enumerate(parts):
        text = text + (", " if i else "") + part
    return text


def _lines(axes: Axes, table: pd.DataFrame) -> dict[str, ArmStyle]:
    """One line a setting of the other factors, the baseline's first and black."""
    own = table.loc[table["baseline"], "line"]
    first = own.iloc[0] if len(own) else ""
    names = sorted(set(table["line"]), key=lambda name: (name != first, name))
    looks = {}
    for i, name in enumerate(names):
        few = len(names) <= MOST_LINES
        look = style.nth_style(i - 1, name) if i and few else ArmStyle(name, "black", "-", "o")
        if few:
            looks[name] = look
        runs = table[table["line"] == name]
        bounded = describe(str(runs["metric"].iloc[0])).bounded
        arms = [mean_of(f"{x}", g["final"], bounded) for x, g in runs.groupby("x")]
        _line(axes, arms, runs, look)
    return looks


def _line(axes: Axes, arms: Sequence[Arm], runs: pd.DataFrame, look: ArmStyle) -> None:
    axes.plot(
        runs["x"], runs["final"], "o", ms=2.2, mfc="white", mec=look.colour, mew=0.5, zorder=5
    )
    axes.plot(
        [float(arm.name) for arm in arms], [arm.mean for arm in arms], look.marker,
        color=look.colour, linestyle=look.line, lw=look.width, ms=4, mec="white", mew=0.4,
        label=look.label or "_mean", zorder=4,
    )  # fmt: skip
    for arm in arms:
        whisker(axes, float(arm.name), arm, look.colour)


def _numbers(axes: Axes, xs: pd.Series[float], key: str) -> None:
    """The factor's axis, logarithmic where its values are positive and span a decade."""
    known = sorted(set(xs.dropna()))
    if known[0] > 0 and known[-1] / known[0] >= 10:
        axes.set_xscale("log")
    if len(known) <= 5:
        axes.set_xticks(known, [f"{value:g}" for value in known])
        axes.minorticks_off()
    axes.margins(x=0.08)
    axes.set_xlabel(key)


def _sensitivity_caption(
    results: Results, metric: str, keys: Sequence[str], shown: Sequence[str]
) -> str:
    rest = [key for key in keys if key not in shown]
    return style.join(
        [
            f"Final {describe(metric).in_a_sentence} ({FINAL}) against {', '.join(shown)}.",
            f"Large markers: means over seeds; bars: {INTERVAL}{cut(metric)}; small circles: seeds "
            f"({counts(results)}). Lines join arms that differ in that factor alone.",
            "Values that are no numbers (none, null) are not shown.",
            f"Not shown: {', '.join(rest)}." if rest else "",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )


def factorial(results: Results, metric: str = "eval/accuracy") -> Drawn:
    """Mean final `metric` in each cell of two crossed factors, a panel a setting of the others."""
    need("factorial", results, metric)
    values = started(results, metric)
    rows, columns, panels = _crossed(values)
    means = values["final"].groupby([values["panel"], values["row"], values["column"]]).mean()
    low, high = float(means.min()), float(means.max())
    if not math.isfinite(low):
        raise NothingToDrawError(f"figures=factorial: no finished run has {metric}")
    ys, xs = _levels(values, "row"), _levels(values, "column")
    with matplotlib.rc_context(style.PAPER):
        width = min(style.DOUBLE_COLUMN, (1.2 + 0.85 * len(xs)) * len(panels) + 0.6)
        figure = style.new_figure(width, 0.75 + 0.42 * len(ys))
        row = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
        for axes, panel in zip(row, panels, strict=True):
            image = _cells(axes, values[values["panel"] == panel], ys, xs, (low, high))
            axes.set_xticks(range(len(xs)), xs)
            axes.set_xlabel(columns + (f"\n{panel}" if panel else ""))
        row[0].set_yticks(range(len(ys)), ys)
        row[0].set_ylabel(rows)
        figure.colorbar(image, ax=list(row), label=describe(metric).label, aspect=12)
    return Drawn(figure, _factorial_caption(results, metric, rows, columns))


def _crossed(values: pd.DataFrame) -> tuple[str, str, list[str]]:
    """Adds the columns row, column and panel to `values`; the two factors and the panels.

    The two of most levels whose cells are all there; NothingToDrawError where no two are crossed.
    """
    factors = swept(values)
    pairs = sorted(
        itertools.combinations(factors, 2),
        key=lambda pair: -factors[pair[0]].nunique() * factors[pair[1]].nunique(),
    )
    for one, two in pairs:
        rest = {key: texts for key, texts in factors.items() if key not in (one, two)}
        values["row"], values["column"] = factors[one], factors[two]
        values["panel"] = _others(rest, "", values)
        panels = sorted(set(values["panel"]))
        cells = values.groupby("panel")[["row", "column"]].apply(lambda g: len(g.drop_duplicates()))
        whole = values["row"].nunique() * values["column"].nunique()
        if len(panels) <= MOST_PANELS and (cells == whole).all():
            return one, two, panels
    raise NothingToDrawError("figures=factorial: no two swept factors were crossed in all levels")


def _levels(values: pd.DataFrame, column: str) -> list[str]:
    """The levels of a factor: numbers in their order, then words, the baseline's first."""
    texts, own = set(values[column]), set(values.loc[values["baseline"], column])
    words = [text for text in texts if math.isnan(number(text))]
    words.sort(key=lambda text: (text not in own, text))
    return [*sorted(texts - set(words), key=number), *words]


def _cells(
    axes: Axes, values: pd.DataFrame, ys: list[str], xs: list[str], limits: tuple[float, float]
) -> matplotlib.image.AxesImage:
    """A coloured cell for each pair, its mean, half its interval and n written in it."""
    grid = np.full((len(ys), len(xs)), np.nan)
    found = {}
    for (row, column), group in values.groupby(["row", "column"]):
        at = ys.index(str(row)), xs.index(str(column))
        found[at] = mean_of("", group["final"])
        grid[at] = found[at].mean
    image = axes.imshow(grid, cmap="cividis", vmin=limits[0], vmax=limits[1] or None, aspect="auto")
    axes.grid(visible=False)
    for (y, x), cell in found.items():
        bright = (cell.mean - limits[0]) / ((limits[1] - limits[0]) or 1.0) > 0.55
        half = f" ± {cell.high - cell.mean:.2f}" if math.isfinite(cell.high) else ""
        known = math.isfinite(cell.mean)
        axes.text(
            x, y, f"{cell.mean:.3f}{half}\nn = {cell.n}" if known else "no run\nfinished",
            ha="center", va="center", fontsize=6.5, label=theme.KEEP if known else None,
            color="black" if bright or not known else "white",
        )  # fmt: skip
    return image


def _factorial_caption(results: Results, metric: str, rows: str, columns: str) -> str:
    return style.join(
        [
            f"Mean final {describe(metric).in_a_sentence} ({FINAL}) for each {rows} and {columns}.",
            f"In each cell: mean ± half of the {INTERVAL}, and its n runs.",
            f"Seeds: {counts(results)}.",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )
