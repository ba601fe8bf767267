"""Figures of a full product: the range of each choice, and whose doing the differences are."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.probe.exact.arms import FACTORS
from grpolab.probe.exact.product import crossed, ranges, shares
from grpolab.results import style

COLUMNS = 3
ROW = 0.125  # inches of a choice
NAMES = {"kl": "kl, placement"}


def choice_ranges(frame: pd.DataFrame) -> Figure:
    """Error of every choice over all that it is combined with, a mark for each staleness."""
    stales = sorted(frame["staleness"].unique())
    tables = {s: ranges(frame[frame["staleness"] == s]) for s in stales}
    known = tables[stales[0]].groupby("factor", sort=False)["choice"].nunique()
    columns = _columns({str(f): int(n) for f, n in known.items() if n > 1})
    rows = max(sum(n + 2 for n in column.values()) for column in columns)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, ROW * rows + 0.7)
        for part, column in zip(
            figure.subfigures(1, COLUMNS, squeeze=False)[0], columns, strict=True
        ):
            heights = [n + 1 for n in column.values()]
            panels = part.subplots(
                len(column), 1, squeeze=False, sharex=True, height_ratios=heights
            )
            for axes, factor in zip(panels[:, 0], column, strict=True):
                _ranges(axes, factor, tables)
            panels[-1, 0].set_xlabel("Error / ‖∇J‖²")
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _columns(sizes: dict[str, int]) -> list[dict[str, int]]:
    """Factors over columns of about the same height, the longest first."""
    columns: list[dict[str, int]] = [{} for _ in range(min(COLUMNS, len(sizes)))]
    columns += [{} for _ in range(COLUMNS - len(columns))]
    for factor in sorted(sizes, key=lambda f: -sizes[f]):
        shortest = min(columns, key=lambda c: sum(n + 2 for n in c.values()))
        shortest[factor] = sizes[factor]
    return columns


def _ranges(axes: Axes, factor: str, tables: dict[float, pd.DataFrame]) -> None:
    last = tables[max(tables)]
    own = last[last["factor"] == factor].sort_values("median")
    order = [str(c) for c in own["choice"]]
    for i, (stale, table) in enumerate(tables.items()):
        here = table[table["factor"] == factor].set_index("choice").loc[order]
        y = np.arange(len(order)) + 0.3 * (i - (len(tables) - 1) / 2)
        colour = style.COLOURS[i]
        axes.hlines(y, here["low"], here["high"], color=colour, lw=0.8)
        axes.plot(here["median"], y, style.MARKERS[i], ms=2.6, color=colour,
                  label=f"staleness {stale:g}")  # fmt: skip
    axes.set_yticks(range(len(order)), order, fontsize=5)
    axes.set_ylim(len(order) - 0.4, -0.6)
    axes.set_title(factor, fontsize=7, loc="left")
    axes.set_xlim(-0.02, 1.02)


def share_map(frame: pd.DataFrame) -> Figure:
    """Share of the variance of the error over all arms that a factor, and a pair, accounts for."""
    stales = sorted(frame["staleness"].unique())
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.3)
        panels = figure.subplots(1, len(stales), squeeze=False, sharey=True)[0]
        for axes, stale in zip(panels, stales, strict=True):
            found = shares(frame[frame["staleness"] == stale])
            _cells(axes, found)
            more = found.loc[found["first"] == "more", "share"].iloc[0]
            axes.set_title(f"staleness {stale:g} (three and more: {more:.1%})", fontsize=7.5)
    return figure


def _cells(axes: Axes, found: pd.DataFrame) -> None:
    names = [a for a, b in zip(found["first"], found["second"], strict=True) if a == b != "more"]
    values = np.full((len(names), len(names)), np.nan)
    for a, b, share in found[found["first"] != "more"].itertuples(index=False):
        values[names.index(b), names.index(a)] = share
    axes.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i, j in zip(*np.nonzero(np.isfinite(values)), strict=True):
        axes.text(j, i, f"{values[i, j]:.1%}", ha="center", va="center", fontsize=6,
                  color="white" if values[i, j] > 0.55 else "black")  # fmt: skip
    labels = [NAMES.get(n, n) for n in names]
    axes.set_xticks(range(len(names)), labels, fontsize=6)
    axes.set_yticks(range(len(names)), labels, fontsize=6)
    axes.grid(visible=False)


def is_product(frame: pd.DataFrame) -> bool:
    """Whether, under each staleness, the arms are every combination of at least two factors."""

    def whole(own: pd.DataFrame) -> bool:
        counts = [crossed(own)[f].nunique() for f in FACTORS if f != "placement"]
        return sum(n > 1 for n in counts) > 1 and len(own) == int(np.prod(counts))

    return all(whole(own) for _, own in frame.groupby("staleness"))
