"""What an advantage makes of a prompt's difficulty: mean |A| by success rate, and f_G(p)."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from grpolab.results import statistics, style
from grpolab.results.figures.common import (
    INTERVAL,
    Drawn,
    NothingToDrawError,
    counts,
    handle,
    legend,
    legend_height,
    need,
    unfinished,
)
from grpolab.results.frames import Results
from grpolab.results.style import ArmStyle, arm_styles
from grpolab.results.summary import LEVEL

Array = npt.NDArray[np.float64]
METRIC = re.compile(r"advantage/abs_at_(\d+)_of_(\d+)")
MOST_SIZES = 3  # whose theory is drawn
RATES = np.linspace(0.02, 0.98, 97)
THEORIES = {"z-score": (0, (5, 2)), "centred": (0, (1, 1.2)), "leave-one-out": (0, (4, 1, 1, 1))}


@dataclass(frozen=True)
class Weights:
    """An arm's mean |A| for each number of right answers."""

    size: int
    """G."""
    mean: dict[int, float]
    """{k: mean over seeds of a run's mean over its steps}."""
    ends: dict[int, tuple[float, float]]
    """{k: t interval over seeds}; NaN of fewer than two."""


def advantage_by_difficulty(results: Results) -> Drawn:
    """Mean |A| against a group's share of right answers, and the weight f_G(p) that follows.

    f_G(p) is what the expected gradient of a prompt with success rate p is, in units of ∇p:
    Σ_k Bin(k; G, p) · mean |A| at k / 2p(1 − p). It is drawn where each k from 1 to G − 1 was
    measured. Both beside what a group's z-score, centring and leave-one-out give for rewards of 0
    and 1.
    """
    need("advantage_by_difficulty", results)
    arms = measured(results)
    if not arms:
        raise NothingToDrawError(
            "figures=advantage_by_difficulty: no run logged advantage/abs_at_<k>_of_<G>, as runs "
            "with rewards of two values do"
        )
    looks = {arm: look for arm, look in arm_styles(results.runs).items() if arm in arms}
    sizes = sorted({own.size for own in arms.values()})
    with matplotlib.rc_context(style.PAPER):
        width = style.DOUBLE_COLUMN
        figure = style.new_figure(width, 2.5 + legend_height(looks, width) + 0.15)
        left, right = figure.subplots(1, 2)
        for size in sizes[-MOST_SIZES:]:
            draw_theory(left, right, size)
        for i, (arm, look) in enumerate(looks.items()):
            _measured(left, right, arms[arm], look, 0.012 * (i - (len(looks) - 1) / 2) / len(looks))
        left.set_ylabel("Mean |A|")
        left.set_xlabel("Share of right answers in the group, k/G")
        right.set_ylabel("Weight $f_G(p)$ of $\\nabla p$")
        right.set_xlabel("Success rate p")
        right.set_ylim(bottom=0)
        legend(figure, [*(handle(look) for look in looks.values()), *theory_handles()])
    return Drawn(figure, _caption(results, arms, sizes))


def measured(results: Results) -> dict[str, Weights]:
    """{arm: its weights}, of the runs that logged them; of several G in an arm the largest."""
    history = results.history
    names = [str(name) for name in history["metric"].unique() if METRIC.fullmatch(str(name))]
    chosen = history[history["metric"].isin(names) & np.isfinite(history["value"])]
    found: dict[str, Weights] = {}
    for arm, own in chosen.groupby("arm", observed=True):
        runs = own.groupby(["metric", "job_id"], observed=True)["value"].mean()
        values = {
            _place(str(name)): group.to_numpy(dtype=float)
            for name, group in runs.groupby(level=0, observed=True)
        }
        size = max(g for _, g in values)
        spans = {
            k: statistics.mean_interval(means, LEVEL)
            for (k, g), means in values.items()
            if g == size
        }
        found[str(arm)] = Weights(
            size,
            {k: span.mean for k, span in sorted(spans.items())},
            {k: (span.low, span.high) for k, span in sorted(spans.items())},
        )
    return found


def _place(name: str) -> tuple[int, int]:
    match = METRIC.fullmatch(name)
    assert match is not None
    return int(match[1]), int(match[2])


def expected(weights: Mapping[int, float], size: int, rates: Array = RATES) -> Array | None:
    """f_G(p) at `rates` from {k: mean |A|}; None where a k from 1 to G − 1 is missing.

    A group without a right answer, or with nothing else, counts as without weight where it was
    not measured.
    """
    if any(k not in weights for k in range(1, size)):
        return None
    total = np.zeros_like(rates)
    for k in range(size + 1):
        chance = math.comb(size, k) * rates**k * (1 - rates) ** (size - k)
        total += chance * weights.get(k, 0.0)
    return np.asarray(total / (2 * rates * (1 - rates)))


def theory(name: str, size: int) -> dict[int, float]:
    """{k: mean |A|} of k right answers among `size`, rewards 0 and 1; the z-score's ddof is 1."""
    centred = {k: 2 * k * (size - k) / size**2 for k in range(size + 1)}
    if name == "centred":
        return centred
    if name == "leave-one-out":
        return {k: value * size / (size - 1) for k, value in centred.items()}
    scale = math.sqrt((size - 1) / size)
    return {k: 2 * math.sqrt(k * (size - k)) / size * scale for k in range(size + 1)}


def theory_handles() -> list[Line2D]:
    """What the grey lines are."""
    return [
        Line2D([], [], color="0.45", ls=line, lw=1, label=f"theory: {name}")
        for name, line in THEORIES.items()
    ]


def draw_theory(left: Axes, right: Axes, size: int) -> None:
    """Mean |A| by k/G and f_G(p) of the three normalisers that have a closed form, in grey."""
    for name, line in THEORIES.items():
        weights = theory(name, size)
        xs, curve = [k / size for k in weights], expected(weights, size)
        assert curve is not None  # of every k
        left.plot(xs, list(weights.values()), color="0.45", ls=line, lw=1, zorder=2,
                  label=f"_theory {name}")  # fmt: skip
        right.plot(RATES, curve, color="0.45", ls=line, lw=1, zorder=2,
                   label=f"_theory {name}")  # fmt: skip


def _measured(left: Axes, right: Axes, own: Weights, look: ArmStyle, aside: float) -> None:
    xs = np.array([k / own.size for k in own.mean])
    left.plot(
        xs + aside, list(own.mean.values()), look.marker, color=look.colour, ms=4, mec="white",
        mew=0.3, label=look.label, zorder=4,
    )  # fmt: skip
    for x, (low, high) in zip(xs + aside, own.ends.values(), strict=True):
        if np.isfinite(low):
            left.plot([x, x], [low, high], color=look.colour, lw=1.1, zorder=3)
    curve = expected(own.mean, own.size)
    if curve is not None:
        # thin, with many markers: theory, where it is the same, is seen below it
        right.plot(
            RATES, curve, look.marker, color=look.colour, ls="-", lw=0.5, markevery=8, ms=3.5,
            mec="white", mew=0.3, label=look.label, zorder=4,
        )  # fmt: skip


def _caption(results: Results, arms: Mapping[str, Weights], sizes: Sequence[int]) -> str:
    incomplete = [arm for arm, own in arms.items() if expected(own.mean, own.size) is None]
    absent = [arm for arm in arm_styles(results.runs) if arm not in arms]
    groups = ", ".join(map(str, sizes[-MOST_SIZES:]))
    return style.join(
        [
            "Left: mean |A| of the groups with k of G right answers, over the steps of a run. "
            f"Markers: means over seeds; bars: {INTERVAL}, arms drawn a little beside each other.",
            "Right: weight f_G(p) of a prompt with success rate p in the expected gradient, in "
            "units of ∇p: Σ_k Bin(k; G, p) · mean |A| at k / 2p(1 − p), from the means on the "
            "left.",
            f"Grey: theory for rewards of 0 and 1 and G = {groups} (z-score with ddof 1).",
            f"No curve, as some k never occurred: {'; '.join(incomplete)}." if incomplete else "",
            f"Not logged by {'; '.join(absent)}." if absent else "",
            f"Seeds: {counts(results)}.",
            unfinished(results.runs, crosses=False),
        ]
    )
