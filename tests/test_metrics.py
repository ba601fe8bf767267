"""The one list of metrics: found by name, holes filled, strangers refused."""

from __future__ import annotations

import pytest

from grpolab.metrics import METRICS, checked, find
from grpolab.results.metrics import describe


def test_names_are_unique_and_defined() -> None:
    names = [m.name for m in METRICS]
    assert len(set(names)) == len(names)
    assert all(m.definition for m in METRICS)


@pytest.mark.parametrize("metric", METRICS, ids=lambda m: m.name)
def test_each_is_found_by_its_own_name(metric: object) -> None:
    name = metric.name  # type: ignore[attr-defined]
    if "<" not in name:
        assert find(name) is metric


def test_an_exact_name_goes_before_a_hole() -> None:
    found = find("reward/std")
    assert found is not None
    assert found.definition.startswith("standard deviation")
    part = find("reward/format")
    assert part is not None
    assert (part.name, part.better) == ("reward/format", "higher")


def test_holes_are_filled_in() -> None:
    found = describe("eval/pass@8")
    assert found.label == "Eval pass@8"
    assert "one of 8 samples" in found.definition
    assert found.bounded
    assert not found.every_step


def test_direction() -> None:
    assert describe("eval/accuracy").higher_is_better
    assert not describe("time/step").higher_is_better
    assert describe("mine/score").higher_is_better
    assert describe("mine/score").label == "mine/score"


def test_a_stranger_is_not_logged() -> None:
    assert checked({"loss/total": 1.0}) == {"loss/total": 1.0}
    with pytest.raises(KeyError, match=r"loss/totl, mine/score"):
        checked({"loss/totl": 1.0, "mine/score": 2.0, "loss/total": 3.0})
