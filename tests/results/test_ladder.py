"""The ladder: what a design's arms say of the order of changes, and how that is drawn."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pandas as pd
import pytest

from grpolab.results.figures.common import NothingToDrawError
from grpolab.results.figures.ladder import FORWARD, REVERSED, TAKEN_BACK, ladder, ladders
from grpolab.results.frames import Results, ResultsError, RunRecord, history_frame, runs_frame
from grpolab.results.points import points

CHANGES = ("a=1", "b=[1,2]", "c=x")
EFFECT = {"a=1": 0.1, "b=[1,2]": 0.2, "c=x": 0.05}


def arms(sets: Iterable[Iterable[str]]) -> pd.DataFrame:
    names = [",".join(sorted(chosen)) or "baseline" for chosen in sets]
    return pd.DataFrame({"arm": names, "baseline": [name == "baseline" for name in names]})


def subsets(*sizes: int) -> list[tuple[str, ...]]:
    return [own for size in sizes for own in itertools.combinations(CHANGES, size)]


def results() -> Results:
    """A full factorial whose changes add up, but a and b together lose .15."""
    records, logged = [], []
    for chosen in subsets(0, 1, 2, 3):
        arm = ",".join(chosen) or "baseline"
        value = 0.4 + sum(EFFECT[c] for c in chosen) - 0.15 * ({"a=1", "b=[1,2]"} <= set(chosen))
        for seed in (0, 1):
            records.append(RunRecord("s", "w", f"{arm}-{seed}", arm, not chosen, seed, "done"))
            logged.append(points(["eval/accuracy"], [0], [10], [value + 0.01 * seed]))
    return Results(runs_frame(records), history_frame(records, logged))


def test_a_factorial_gives_both_orders_and_each_taken_back() -> None:
    found = ladders(arms(subsets(0, 1, 2, 3)))
    assert [one.name for one in found] == [FORWARD, REVERSED, TAKEN_BACK]
    assert list(found[0].rungs) == ["baseline", "+ a=1", "+ b=[1,2]", "+ c=x"]
    assert list(found[0].rungs.values()) == ["baseline", "a=1", "a=1,b=[1,2]", "a=1,b=[1,2],c=x"]
    assert list(found[1].rungs) == ["baseline", "+ c=x", "+ b=[1,2]", "+ a=1"]
    assert list(found[2].rungs) == ["all changes", "− a=1", "− b=[1,2]", "− c=x"]
    assert found[2].rungs["− b=[1,2]"] == "a=1,c=x"
    assert set(found[2].against.values()) == {"all changes"}


def test_the_order_can_be_chosen() -> None:
    found = ladders(arms(subsets(0, 1, 2, 3)), ["c", "a"])
    assert list(found[0].rungs) == ["baseline", "+ c=x", "+ a=1", "+ b=[1,2]"]
    with pytest.raises(ResultsError, match=r"^order=d: no arm changes it; there is: a, b, c"):
        ladders(arms(subsets(0, 1, 2, 3)), ["d"])


def test_leave_one_out_and_two_ladders() -> None:
    (alone,) = ladders(arms([(), *subsets(2, 3)]))
    assert alone.name == TAKEN_BACK
    up = [CHANGES[:k] for k in (2, 0, 3, 1)] + [CHANGES[k:] for k in (1, 2)]
    both = ladders(arms(up))
    assert [one.name for one in both] == [FORWARD, REVERSED]
    assert list(both[0].rungs) == ["baseline", "+ a=1", "+ b=[1,2]", "+ c=x"]


@pytest.mark.parametrize(
    "sets",
    [
        [(), ("a=1",)],
        [(), ("a=1",), ("a=2",)],
        [(), ("a=1",), ("c=x",)],
        [("a=1",), ("a=1", "c=x"), CHANGES],
        [(), ("a=1",), ("c=x",), CHANGES],
    ],
)
def test_what_is_none(sets: list[tuple[str, ...]]) -> None:
    with pytest.raises(NothingToDrawError, match="the arms are no ladder"):
        ladders(arms(sets))


def test_the_figure_says_how_the_attribution_depends_on_the_order() -> None:
    figure, caption = ladder(results())
    forward, backward, without = figure.axes
    notes = [[text.get_text() for text in axes.texts] for axes in figure.axes]
    assert notes[0] == ["n = 2", "n = 2  +0.100", "n = 2  +0.050", "n = 2  +0.050"]
    assert notes[1] == ["n = 2", "n = 2  +0.050", "n = 2  +0.200", "n = 2  −0.050"]
    assert notes[2] == ["n = 2", "n = 2  +0.050", "n = 2  −0.050", "n = 2  −0.050"]
    assert [axes.get_ylabel() for axes in figure.axes] == [FORWARD, REVERSED, TAKEN_BACK]
    path = next(line for line in forward.lines if line.get_label() == "_path")
    assert np.asarray(path.get_xdata()) == pytest.approx([0.405, 0.505, 0.555, 0.605])
    assert "_path" not in [line.get_label() for line in without.lines]
    assert backward.get_xlim() == forward.get_xlim()
    for words in ("In reverse order", "One taken back", "n = 2 finished runs", "interact"):
        assert words in caption
