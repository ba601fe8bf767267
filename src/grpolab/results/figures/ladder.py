"""Changes one after the other, in one order and in its reverse, and each taken back from them all.

What a change adds depends on what is there already, so one order is one answer of many: the design
that has all these arms (a factorial, or two ladders and leave-one-out) gives them side by side.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from grpolab.results import style
from grpolab.results.figures.common import (
    FINAL,
    INTERVAL,
    REFERENCE_LINE,
    Arm,
    Drawn,
    NothingToDrawError,
    arm_means,
    arm_rows,
    counts,
    cut,
    definitions,
    finals,
    need,
    note,
    row_count,
    row_label,
    unfinished,
    whisker,
)
from grpolab.results.frames import Results, refuse
from grpolab.results.from_mlflow import overrides
from grpolab.results.metrics import decimals, describe
from grpolab.results.style import ArmStyle, arm_styles

FEWEST_ARMS = 3
MOST_CHANGES = 12  # orders are searched, and a figure of more could not be read

Changes = frozenset[str]


@dataclass(frozen=True)
class Ladder:
    """Arms from top to bottom, each compared with one of them."""

    name: str
    rungs: dict[str, str]
    """{what the row is called: its arm}, in order."""
    against: dict[str, str]
    """{a row: the row its difference is to}."""


def ladder(results: Results, metric: str = "eval/accuracy", order: Sequence[str] = ()) -> Drawn:
    """Rung by rung from the baseline: what is changed on top of the rung before, and the mean.

    Below it, where the arms are there: the same in reverse order, and each change taken back from
    all. `order`: config keys, the first to be changed first; the alphabet's where there is a
    choice. NothingToDrawError if the arms are none of these.
    """
    need("ladder", results, metric)
    values = finals(results, metric)
    found = ladders(values, order)
    means, styles = arm_means(values), arm_styles(results.runs)
    with matplotlib.rc_context(style.PAPER):
        labels = [[row_label(rung) for rung in one.rungs] for one in found]
        heights = [row_count(own) for own in labels]
        figure = style.new_figure(0.75 * style.DOUBLE_COLUMN, 0.6 + 0.3 * sum(heights))
        column = figure.subplots(
            len(found), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": heights}
        )[:, 0]
        for axes, one, own in zip(column, found, labels, strict=True):
            _rungs(axes, one, own, (means, styles, values))
            if len(found) > 1:
                axes.set_ylabel(one.name)
        column[-1].set_xlabel(f"{describe(metric).label} (final)")
    return Drawn(figure, _caption(results, metric, found))


def _rungs(
    axes: Axes,
    one: Ladder,
    labels: Sequence[str],
    drawn: tuple[Mapping[str, Arm], Mapping[str, ArmStyle], pd.DataFrame],
) -> None:
    """The rows of a ladder: mean, interval, seeds, and the difference that is read off it."""
    means, styles, values = drawn
    path = [means[arm].mean for arm in one.rungs.values()]
    if one.name != TAKEN_BACK:
        axes.plot(path, range(len(path)), color="0.6", lw=0.9, zorder=1, label="_path")
    axes.axvline(path[0], color="0.5", lw=0.7, ls=REFERENCE_LINE, zorder=1)
    for y, (rung, arm) in enumerate(one.rungs.items()):
        look = styles[arm]
        seeds = values.loc[values["arm"] == arm, "final"].dropna()
        axes.plot(
            seeds, np.full(len(seeds), y + 0.25), "o", ms=2.4, mfc="none", mec=look.colour, mew=0.5
        )
        whisker(axes, y, means[arm], look.colour, vertical=False)
        axes.plot(
            [means[arm].mean], [y], look.marker, color=look.colour, ms=5, mec="white", mew=0.4,
            zorder=4,
        )  # fmt: skip
        step = ""
        if rung in one.against:
            other = means[one.rungs[one.against[rung]]].mean
            step = f"  {decimals(means[arm].mean - other, signed=True)}".replace("-", "−")
        note(axes, y, f"n = {means[arm].n}{step}")
    arm_rows(axes, labels)


FORWARD, REVERSED, TAKEN_BACK = "in order", "in reverse order", "one taken back"


def ladders(values: pd.DataFrame, order: Sequence[str] = ()) -> list[Ladder]:
    """What can be read off the arms of `values` (columns arm and baseline)."""
    arms = {
        _changes(str(arm), bool(base)): str(arm)
        for arm, base in zip(values["arm"], values["baseline"], strict=True)
    }
    every = frozenset[str]().union(*arms)
    keys = {change.partition("=")[0] for change in every}
    for key in order:
        if key not in keys:
            raise refuse("order", key, "no arm changes it", sorted(keys))
    base: Changes = frozenset()
    if len(arms) < FEWEST_ARMS or base not in arms or len(every) > MOST_CHANGES:
        raise _none()
    chain = sorted(arms, key=len)
    if all(one < other for one, other in itertools.pairwise(chain)):
        return [_climbed(FORWARD, chain, arms)]
    if every not in arms:
        raise _none()
    rank = {key: i for i, key in enumerate(order)}
    changes = sorted(every, key=lambda c: (rank.get(c.partition("=")[0], len(rank)), c))
    found = []
    forward = _path(changes, arms)
    if forward:
        found.append(_climbed(FORWARD, _rising(forward), arms))
        back = _rising(forward[::-1])
        if all(rung in arms for rung in back):
            found.append(_climbed(REVERSED, back, arms))
    if len(changes) > 2 and all(every - {change} in arms for change in changes):
        rungs = {"all changes": arms[every]}
        rungs |= {f"− {change}": arms[every - {change}] for change in changes}
        found.append(Ladder(TAKEN_BACK, rungs, dict.fromkeys(list(rungs)[1:], "all changes")))
    if not found:
        raise _none()
    return found


def _none() -> NothingToDrawError:
    return NothingToDrawError(
        "figures=ladder: the arms are no ladder, where each keeps what the one before changed, nor "
        "all changes and each of them taken back"
    )


def _changes(arm: str, baseline: bool) -> Changes:
    """What an arm changes against the baseline, as overrides."""
    return frozenset() if baseline else frozenset(f"{k}={v}" for k, v in overrides(arm))


def _rising(changes: Sequence[str]) -> list[Changes]:
    """From the baseline to all changes, one more at a time."""
    return [frozenset(changes[:count]) for count in range(len(changes) + 1)]


def _path(changes: Sequence[str], arms: Mapping[Changes, str]) -> list[str] | None:
    """The first order, by that of `changes`, all of whose rungs are arms."""
    dead: set[Changes] = set()

    def on_from(made: list[str]) -> list[str] | None:
        if len(made) == len(changes):
            return made
        for change in changes:
            rung = frozenset([*made, change])
            if change in made or rung in dead or rung not in arms:
                continue
            found = on_from([*made, change])
            if found:
                return found
            dead.add(rung)
        return None

    return on_from([])


def _climbed(name: str, chain: Sequence[Changes], arms: Mapping[Changes, str]) -> Ladder:
    rungs = {arms[chain[0]]: arms[chain[0]]}
    against = {}
    for before, rung in itertools.pairwise(chain):
        label = "+ " + ",".join(sorted(rung - before))
        against[label] = list(rungs)[-1]
        rungs[label] = arms[rung]
    return Ladder(name, rungs, against)


def _caption(results: Results, metric: str, found: Sequence[Ladder]) -> str:
    names = {one.name for one in found}
    climbed = names & {FORWARD, REVERSED}
    return style.join(
        [
            f"Final {describe(metric).in_a_sentence} ({FINAL}) of changes one after the other.",
            "Ladder: each rung keeps what the rungs above it changed; beside it its n and the "
            "difference of its mean to the rung above; dashed line: baseline mean."
            if climbed
            else "",
            "In reverse order: the same changes, the last one first." if REVERSED in names else "",
            "One taken back: all changes but one; beside it the difference to all changes, the "
            "dashed line."
            if TAKEN_BACK in names
            else "",
            f"Large markers: means over seeds; bars: {INTERVAL}{cut(metric)}; small circles: seeds "
            f"({counts(results)}).",
            "What a change adds depends on what is there already, where changes interact."
            if len(found) > 1
            else "What a rung adds depends on the order of the ladder where changes interact.",
            *definitions([metric]),
            unfinished(results.runs, crosses=False),
        ]
    )
