"""What is compared: an advantage, a clip, a KL with its placement, an aggregation, a correction."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from grpolab.component import (
    ConfigError,
    component,
    component_class,
    nearest,
    registry,
    settings_of,
)
from grpolab.objective.kl.base import PLACEMENTS
from grpolab.objective.loss import Objective

GROUPS = ("advantage", "clip", "kl", "aggregation", "correction")
FACTORS = ("advantage", "clip", "kl", "placement", "aggregation", "correction")
UNBIASED = {
    "advantage": "rloo",
    "clip": "none",
    "kl": "none",
    "placement": "loss",
    "aggregation": "seq_mean_token_sum",
    "correction": "none",
}
"""The arm whose expected gradient is the true one; what is changed in it is to blame for a bias."""


@dataclass(frozen=True)
class Arm:
    """One setting of the factors, with the real components it stands for."""

    advantage: str = UNBIASED["advantage"]
    clip: str = UNBIASED["clip"]
    kl: str = UNBIASED["kl"]
    placement: str = UNBIASED["placement"]
    aggregation: str = UNBIASED["aggregation"]
    correction: str = UNBIASED["correction"]
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict, compare=False)
    """{group: {setting: value}}, for the components that have such a setting."""

    @property
    def label(self) -> str:
        """What differs from the unbiased arm, as overrides: `clip=ppo, kl=k3`."""
        given = {f: getattr(self, f) for f in FACTORS}
        parts = [f"{f}={v}" for f, v in given.items() if v != UNBIASED[f]]
        return ", ".join(parts) or "unbiased"

    def make(self, group: str) -> Any:
        """The component of a group; ConfigError if its settings are refused."""
        name = getattr(self, group)
        known = settings_of(component_class(group, name))
        chosen = {k: v for k, v in self.settings.get(group, {}).items() if k in known}
        if group == "kl" and name != "none":
            chosen["placement"] = self.placement
        return component(group, name, **chosen)

    @cached_property
    def parts(self) -> tuple[Any, Objective, Any]:
        """(advantage, objective, aggregation)."""
        objective = Objective(self.make("clip"), self.make("kl"), self.make("correction"))
        return self.make("advantage"), objective, self.make("aggregation")

    def check(self, group_size: int) -> None:
        """Raises ConfigError for what cannot be, as a training run would."""
        if self.kl == "none" and self.placement != "loss":
            raise ConfigError(
                f"kl.placement: {self.placement} given with kl=none, which stands nowhere; "
                "allowed: loss."
            )
        advantage, _, _ = self.parts
        if advantage.needs_group and group_size < 2:
            raise ConfigError(
                f"group_size: {group_size} given with advantage={self.advantage}, which compares "
                "within a group; allowed: 2 or more."
            )
        k = getattr(advantage, "k", None) if self.advantage == "pass_at_k" else None
        if k is not None and advantage.mode == "analytic" and k >= group_size:
            raise ConfigError(
                f"advantage.k: {k} given with group_size={group_size}; allowed: below it."
            )


def choices(factor: str) -> list[str]:
    """Every choice of a factor, the unbiased arm's first."""
    found = list(PLACEMENTS) if factor == "placement" else sorted(registry(factor))
    return sorted(found, key=lambda name: name != UNBIASED[factor])


def chosen(factor: str, given: Sequence[str]) -> list[str]:
    """The names given for a factor, `all` spelled out; ConfigError for one that is not known."""
    allowed, found = choices(factor), []
    for name in given:
        if name == "all":
            found += allowed
        elif name in allowed:
            found.append(name)
        else:
            key = "kl.placement" if factor == "placement" else factor
            raise ConfigError(
                f"{key}: {name!r} given; allowed: all, {', '.join(sorted(allowed))}"
                f"{nearest(name, allowed) or '.'}"
            )
    return list(dict.fromkeys(found))


def product(
    factors: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> Iterator[Arm]:
    """Every combination; a KL that is none is placed nowhere, so it stands once."""
    names = {f: list(factors.get(f, [UNBIASED[f]])) for f in FACTORS}
    seen = set()
    for values in itertools.product(*names.values()):
        named: dict[str, Any] = dict(zip(FACTORS, values, strict=True))
        arm = Arm(**named, settings=settings)
        if arm.kl == "none":
            arm = replace(arm, placement="loss")
        if arm not in seen:
            seen.add(arm)
            yield arm


def one_factor(
    factors: Mapping[str, Sequence[str]], settings: Mapping[str, Mapping[str, Any]]
) -> Iterator[Arm]:
    """The first value of each factor, then every other value of each alone; a KL is tried in each
    of the placements given."""
    names = {f: list(factors.get(f, [UNBIASED[f]])) for f in FACTORS}
    first = {f: v[0] for f, v in names.items()}
    if first["kl"] == "none":
        first["placement"] = "loss"
    base = replace(Arm(settings=settings), **cast("dict[str, Any]", first))
    yield base
    seen = {base}
    for factor in GROUPS:
        for name in names[factor]:
            for place in names["placement"] if factor == "kl" else [first["placement"]]:
                changed: dict[str, Any] = {factor: name, "placement": place}
                arm = replace(base, **changed)
                if arm.kl == "none":
                    arm = replace(arm, placement="loss")
                if arm not in seen:
                    seen.add(arm)
                    yield arm


DESIGNS = {"one_factor": one_factor, "product": product}


def possible(arms: Iterator[Arm], group_size: int) -> tuple[list[Arm], list[str]]:
    """(the arms that can be, one sentence for each that cannot)."""
    kept, refused = [], []
    for arm in arms:
        try:
            arm.check(group_size)
        except ConfigError as error:
            refused.append(f"{arm.label}: {error}")
        else:
            kept.append(arm)
    return kept, refused
