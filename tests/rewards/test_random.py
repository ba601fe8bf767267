"""The reward that knows nothing: its share, and what it is refused without."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from grpolab.component import ConfigError, component
from grpolab.rewards.base import RewardInputs

Inputs = Callable[..., RewardInputs]


def test_one_below_its_share(inputs: Inputs) -> None:
    given = replace(inputs(["a"] * 4), noise=lambda: [0.0, 0.24, 0.25, 0.99])
    assert component("reward", "random", share=0.25)(given).total == [1.0, 1.0, 0.0, 0.0]


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_no_signal_at_either_end(inputs: Inputs, share: float) -> None:
    given = replace(inputs(["a"] * 3), noise=lambda: [0.0, 0.5, 1 - 2**-53])
    assert component("reward", "random", share=share)(given).total == [share] * 3


def test_refused(inputs: Inputs) -> None:
    with pytest.raises(ConfigError, match="share"):
        component("reward", "random", share=1.5)
    with pytest.raises(ValueError, match=r"^reward: random given"):
        component("reward", "random")(inputs(["a"]))
