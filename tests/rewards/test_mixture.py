"""A weighted sum of rewards."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs

Inputs = Callable[..., RewardInputs]

PARTS: dict[str, dict[str, Any]] = {
    "answer": {"name": "numeric"},
    "layout": {"name": "format", "pattern": r"\d+", "weight": 0.5},
}


def test_the_sum_and_every_part(inputs: Inputs) -> None:
    scores = component("reward", "mixture", parts=PARTS)(inputs(["42", "it is 42", "41", "x"]))
    assert scores.parts == {"answer": [1, 1, 0, 0], "layout": [1, 0, 1, 0]}
    assert scores.total == [1.5, 1.0, 0.5, 0.0]


def test_one_part_of_weight_one_is_that_reward(inputs: Inputs) -> None:
    given = inputs(["42", "41"])
    mixture = component("reward", "mixture", parts={"only": {"name": "task"}})(given)
    assert mixture.total == component("reward", "task")(given).total


def test_weights_are_public() -> None:
    assert component("reward", "mixture", parts=PARTS).weights == {"answer": 1.0, "layout": 0.5}


def test_an_unscorable_part_makes_the_sum_unscorable(inputs: Inputs) -> None:
    given = inputs(["42", "42"], ["no number", "42"])
    scores = component("reward", "mixture", parts=PARTS)(given)
    assert [math.isnan(score) for score in scores.total] == [True, False]
    assert scores.parts["layout"] == [1.0, 1.0]


def test_an_unscorable_part_can_be_left_out(inputs: Inputs) -> None:
    given = inputs(["42", "42", "x"], ["no number", "42", "no number"])
    scores = component("reward", "mixture", parts=PARTS, missing="skip")(given)
    # The layout alone, half of it; both; the layout alone, which is not there.
    assert scores.total == [0.5, 1.5, 0.0]
    only = {"answer": {"name": "numeric"}, "logged": {"name": "format", "weight": 0}}
    scores = component("reward", "mixture", parts=only, missing="skip")(given)
    assert [math.isnan(score) for score in scores.total] == [True, False, True]


def test_parts_of_weight_zero_alone_sum_to_zero(inputs: Inputs) -> None:
    for missing in ("unscorable", "skip"):
        parts = {"a": {"name": "numeric", "weight": 0}}
        scores = component("reward", "mixture", parts=parts, missing=missing)(
            inputs(["42"], ["no number"])
        )
        assert scores.total == [0.0]


def test_the_weighted_parts_are_the_sum(inputs: Inputs) -> None:
    """What gdpo relies on: a part and a weight for each label, and nothing else has a weight."""
    inner = {"name": "mixture", "parts": PARTS, "weight": 3}
    parts = {"in": inner, "short": {"name": "soft_overlong", "weight": 0.25}}
    reward = component("reward", "mixture", parts=parts)
    scores = reward(inputs(["42", "it is 42", "41"], lengths=[1, 60, 64]))
    assert set(reward.weights) == {"in", "short"}
    assert set(scores.parts) == {"in", "short", "in/answer", "in/layout"}
    for row, total in enumerate(scores.total):
        weighted = [w * scores.parts[label][row] for label, w in reward.weights.items()]
        assert total == pytest.approx(sum(weighted))


def test_a_part_that_the_sampler_cannot_reach_is_refused() -> None:
    parts = {"in": {"name": "mixture", "parts": {"short": {"name": "soft_overlong", "cache": 65}}}}
    reward = component("reward", "mixture", parts=parts)
    reward.check_limit(65)
    with pytest.raises(ValueError, match=r"^parts.in.parts.short.cache: 65 given"):
        reward.check_limit(64)


def test_a_part_of_weight_zero_is_only_logged(inputs: Inputs) -> None:
    parts = {"a": {"name": "numeric", "weight": 0}, "b": {"name": "format", "pattern": ".*"}}
    scores = component("reward", "mixture", parts=parts)(inputs(["42"], ["no number"]))
    assert scores.total == [1.0]
    assert math.isnan(scores.parts["a"][0])


def test_a_mixture_inside_a_mixture(inputs: Inputs) -> None:
    parts = {"in": {"name": "mixture", "parts": PARTS, "weight": -2}, "task": {"name": "task"}}
    scores = component("reward", "mixture", parts=parts)(inputs(["42"]))
    assert scores.total == [-2 * 1.5 + 1]
    assert list(scores.parts) == ["in", "in/answer", "in/layout", "task"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({}, "reward.parts: empty"),
        ({"a": {"name": "numerik"}}, "reward.parts.a: unknown reward 'numerik'"),
        ({"a": {}}, "reward.parts.a.name: missing"),
        ({"a/b": {"name": "numeric"}}, "reward.parts.a/b: has a slash"),
        ({"mean": {"name": "numeric"}}, "reward.parts.mean: a metric's own name"),
        ({"a": {"name": "numeric", "weight": "2"}}, "reward.parts.a.weight: '2' is not allowed"),
        ({"a": {"name": "numeric", "weight": math.nan}}, "reward.parts.a.weight: nan"),
        ({"a": {"name": "numeric", "absolut": 1}}, "did you mean absolute?"),
        ({"a": {"name": "numeric", "take": 3}}, "reward.parts.a.take: 3 is not allowed"),
        (
            {"a": {"name": "mixture", "parts": {"b": {"name": "format", "pattern": "["}}}},
            "reward.parts.a.parts.b.pattern: '[' is no regular expression",
        ),
    ],
)
def test_mistakes_are_refused_with_their_key(parts: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", "mixture", parts=parts)
    assert message in str(caught.value)


def test_the_parts_must_be_given() -> None:
    with pytest.raises(ConfigError, match=r"reward.parts: missing"):
        component("reward", "mixture")
