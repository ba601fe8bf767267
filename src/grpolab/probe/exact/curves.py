"""Figures of bias, variance and error against β and against the sampler's mismatch."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.results import style

LOWEST = 1e-6
"""What is smaller, exact zeros included, is drawn here."""
SQUARES = {"bias_square": "Bias²", "variance": "Variance", "mse": "Mean squared error"}
MISMATCHED = {
    "direction_bias": "Direction bias",
    "noise_to_signal": "Noise to signal",
    "rescaled_mse": "Error at the best\nlearning rate / ‖∇J‖²",
}


def by_beta(frame: pd.DataFrame) -> Figure:
    """Bias², variance and error of each KL against β: a row each, a column for each placement."""
    table = frame[(frame["kl"] != "none") & (frame["beta"] > 0)]
    table = table.assign(bias_square=table["bias"] ** 2)
    places = [p for p in ("loss", "reward", "reward_to_go") if p in set(table["placement"])]
    names = sorted(table["kl"].unique())
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 5.2)
        grid = figure.subplots(len(SQUARES), len(places), squeeze=False, sharex=True, sharey="row")
        for column, place in zip(grid.T, places, strict=True):
            own = table[table["placement"] == place]
            for axes, (y, label) in zip(column, SQUARES.items(), strict=True):
                _curves(axes, own, "beta", y, "kl", names)
                if place == places[0]:
                    axes.set_ylabel(label)
                axes.set_yscale("log")
            column[0].set_title(f"KL in the {place.replace('_', ' ')}", fontsize=7.5)
            column[-1].set_xlabel("β")
            column[-1].set_xscale("log")
        found = {t: h for a in grid[0] for h, t in zip(*a.get_legend_handles_labels(), strict=True)}
        order = [n for n in names if n in found]
        figure.legend([found[n] for n in order], order, loc="outside lower center", ncols=5)
    return figure


def by_mismatch(frame: pd.DataFrame) -> Figure:
    """Bias, noise and error of each correction against the sampler's mismatch."""
    names = sorted(frame["correction"].unique(), key=lambda n: (n != "none", n))
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.5)
        panels = figure.subplots(1, len(MISMATCHED))
        for axes, (y, label) in zip(panels, MISMATCHED.items(), strict=True):
            _curves(axes, frame, "mismatch", y, "correction", names)
            axes.set_xlabel("Mismatch of the sampler, in logits")
            axes.set_ylabel(label)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=len(labels))
    return figure


def _curves(axes: Axes, frame: pd.DataFrame, x: str, y: str, by: str, names: list[str]) -> None:
    """A line for each name, in the style that it has in every panel; intervals where sampled."""
    for i, name in enumerate(names):
        own = frame[frame[by] == name].sort_values(x)
        if own.empty:
            continue
        look = style.nth_style(i, name)
        floored = np.maximum(own[y], LOWEST) if y in SQUARES else own[y]
        axes.plot(own[x], floored, color=look.colour, ls=look.line, marker=look.marker, ms=2.8,
                  lw=1, label=name)  # fmt: skip
        sampled = own[~own["exact"].astype(bool)]
        if f"{y}_low" in frame:
            axes.vlines(sampled[x], sampled[f"{y}_low"], sampled[f"{y}_high"], color=look.colour,
                        lw=0.6)  # fmt: skip
