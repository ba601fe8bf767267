"""Rewards that read text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs
from grpolab.tasks.arithmetic import Arithmetic
from grpolab.tasks.base import Example

Inputs = Callable[..., RewardInputs]


@pytest.mark.parametrize(
    ("settings", "completion", "answer", "score"),
    [
        ({}, " Paris\n", "Paris", 1.0),
        ({}, "paris", "Paris", 0.0),
        ({"casefold": True}, "PARIS", "Paris", 1.0),
        ({"strip": False}, " Paris", "Paris", 0.0),
        ({"pattern": "Answer: (.*)"}, "Answer: Rome\nAnswer: Paris", "Paris", 1.0),
        ({"pattern": "Answer: (.*)"}, "Paris", "Paris", 0.0),
        ({"pattern": "(a)|b"}, "ab", "a", 1.0),
    ],
)
def test_exact_match(
    inputs: Inputs, settings: dict[str, Any], completion: str, answer: str, score: float
) -> None:
    assert component("reward", "exact_match", **settings)(inputs([completion], answer)).total == [
        score
    ]


@pytest.mark.parametrize(
    ("settings", "completion", "answer", "score"),
    [
        ({}, "6 * 7 = 42.", "42", 1.0),
        ({}, "42 or 43", "42", 0.0),
        ({"take": "first"}, "42 or 43", "42", 1.0),
        ({"take": "pattern", "pattern": r"is (\S+)"}, "it is $1,042.0 of 2", "1042", 1.0),
        ({"take": "pattern", "pattern": r"is (\S+)"}, "42", "42", 0.0),
        ({}, "no idea", "42", 0.0),
        ({}, "0.75", "3/4", 1.0),
        ({}, "0.7500001", "3/4", 1.0),
        ({"relative": 0.0}, "0.7500001", "3/4", 0.0),
        ({"absolute": 0.5}, "42.5", "42", 1.0),
        ({"absolute": 0.5}, "42.51", "42", 0.0),
        ({"relative": 0.1}, "-90", "-100", 1.0),
        ({"relative": 0.1}, "89", "100", 0.0),
    ],
)
def test_numeric(
    inputs: Inputs, settings: dict[str, Any], completion: str, answer: str, score: float
) -> None:
    assert component("reward", "numeric", **settings)(inputs([completion], answer)).total == [score]


def test_a_gold_answer_without_a_number_is_unscorable(inputs: Inputs) -> None:
    scores = component("reward", "numeric")(inputs(["1", "1"], ["one", "1"])).total
    assert math.isnan(scores[0])
    assert scores[1] == 1.0


@pytest.mark.parametrize(
    ("settings", "completion", "score"),
    [
        ({}, "<think>a\nb</think>\n<answer>c</answer>", 1.0),
        ({}, "so <think>a</think><answer>c</answer>", 0.0),
        ({"match": "search"}, "so <think>a</think><answer>c</answer>", 1.0),
        ({"pattern": r"\d+", "matched": 0.5, "otherwise": 0.25}, "12", 0.5),
        ({"pattern": r"\d+", "matched": 0.5, "otherwise": 0.25}, "x", 0.25),
    ],
)
def test_format(inputs: Inputs, settings: dict[str, Any], completion: str, score: float) -> None:
    assert component("reward", "format", **settings)(inputs([completion])).total == [score]


def test_a_pattern_that_backtracks_is_unscorable(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("grpolab.rewards.text.PATTERN_SECONDS", 0.05)
    scores = component("reward", "format", pattern="(a+)+b")(inputs(["a" * 40, "aab"])).total
    assert math.isnan(scores[0])
    assert scores[1] == 1.0


def test_task_is_the_tasks_own_verifier(inputs: Inputs) -> None:
    assert component("reward", "task")(inputs(["42", "so 41"])).total == [1.0, 0.0]


def test_a_verifier_that_raises_is_unscorable(inputs: Inputs) -> None:
    class Broken(Arithmetic):
        def verify(self, completion: str, example: Example) -> float:
            return 1 / float(completion)

    scores = component("reward", "task")(inputs(["0", "1", "x"], task=Broken())).total
    assert [math.isnan(score) for score in scores] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("exact_match", {"pattern": "(a"}, "reward.pattern: '(a' is no regular expression"),
        ("exact_match", {"pattern": "a"}, "reward.pattern: 'a' has no group"),
        ("numeric", {"pattern": "(a)"}, "reward.pattern: '(a)' does not go with take=last"),
        ("numeric", {"take": "pattern"}, "reward.pattern: None does not go with take=pattern"),
        ("numeric", {"take": "lst"}, "did you mean last?"),
        ("numeric", {"absolute": -1.0}, "reward.absolute: -1.0 is out of bounds"),
        ("format", {"pattern": "["}, "reward.pattern: '[' is no regular expression"),
        ("format", {"matched": 2.0}, "reward.matched: 2.0 is out of bounds"),
        ("task", {"time_limit": 0.0}, "reward.time_limit: 0.0 is out of bounds"),
    ],
)
def test_mistakes_are_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", name, **settings)
    assert message in str(caught.value)


@given(st.lists(st.text(), max_size=5), st.text())
def test_any_text_gets_one_score_each(inputs: Inputs, completions: list[str], answer: str) -> None:
    for name in ("exact_match", "numeric", "format", "task"):
        total = component("reward", name)(inputs(completions, answer)).total
        assert len(total) == len(completions)
        assert all(math.isnan(score) or score in (0.0, 1.0) for score in total)
