"""The figure of a gradient by the number of right answers in a group, beside theory."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from grpolab.probe.measures import Array
from grpolab.results import style
from grpolab.results.figures.common import handle, legend, legend_height
from grpolab.results.figures.difficulty import RATES, draw_theory, theory_handles

MOST = 8
"""Patterns that are drawn, from the first arm's on."""
CAPTION = (
    "By the number k of right answers in a group of G. Left: mean |A|. Middle: weight f_G(p) of a "
    "prompt with success rate p in the expected gradient, in units of ∇p: Σ_k Bin(k; G, p)·(a_k/p "
    "− b_k/(1 − p)), a_k and b_k the means over groups of ΣA/G over right and over wrong answers; "
    "of arms for which every k occurs, but for 0 and G where the advantages of a group sum to 0. "
    "Grey: theory for rewards of 0 and 1 (z-score with "
    "ddof 1). Right: share of |G|² of the groups with k, filled; open, the share that they have of "
    "ΣA², which it would be if all completions' gradients were equally long and unrelated. Above: "
    "groups with each k. Arms that agree in all of it share a line."
)


def patterns(frame: pd.DataFrame, tolerance: float = 2e-3) -> list[tuple[list[str], pd.DataFrame]]:
    """[(arms, rows of the first of them)]: arms together with the same groups, weights and shares,
    to a part of the largest, and with the same ones missing."""
    found: list[tuple[list[str], pd.DataFrame]] = []
    for arm, own in frame.groupby("arm", sort=False):
        for names, known in found:
            if _same(known, own, tolerance):
                names.append(str(arm))
                break
        else:
            found.append(([str(arm)], own))
    return found


def _same(a: pd.DataFrame, b: pd.DataFrame, tolerance: float) -> bool:
    if a["right"].tolist() != b["right"].tolist() or a["groups"].tolist() != b["groups"].tolist():
        return False
    values = [x[["weight", "toward", "away", "share"]].to_numpy(dtype=float) for x in (a, b)]
    known = [np.isfinite(x) for x in values]
    if (known[0] != known[1]).any():
        return False
    one, other = (np.where(mask, x, 0.0) for mask, x in zip(known, values, strict=True))
    scale = np.abs(one).max(axis=0)
    return bool((np.abs(one - other) <= tolerance * scale).all())


def weight_of_rate(own: pd.DataFrame, rates: Array = RATES) -> Array | None:
    """f_G(p) at some rates from an arm's rows; None where a k is missing whose groups may count:
    those of 0 and G do not where the advantages of every group sum to 0."""
    size = int(own["group_size"].iloc[0])
    known = own.set_index("right")[["toward", "away"]]
    centred = np.allclose(known["toward"], -known["away"], atol=1e-6)
    if not set(range(1, size) if centred else range(size + 1)) <= set(known.index):
        return None
    total = np.zeros_like(rates)
    for k, (toward, away) in zip(known.index, known.to_numpy(), strict=True):
        chance = math.comb(size, k) * rates**k * (1 - rates) ** (size - k)
        total += chance * (toward / rates - away / (1 - rates))
    return total


def difficulty(frame: pd.DataFrame) -> Figure | None:
    """Mean |A|, f_G(p) and share of |G|² by right answers."""
    if frame.empty:
        return None
    shown = patterns(frame)[:MOST]
    looks = looks_of(frame, [names for names, _ in shown])
    handles = {str(i): look for i, look in enumerate(looks)}
    width = style.DOUBLE_COLUMN
    figure = style.new_figure(width, 2.3 + legend_height(handles, width) + 0.25)
    left, middle, right = figure.subplots(1, 3)
    for size in sorted(set(frame["group_size"])):
        draw_theory(left, middle, int(size))
    for i, ((_, own), look) in enumerate(zip(shown, looks, strict=True)):
        aside = 0.02 * (i - (len(shown) - 1) / 2) / len(shown)
        x = own["right"] / own["group_size"] + aside
        left.plot(x, own["weight"], look.marker, color=look.colour, ms=3.5, mec="white", mew=0.3)
        curve = weight_of_rate(own)
        if curve is not None:
            middle.plot(RATES, curve, look.marker, color=look.colour, ls=look.line, lw=0.7,
                        markevery=(3 * i % 12, 12), ms=3, mec="white", mew=0.3)  # fmt: skip
        squares = own["square"] * own["groups"]
        right.plot(x, own["share"], color=look.colour, ls=look.line, marker=look.marker, ms=3,
                   lw=0.7)  # fmt: skip
        right.plot(x, squares / squares.sum(), look.marker, color=look.colour, ms=4.5, mfc="none",
                   mew=0.6)  # fmt: skip
    _count(right, shown[0][1])
    left.set_ylabel("Mean |A|")
    middle.set_ylabel("Weight $f_G(p)$ of $\\nabla p$")
    middle.set_xlabel("Success rate p")
    middle.set_ylim(bottom=0)
    right.set_ylabel("Share of |G|²")
    for axes in (left, right):
        axes.set_xlabel("Share of right answers, k/G")
    legend(figure, [*(handle(look) for look in looks), *theory_handles()])
    return figure


def looks_of(frame: pd.DataFrame, shown: list[list[str]]) -> list[style.ArmStyle]:
    """The look of each line, that of its first arm among all: the same in every figure."""
    order = list(dict.fromkeys(frame["arm"]))
    return [style.nth_style(order.index(names[0]), named(names)) for names in shown]


def named(arms: list[str]) -> str:
    """The first arm's label, and how many have its pattern."""
    more = f" and {len(arms) - 1} more" if len(arms) > 1 else ""
    return style.readable(arms[0]) + more


def _count(axes: Axes, own: pd.DataFrame) -> None:
    """The number of groups with each k, above the panel."""
    for k, size, groups in own[["right", "group_size", "groups"]].itertuples(index=False):
        axes.text(k / size, 1.02, f"{groups}", fontsize=5, color="0.35", ha="center",
                  transform=axes.get_xaxis_transform())  # fmt: skip
