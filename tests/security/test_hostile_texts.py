"""Answers made to hurt: rewards that ask a verifier score them, or end them at their time limit."""

from __future__ import annotations

import inspect
import itertools
import math
from dataclasses import dataclass
from typing import Any, ClassVar

import pytest

from grpolab.component import component, component_class, names
from grpolab.rewards.base import RewardInputs
from grpolab.tasks.base import Example, Examples, Task
from grpolab.training import collect
from grpolab.training.collect import correctness

TEXTS = {
    "a MB of words": "the answer is 41 " * (2**20 // 17),
    "control characters": "".join(map(chr, range(32))) * 300 + "\x7f\u202e\u2028" * 100,
    "letters before a full stop": "a" * 50_000 + "!",
    "a million digits": "9" * 10**6,
    "a chain of slashes": "1/" * 50_000,
    "open braces": "\\boxed{" * 20_000,
    "open tags": "<think>" * 20_000 + "<answer>" * 20_000,
    "powers": "9**9**9**9",
    "code": "__import__('os').abort()",
    "deep lists": "[" * 50_000 + "]" * 50_000,
    "LaTeX": "\\boxed{" + "\\frac{1}{" * 5000 + "2" + "}" * 5001,
}
PUZZLES = (
    "chain_sum", "countdown", "binary_matrix", "n_queens", "puzzle24", "spiral_matrix",
    "string_insertion", "propositional_logic", "polynomial_equations", "complex_arithmetic",
    "base_conversion", "decimal_arithmetic", "sudoku", "zebra_puzzles", "graph_color",
)  # fmt: skip
"""Verifiers that would run answers if they were let, parse them, or count with them."""


def scored(reward: Any, text: str, task: Task, example: Example) -> float:
    """What a reward gives one completion."""
    given = RewardInputs([text], [example], task, [1], [False], 8)
    (found,) = reward(given).total
    return float(found)


@pytest.mark.parametrize("label", TEXTS)
@pytest.mark.parametrize("name", ["task", "cosine_length"])
def test_no_hostile_text_is_right(name: str, label: str) -> None:
    task, example = component("task", "gsm8k"), Example("6*7=", "42")
    reward = component("reward", name)
    right = scored(reward, "#### 42", task, example)
    found = scored(reward, TEXTS[label], task, example)
    assert math.isnan(found) or found < right


@pytest.mark.parametrize("dataset", PUZZLES)
def test_no_hostile_text_solves_a_puzzle(dataset: str) -> None:
    pytest.importorskip("reasoning_gym", reason="needs the extra reasoning-gym")
    task = component(
        "task", "reasoning_gym", dataset=dataset, extract="full", train_size=1, held_out_size=0
    )
    (example,) = task.load().train
    for label, text in TEXTS.items():
        assert correctness(task, [text], [example]) == [False], label


@dataclass(frozen=True)
class Endless(Task):
    """A task whose verifier does not come back."""

    name: ClassVar[str] = "endless"

    def load(self) -> Examples:
        return Examples([], [], "none")

    def verify(self, completion: str, example: Example) -> float:
        for _ in itertools.count():
            if completion == "caught":
                self._swallow()
        return 1.0

    def _swallow(self) -> None:
        """Catches what it can."""
        try:
            for _ in itertools.count():
                pass
        except Exception:
            return


@pytest.mark.parametrize("text", ["plain", "caught"])
@pytest.mark.parametrize("name", ["task", "cosine_length"])
def test_the_time_limit_ends_a_verifier(name: str, text: str) -> None:
    reward = component("reward", name, time_limit=0.05)
    assert math.isnan(scored(reward, text, Endless(), Example("", "")))
    assert "time limit of 0.05 s" in (reward.first_error or "")


@pytest.mark.parametrize("text", ["plain", "caught"])
def test_a_verifier_that_evaluation_asks_is_ended_too(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(collect, "VERIFY_SECONDS", 0.05)
    assert correctness(Endless(), [text], [Example("", "")]) == [False]


def test_every_reward_that_asks_a_verifier_is_among_these() -> None:
    """One that is added has to be looked at, too."""
    sources = {name: inspect.getsource(component_class("reward", name)) for name in names("reward")}
    assert {n for n, text in sources.items() if "task.verify" in text} == {"task", "cosine_length"}
