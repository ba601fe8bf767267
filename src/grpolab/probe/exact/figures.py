"""The laboratory's figures: each one function from a frame to a Figure, and its caption."""

from __future__ import annotations

import math
import textwrap
from typing import Any

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import ScalarFormatter

from grpolab.probe.exact.identities import weight_of_pass_rate
from grpolab.results import style

FACTOR_COLOURS = dict(
    zip(
        ("advantage", "clip", "kl", "aggregation", "correction", "several"),
        style.COLOURS,
        strict=False,
    )
)
FLOOR = 1e-3
"""Where the axis of a bias begins: what is below, exact zeros included, is drawn on it."""
DIRECTION = "Direction bias: sine of the angle from E[g] to ∇J"


def factor_of(row: pd.Series[Any]) -> str:
    """Which factor of the arm differs from the unbiased arm; `several` for more than one."""
    parts = [p.split("=")[0] for p in str(row["arm"]).split(", ") if "=" in p]
    factors = {"kl" if p == "placement" else p for p in parts}
    if not factors:
        return "unbiased"
    return factors.pop() if len(factors) == 1 else "several"


def bias_variance_map(frame: pd.DataFrame) -> Figure:
    """Every arm: noise against direction bias, a panel for each staleness of the frame."""
    stales = sorted(frame["staleness"].unique())
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 3.3)
        panels = figure.subplots(1, len(stales), sharey=True, squeeze=False)[0]
        for axes, stale in zip(panels, stales, strict=True):
            _map_panel(axes, frame[frame["staleness"] == stale])
            axes.set_title(f"staleness {stale:g}", fontsize=7.5)
            axes.set_xlabel(DIRECTION)
        panels[0].set_ylabel("Noise to signal: √Var[g] / ‖E[g]‖")
        handles, labels = panels[-1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=7)
    return figure


def _map_panel(axes: Axes, frame: pd.DataFrame) -> None:
    factors = frame.apply(factor_of, axis=1)
    colours = {"unbiased": "black", **FACTOR_COLOURS}
    for (name, colour), marker in zip(colours.items(), "o" + "".join(style.MARKERS), strict=False):
        own = frame[factors == name]
        if own.empty:
            continue
        x = own["direction_bias"].clip(lower=FLOOR)
        axes.scatter(
            x,
            own["noise_to_signal"],
            s=18,
            color=colour,
            marker=marker,
            label=name,
            lw=0,
            alpha=0.8,
        )
    _name_outliers(axes, frame.assign(factor=factors))
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xlim(FLOOR / 1.5, 2)
    axes.yaxis.set_major_formatter(ScalarFormatter())
    axes.yaxis.set_minor_formatter(ScalarFormatter())


def _name_outliers(axes: Axes, frame: pd.DataFrame) -> None:
    """Names beside those arms that stand alone, one name for arms that coincide."""
    taken: list[tuple[float, float]] = []
    order = frame.assign(far=frame["direction_bias"] + frame["noise_to_signal"] / 10)
    order = order.sort_values("far", ascending=False)
    columns = (order[c].tolist() for c in ("arm", "direction_bias", "noise_to_signal"))
    for arm, bias, noise in zip(*columns, strict=True):
        at = max(float(bias), FLOOR)
        x, y = math.log10(at), 4 * math.log10(float(noise))
        if any(abs(x - a) < 0.9 and abs(y - b) < 0.14 for a, b in taken):
            continue
        taken.append((x, y))
        text = str(arm).replace("placement", "in")
        for factor in ("advantage=", "clip=", "aggregation=", "correction="):
            text = text.replace(factor, "")
        right = x > -0.9
        axes.annotate(
            text,
            (at, float(noise)),
            xytext=(-4 if right else 4, 0),
            textcoords="offset points",
            fontsize=5,
            va="center",
            ha="right" if right else "left",
        )


def lines(
    frame: pd.DataFrame, x: str, y: str, by: str, xlabel: str, ylabel: str, log: str = ""
) -> Figure:
    """One line for each value of `by`; arms whose lines coincide share one and both names."""
    curves: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for name, own in frame.groupby(by, sort=True):
        own = own.sort_values(x)
        curve = tuple(zip(own[x].tolist(), own[y].round(9).tolist(), strict=True))
        curves.setdefault(curve, []).append(str(name))
    xs = sorted(frame[x].unique())
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 3.2)
        axes = figure.subplots()
        for i, (points, names) in enumerate(sorted(curves.items(), key=lambda c: -c[0][-1][1])):
            axes.plot(
                [x for x, _ in points],
                [max(y, FLOOR) if "y" in log else y for _, y in points],
                color=style.COLOURS[i % 6],
                linestyle=style.LINES[i // 6 % 4],
                marker=style.MARKERS[i % 11],
                markersize=3,
                label=textwrap.fill(", ".join(names), 34),
            )
        sampled = frame[~frame["exact"].astype(bool)]
        axes.vlines(
            sampled[x],
            sampled[f"{y}_low"].clip(lower=FLOOR if "y" in log else None),
            sampled[f"{y}_high"],
            color="0.6",
            linewidth=0.8,
            zorder=0,
        )
        axes.set_xlabel(xlabel)
        axes.set_ylabel(ylabel)
        if "x" in log:
            axes.set_xscale("log", base=2)
            axes.set_xticks(xs, [f"{v:g}" for v in xs])
            axes.minorticks_off()
        if "y" in log:
            axes.set_yscale("log")
        figure.legend(loc="outside right upper", fontsize=6)
    return figure


def pass_rate_weights(found: pd.DataFrame) -> Figure:
    """f_G(p) and the share of silent groups: theory as lines, samples with intervals."""
    grid = np.linspace(0.02, 0.98, 97)
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.4)
        left, right = figure.subplots(1, 2)
        for i, size in enumerate((2, 3, 8)):
            colour = style.COLOURS[i]
            weights = [weight_of_pass_rate(size, p) for p in grid]
            left.plot(grid, weights, color=colour, label=f"G = {size}")
            right.plot(grid, grid**size + (1 - grid) ** size, color=colour)
            _points(left, found, rf"^f_{size}\((.*)\), sampled", colour)
            _points(right, found, rf"^groups of {size} without .* p = (.*), sampled", colour)
        for axes in (left, right):
            axes.set_xlabel("Pass rate p of the prompt")
        left.set_ylabel("Weight of ∇p in the z-score gradient")
        right.set_ylabel("Share of groups without a difference")
        left.set_ylim(0, 3)
        left.legend(loc="lower center", ncols=3)
    return figure


def _points(axes: Axes, found: pd.DataFrame, pattern: str, colour: str) -> None:
    rates = found["identity"].str.extract(pattern)[0]
    own = found[rates.notna()]
    axes.errorbar(
        rates.dropna().astype(float),
        own["measured"],
        yerr=[own["measured"] - own["low"], own["high"] - own["measured"]],
        fmt="o",
        markersize=3,
        color=colour,
        capsize=2,
        linewidth=0.8,
    )


def schulman(found: pd.DataFrame) -> Figure:
    """Theory (ticks) and measurement (points, intervals) of bias and standard deviation."""
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.3)
        panels = figure.subplots(1, 4)
        cells = [(mu, q) for mu in sorted(found["mu"].unique()) for q in ("bias", "std")]
        for axes, (mu, quantity) in zip(panels, cells, strict=True):
            own = found[(found["mu"] == mu) & (found["quantity"] == quantity)]
            x = np.arange(len(own))
            axes.scatter(x, own["theory"], marker="_", s=260, color="0.6", label="theory")
            axes.errorbar(
                x,
                own["measured"],
                yerr=[own["measured"] - own["low"], own["high"] - own["measured"]],
                fmt="o",
                markersize=3,
                capsize=2,
                color=style.COLOURS[0],
                label="measured",
            )
            axes.set_xticks(x, own["estimator"])
            axes.set_xlim(-0.6, len(own) - 0.4)
            kl = own["kl"].iloc[0]
            axes.set_title(f"KL = {kl:g}", fontsize=7.5)
            axes.set_ylabel("Bias / KL" if quantity == "bias" else "Standard deviation / KL")
            if quantity == "std":
                axes.set_ylim(0, None)
        handles, labels = panels[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=2)
    return figure


def flow(found: pd.DataFrame) -> Figure:
    """Reward and KL along the courses, and how far each is from the optimum."""
    panels: list[tuple[str, str]] = [
        ("kl", "KL to the reference"),
        ("reward", "Expected reward"),
        ("distance", "Largest difference from\nthe optimum of E[R] − β·KL"),
    ]
    with matplotlib.rc_context(style.PAPER):
        figure = style.new_figure(style.DOUBLE_COLUMN, 2.5)
        grid = figure.subplots(1, 3)
        for axes, (column, label) in zip(grid, panels, strict=True):
            for i, (course, own) in enumerate(found.groupby("course", sort=False)):
                axes.plot(
                    own["step"],
                    own[column].clip(lower=1e-6) if column == "distance" else own[column],
                    color=style.COLOURS[i % 6],
                    linestyle=style.LINES[i % 4],
                    label=str(course),
                )
            axes.set_xlabel("Step of the flow")
            axes.set_ylabel(label)
        grid[2].set_yscale("log")
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=5)
    return figure
