"""The figure of the group size: how surely a group, and a batch, points along the true gradient."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, NullFormatter, NullLocator

from grpolab.probe.difficulty_figure import looks_of
from grpolab.probe.measures import Array
from grpolab.results import style
from grpolab.results.style import ArmStyle

CAPTION = (
    "Signal |E g|² and noise E|g − E g|² of the gradient g of one group, in groups of G of this "
    "batch's completions. Top left: their ratio; grey, what it would be if it grew as G or as "
    "G − 1, from the first arm's largest groups. Top right: that of a batch of as many completions "
    "as this one in independent prompts; where it is highest, a number of completions is spent "
    "best. Bottom left: share of the noise that the prompts make, which no number of completions "
    "of the same prompts takes away. Bottom right: expected cosine between two batches of P "
    "prompts, of the first arm. Arms with the same gradient up to a factor share a line. Bars and "
    "bands: jackknife standard error over prompts; a bar that leaves the panel below reaches 0, "
    "without a bar the error is unknown, and estimates below 0 have no place on a log axis."
)
MOST = 12
"""Arms that are named."""
GUIDES = {"as G": (0, (5, 2)), "as G − 1": (0, (1, 1.2))}


def sizes(frame: pd.DataFrame) -> Figure | None:
    """Signal to noise against G of a group and of a batch, the prompts' share of the noise, and the
    cosine between two batches against P."""
    if frame.empty:
        return None
    frame = frame.assign(
        batch_snr=frame["snr"] * frame["groups"],
        batch_snr_error=frame["snr_error"] * frame["groups"],
    )
    same = alike(frame)
    arms = [names[0] for names in same]
    looks = looks_of(frame, same)
    figure = style.new_figure(style.DOUBLE_COLUMN, 4.4)
    grid = figure.subplots(2, 2)
    for axes, (column, label) in zip(grid.flat, PANELS.items(), strict=False):
        for i, (arm, look) in enumerate(zip(arms, looks, strict=True)):
            aside = 1.03 ** (i - (len(arms) - 1) / 2)  # bars beside each other
            _arm(axes, frame[frame["arm"] == arm], column, look, aside if len(arms) < 8 else 1.0)
        _by_size(axes, sorted(set(frame["group_size"])))
        axes.set_ylabel(label)
        if column != "prompt_share":
            _log(axes, frame[column])
    first = frame[frame["arm"] == arms[0]]
    _guides(grid[0, 0], first)
    grid[1, 0].axhline(0, color="0.5", lw=0.6)
    _by_prompts(grid[1, 1], first)
    handles, labels = grid[0, 0].get_legend_handles_labels()
    if len(labels) <= MOST + len(GUIDES):
        figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize=5.5)
    return figure


PANELS = {
    "snr": "Signal to noise of one group",
    "batch_snr": "Signal to noise of as many\ncompletions as in this batch",
    "prompt_share": "Prompts' share of the noise",
}


def alike(frame: pd.DataFrame, tolerance: float = 1e-4) -> list[list[str]]:
    """Arms together whose gradients are the same up to a factor, which ratios do not tell."""
    found: list[tuple[list[str], Array]] = []
    for arm, own in frame.groupby("arm", sort=False):
        here = own[["group_size", "snr", "snr_error"]].to_numpy(dtype=float)
        for names, known in found:
            if known.shape == here.shape and np.allclose(
                known, here, rtol=tolerance, atol=0, equal_nan=True
            ):
                names.append(str(arm))
                break
        else:
            found.append(([str(arm)], here))
    return [names for names, _ in found]


def _arm(axes: Axes, own: pd.DataFrame, column: str, look: ArmStyle, aside: float) -> None:
    own = own[np.isfinite(own[column])]
    if column != "prompt_share":
        own = own[own[column] > 0]
    axes.errorbar(
        own["group_size"] * aside, own[column], yerr=own[f"{column}_error"],
        color=look.colour, ls=look.line, marker=look.marker, ms=3, lw=0.9, elinewidth=0.7,
        label=look.label,
    )  # fmt: skip


def _by_size(axes: Axes, known: list[int]) -> None:
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(FixedLocator(known))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda size, _: f"{size:g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlabel("Completions of a group, G")


def _log(axes: Axes, values: pd.Series) -> None:
    """A log axis from a third of the smallest estimate to three times the largest, if any."""
    values = values[values > 0]
    if values.empty:
        return
    axes.set_yscale("log", nonpositive="clip")
    axes.set_ylim(values.min() / 3, values.max() * 3)
    axes.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())


def _guides(axes: Axes, own: pd.DataFrame) -> None:
    """Growth as G and as G − 1 from the largest groups that have a signal."""
    known = own[own["snr"] > 0].sort_values("group_size")
    if known.empty:
        return
    last = known.iloc[-1]
    size = np.array(sorted(set(own["group_size"])), dtype=float)
    for (label, line), grown in zip(GUIDES.items(), (size, size - 1), strict=True):
        most = last["group_size"] - (0 if label == "as G" else 1)
        axes.plot(size, last["snr"] * grown / most, color="0.55", ls=line, lw=0.8, zorder=1,
                  label=label)  # fmt: skip


def _by_prompts(axes: Axes, own: pd.DataFrame) -> None:
    """P·snr/(1 + P·snr) against P, a line for each group size."""
    prompts = 2.0 ** np.arange(0, 11)
    for i, row in enumerate(own.sort_values("group_size").to_dict("records")):
        if not row["snr"] > 0:
            continue
        look = style.nth_style(i, f"G = {row['group_size']:g}")
        axes.plot(prompts, _cosine(prompts * row["snr"]), color=look.colour, ls=look.line,
                  marker=look.marker, ms=2.5, lw=0.9, label=look.label)  # fmt: skip
        ends = [max(row["snr"] + sign * row["snr_error"], 0.0) for sign in (-1, 1)]
        if np.isfinite(ends).all():
            low, high = (_cosine(prompts * end) for end in ends)
            axes.fill_between(prompts, low, high, color=look.colour, alpha=0.12, lw=0)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_ylim(0, 1)
    axes.set_xlabel("Prompts of a batch, P")
    axes.set_ylabel("Cosine between two batches")
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=5.5, loc="upper left")


def _cosine(ratio: Array) -> Array:
    found: Array = ratio / (1 + ratio)
    return found
