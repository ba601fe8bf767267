"""A user's own function as a reward."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import pytest

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs

Inputs = Callable[..., RewardInputs]

SOURCE = """
def length(completion, example, scale=1.0):
    return scale * len(completion) / len(example.answer)

def fussy(completion, example):
    if completion == "wait":
        while True:
            pass
    return float(completion)

def batch(completions, examples):
    return [float(c == e.answer) for c, e in zip(completions, examples)]

def short(completions, examples):
    return [1.0]

class Rules:
    @staticmethod
    def one(completion, example):
        return 1

number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_rewards.py").write_text(SOURCE)
    (tmp_path / "my_broken_rewards.py").write_text("raise RuntimeError('not today')\n")
    monkeypatch.syspath_prepend(str(tmp_path))


def test_one_completion_at_a_time(inputs: Inputs) -> None:
    reward = component("reward", "python", function="my_rewards:length", arguments={"scale": 2.0})
    assert reward(inputs(["a", "abcd"])).total == [1.0, 4.0]
    assert component("reward", "python", function="my_rewards:Rules.one")(inputs(["a"])).total == [
        1.0
    ]


def test_all_completions_at_once(inputs: Inputs) -> None:
    reward = component("reward", "python", function="my_rewards:batch", batched=True)
    assert reward(inputs(["42", "41"])).total == [1.0, 0.0]
    assert reward(inputs([])).total == []


def test_what_raises_or_is_too_slow_is_unscorable(inputs: Inputs) -> None:
    reward = component("reward", "python", function="my_rewards:fussy", time_limit=0.05)
    scores = reward(inputs(["1", "x", "wait", "2", "inf"])).total
    assert [math.isnan(score) for score in scores] == [False, True, True, False, True]
    reward = component("reward", "python", function="my_rewards:short", batched=True)
    assert all(map(math.isnan, reward(inputs(["1", "2"])).total))


@pytest.mark.parametrize(
    ("function", "message"),
    [
        ("my_rewards.length", "reward.function: 'my_rewards.length' has no such form"),
        ("my_reward:length", "cannot import my_reward (ModuleNotFoundError"),
        ("my_broken_rewards:x", "cannot import my_broken_rewards (RuntimeError: not today)"),
        ("my_rewards:lenght", "my_rewards has no lenght; allowed: length, fussy, batch"),
        ("my_rewards:number", "'my_rewards:number' is a int; allowed: something to call"),
        ("???", "reward.function: missing"),
    ],
)
def test_mistakes_are_refused_with_the_configuration(function: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("reward", "python", function=function)
    assert message in str(caught.value)
