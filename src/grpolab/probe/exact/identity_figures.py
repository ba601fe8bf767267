"""Figures of what is proven: theory as lines, the components' measurements as points on them."""

from __future__ import annotations

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.results import style

OFFSET = "Logit's offset from the reference"
LABELS = {
    ("kl_gradients", "in the loss"): (OFFSET, "Slope of the loss"),
    ("kl_gradients", "in the reward"): (OFFSET, ""),
    ("kl_gradients", "off-policy, in the loss"): (OFFSET, "Slope of the loss"),
    ("kl_gradients", "first of two tokens"): (OFFSET, ""),
    ("kl_values", "expectation"): (OFFSET, "Expectation"),
    ("kl_values", "one token"): ("Log-ratio of the token", "Value"),
    ("kl_values", "third order"): (OFFSET, "Distance from the KL"),
    ("advantages", "z-score"): ("Right ones of 8", "Advantage"),
    ("advantages", "sums"): ("Group size G", "Sum over a group"),
    ("advantages", "share of ∇E[R]"): ("Group size G", "Share of ∇E[R]"),
    ("advantages", "G = 2"): ("R₁ − R₂", "Advantage of the first"),
    ("advantages", "R → a·R + 3"): ("a", "Advantage over that of R"),
    ("advantages", "two rewards"): ("Rewards that the second leads in", "Advantage of the second"),
}
LEGENDS = {"kl_gradients": "upper left", "kl_values": "upper center", "advantages": "best"}


def curves(found: pd.DataFrame, name: str) -> Figure:
    """The panels of one figure of identity_curves.csv."""
    own = found[found["figure"] == name]
    panels = list(dict.fromkeys(own["panel"]))
    columns = 2 if len(panels) == 4 else 3
    rows = -(-len(panels) // columns)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.35 * rows)
        grid = figure.subplots(rows, columns, squeeze=False).flat
        for axes, panel in zip(grid, panels, strict=False):
            _panel(axes, own[own["panel"] == panel])
            xlabel, ylabel = LABELS[name, panel]
            axes.set_xlabel(xlabel)
            axes.set_ylabel(ylabel)
            axes.set_title(panel, fontsize=7.5)
            axes.legend(fontsize=5.5, loc=LEGENDS[name])
            if panel == "third order":
                axes.set_xscale("log")
                axes.set_yscale("log")
            if panel == "two rewards":
                axes.set_xticks([1, 2])
                axes.set_ylim(0, None)
    return figure


def _panel(axes: Axes, frame: pd.DataFrame) -> None:
    """Thin dashes for series that share a line, so that the lower one shows through."""
    for i, (series, own) in enumerate(frame.groupby("series", sort=False)):
        look = style.nth_style(i, str(series))
        own = own.sort_values("x")
        axes.plot(own["x"], own["theory"], color=look.colour, ls=look.line, lw=1.0)
        axes.plot(own["x"], own["measured"], ls="", marker=look.marker, ms=3.6 - 0.5 * i,
                  color=look.colour, label=str(series))  # fmt: skip


def fixed_point_policies(found: pd.DataFrame) -> Figure:
    """The policy that each course ends at: theory as ticks, the flow's end as points."""
    courses = list(dict.fromkeys(found["course"]))
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.1)
        panels = figure.subplots(1, len(courses))
        for axes, course in zip(panels, courses, strict=True):
            own = found[found["course"] == course]
            x = np.arange(1, len(own) + 1)
            axes.plot(x, own["reference"], ls=":", lw=0.8, color="0.6", label="reference")
            axes.scatter(x, own["theory"], marker="_", s=200, color="0.55", label="theory")
            axes.plot(x, own["measured"], "o", ms=3, color=style.COLOURS[0], label="measured")
            axes.set_title(course, fontsize=7.5)
            axes.set_xticks(x, [f"{r:g}" for r in own["reward"]])
            axes.set_xlabel("Arm, by its reward")
            axes.set_ylim(0, None)
        panels[0].set_ylabel("Probability")
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3)
    return figure
