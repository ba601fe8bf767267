"""Reward inputs for tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest

from grpolab.rewards.base import RewardInputs
from grpolab.tasks.arithmetic import Arithmetic
from grpolab.tasks.base import Example, Task


def make_inputs(
    completions: Sequence[str],
    answers: Sequence[str] | str = "42",
    task: Task | None = None,
    prompt: str = "6 * 7 =",
    lengths: Sequence[int] | None = None,
    tokens: Sequence[Sequence[int]] | None = None,
    max_length: int = 64,
) -> RewardInputs:
    """N completions, each with its own answer or all with one."""
    golds = [answers] * len(completions) if isinstance(answers, str) else answers
    return RewardInputs(
        completions=completions,
        examples=[Example(prompt, gold) for gold in golds],
        task=task or Arithmetic(),
        lengths=[len(completion) for completion in completions] if lengths is None else lengths,
        truncated=[False] * len(completions),
        max_length=max_length,
        tokens=None if tokens is None else lambda: tokens,
    )


@pytest.fixture(scope="session")
def inputs() -> Callable[..., RewardInputs]:
    """`make_inputs`; a fixture, since test folders are no packages to import from."""
    return make_inputs
