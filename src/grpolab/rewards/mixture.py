"""A weighted sum of rewards, with every part kept on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from grpolab.objective.settings import setting
from grpolab.rewards.base import Reward, RewardInputs, Scores

MISSING = "???"


@dataclass(frozen=True)
class Mixture(Reward):
    """R = Σ_k weight_k · R_k, and the unweighted R_k as parts.

    A part is {name: a reward, weight: a number (1), and that reward's settings}. What is unscorable
    (NaN) in a part is unscorable in the sum, since a missing term would look like a score of 0; a
    part with weight 0 is scored and logged, and touches the sum in no way. The parts of a mixture
    inside a mixture are named outer/inner.

    Summing before the advantage normalises is this class; normalising each part first is the
    advantage `gdpo`, which reads the parts.
    """

    name: ClassVar[str] = "mixture"

    parts: dict[str, dict[str, Any]] = setting(
        MISSING, "Label → {name: a reward, weight: 1, its settings}."
    )

    def __post_init__(self) -> None:
        """Make the parts, so that a mistake in one of them is refused with the configuration."""
        given: Any = self.parts
        if given != MISSING and not (self.weights and self._rewards):
            raise ValueError("parts: empty; allowed: at least one part")
        taken = {"mean", "std", "zero_std_share", "unscorable_share"} & set(self.parts)
        if taken:  # reward/<part> is logged beside these
            raise ValueError(f"parts.{min(taken)}: a metric's own name; allowed: any other label.")

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each part, for advantages that combine the parts themselves."""
        return {label: _weight(label, part) for label, part in self.parts.items()}

    @cached_property
    def _rewards(self) -> dict[str, Reward]:
        return {label: _reward(label, part) for label, part in self.parts.items()}

    def __call__(self, inputs: RewardInputs) -> Scores:
        """The weighted sum for each of the N completions, and all parts."""
        total = [0.0] * len(inputs)
        parts: dict[str, list[float]] = {}
        for label, reward in self._rewards.items():
            scores, weight = reward(inputs), self.weights[label]
            parts[label] = scores.total
            parts |= {f"{label}/{inner}": values for inner, values in scores.parts.items()}
            if weight:
                added = zip(total, scores.total, strict=True)
                total = [so_far + weight * score for so_far, score in added]
        return Scores(total, parts)


def _weight(label: str, part: Mapping[str, Any]) -> float:
    weight = part.get("weight", 1.0)
    if (
        isinstance(weight, bool)
        or not isinstance(weight, (int, float))
        or not math.isfinite(weight)
    ):
        raise ValueError(f"parts.{label}.weight: {weight!r} is not allowed; allowed: a number")
    return float(weight)


def _reward(label: str, part: Mapping[str, Any]) -> Reward:
    """The reward of one part; ValueError with its key inside the mixture."""
    # Here, not above: the registry imports this module.
    from grpolab.component import ConfigError, from_config

    settings = {key: value for key, value in part.items() if key != "weight"}
    try:
        made: Reward = from_config("reward", settings, key=f"parts.{label}")
    except ConfigError as error:
        # As a plain ValueError, the registry puts the key of the mixture itself in front.
        raise ValueError(str(error)) from error
    return made
