"""A weighted sum of rewards, with every part kept on its own."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.rewards.base import Reward, RewardInputs, Scores
from grpolab.tasks.base import Example

MISSING = "???"


@dataclass(frozen=True)
class Mixture(Reward):
    """R = Σ_k weight_k · R_k, and the unweighted R_k as parts.

    A part is {name: a reward, weight: a number (1), and that reward's settings}. What is unscorable
    (NaN) in a part is unscorable in the sum, since a missing term would look like a score of 0;
    TRL and ms-swift sum what there is (`missing` skip). A part with weight 0 is scored and logged,
    and touches the sum in no way.

    Summing before the advantage normalises is this class; normalising each part first is the
    advantage `gdpo`, which reads the parts and `weights`: one for each label. The parts of a
    mixture inside a mixture are logged as outer/inner and have no weight of their own.
    """

    name: ClassVar[str] = "mixture"

    parts: dict[str, dict[str, Any]] = setting(
        MISSING, "Label → {name: a reward, weight: 1, its settings}."
    )
    missing: Literal["unscorable", "skip"] = setting(
        "unscorable", "The sum where a part is unscorable; skip: of the other parts, if any."
    )

    def __post_init__(self) -> None:
        """Make the parts, so that a mistake in one of them is refused with the configuration."""
        given: Any = self.parts
        if given != MISSING and not (self.weights and self._rewards):
            raise ValueError("parts: empty; allowed: at least one part")
        taken = {"mean", "std", "zero_std_share", "unscorable_share"} & set(self.parts)
        if taken:  # reward/<part> is logged beside these
            raise ValueError(f"parts.{min(taken)}: a metric's own name; allowed: any other label.")
        slashed = [label for label in self.parts if "/" in label]
        if slashed:  # outer/inner is the part of a part
            raise ValueError(f"parts.{slashed[0]}: has a slash; allowed: a label without one.")

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each part, for advantages that combine the parts themselves."""
        return {label: _weight(label, part) for label, part in self.parts.items()}

    @cached_property
    def _rewards(self) -> dict[str, Reward]:
        return {label: _reward(label, part) for label, part in self.parts.items()}

    @property
    def first_error(self) -> str | None:
        errors = ((label, reward.first_error) for label, reward in self._rewards.items())
        return next((f"{label}: {error}" for label, error in errors if error), None)

    def looks_ahead(self, elsewhere: bool) -> bool:
        return any(reward.looks_ahead(elsewhere) for reward in self._rewards.values())

    def ahead(
        self, completions: Sequence[str], examples: Sequence[Example], elsewhere: bool
    ) -> None:
        """Hands them to the parts that look ahead."""
        for reward in self._rewards.values():
            if reward.looks_ahead(elsewhere):
                reward.ahead(completions, examples, elsewhere)

    def forget(self) -> None:
        for reward in self._rewards.values():
            reward.forget()

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuses what a part refuses."""
        for label, reward in self._rewards.items():
            try:
                reward.check_limit(max_new_tokens)
            except ValueError as error:
                raise ValueError(f"parts.{label}.{error}") from error

    def __call__(self, inputs: RewardInputs) -> Scores:
        """The weighted sum for each of the N completions, and all parts."""
        weighted: list[list[float]] = []
        parts: dict[str, list[float]] = {}
        verified: list[float] | None = None
        for label, reward in self._rewards.items():
            scores, weight = reward(inputs), self.weights[label]
            parts[label] = scores.total
            parts |= {f"{label}/{inner}": values for inner, values in scores.parts.items()}
            verified = scores.verified if verified is None else verified
            if weight:
                weighted.append([weight * score for score in scores.total])
        total = [self._sum(terms) for terms in _rows(weighted, len(inputs))]
        return Scores(total, parts, verified)

    def _sum(self, terms: Sequence[float]) -> float:
        there = [term for term in terms if not math.isnan(term)]
        if len(there) < len(terms) and (self.missing == "unscorable" or not there):
            return math.nan
        return float(sum(there))


def _rows(columns: list[list[float]], count: int) -> list[tuple[float, ...]]:
    return list(zip(*columns, strict=True)) if columns else [()] * count


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
