"""The space of a search: each key's choices or range, and a drawn value as an override's text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from grpolab.component import ConfigError, nearest
from grpolab.config import UNHASHED
from grpolab.sweep.factors import DIGITS, as_override

RANGE_KEYS = ("low", "high", "log", "step")
NOT_SEARCHED = {
    "seed": "a trial's seeds are search.seeds",
    "eval": "trials would be measured differently",
    "experiment": "it is the same for all trials",
    "hydra": "it changes no run",
    **dict.fromkeys(UNHASHED, "it changes where or how a run is recorded, not what it computes"),
    "checkpoint": "it changes no run's numbers",
}


@dataclass(frozen=True)
class Choices:
    """One of some values, as texts of overrides."""

    texts: tuple[str, ...]

    def ends(self) -> tuple[str, ...]:
        """Texts to try before anything runs."""
        return self.texts

    def text(self, value: Any) -> str:
        return str(value)


@dataclass(frozen=True)
class Range:
    """The numbers from `low` to `high`, both included; whole ones where both are whole."""

    low: float
    high: float
    log: bool = False
    step: float | None = None

    @property
    def whole(self) -> bool:
        return all(isinstance(x, int) for x in (self.low, self.high, self.step or 1))

    def ends(self) -> tuple[str, ...]:
        return self.text(self.low), self.text(self.high)

    def text(self, value: Any) -> str:
        """The number to four digits; to more at the ends, where four would leave the range, and
        on a grid, whose points it must meet."""
        if self.whole:
            return str(int(value))
        first = 12 if self.step is not None else DIGITS
        texts = (f"{value:.{digits}g}" for digits in range(first, 18))
        return next((t for t in texts if self.low <= float(t) <= self.high), repr(float(value)))


Dimension = Choices | Range


def parse(space: Mapping[str, Any]) -> dict[str, Dimension]:
    """The dimensions of `search.space`, in its order; entries of null are left out.

    Raises:
        ConfigError: nothing to search, a key that cannot be searched, no range.
    """
    found = {str(k): dimension(str(k), v) for k, v in space.items() if v is not None}
    if not found:
        raise ConfigError(
            "search.space: empty; allowed: {key: [choice, …]} or {key: {low, high, log, step}}."
        )
    for key in found:
        root = key.partition(".")[0].partition("/")[0]
        if root in NOT_SEARCHED:
            raise ConfigError(
                f"search.space.{key}: cannot be searched, since {NOT_SEARCHED[root]}; "
                "allowed: other keys."
            )
    return found


def dimension(key: str, given: Any) -> Dimension:
    """One entry of the space."""
    if isinstance(given, Mapping):
        return _range(f"search.space.{key}", given)
    if not isinstance(given, (list, tuple)) or not given:
        raise ConfigError(
            f"search.space.{key}: {given!r} given; allowed: a list of choices, or "
            "{low, high, log, step}."
        )
    texts = tuple(as_override(v) for v in given)
    if len(set(texts)) < len(texts):
        raise ConfigError(f"search.space.{key}: {list(given)} given; allowed: each choice once.")
    return Choices(texts)


def _range(key: str, given: Mapping[str, Any]) -> Range:
    for name in given:
        if name not in RANGE_KEYS:
            raise ConfigError(
                f"{key}.{name}: unknown; allowed: {', '.join(RANGE_KEYS)}"
                f"{nearest(str(name), RANGE_KEYS) or '.'}"
            )
    low, high, step = (given.get(k) for k in ("low", "high", "step"))
    log = given.get("log", False)
    for name, value in (("low", low), ("high", high), ("step", step)):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            if name == "step" and value is None:
                continue
            raise ConfigError(f"{key}.{name}: {value!r} given; allowed: a number.")
    if not isinstance(log, bool):
        raise ConfigError(f"{key}.log: {log!r} given; allowed: true, false.")
    assert low is not None
    assert high is not None
    if not low < high:
        raise ConfigError(f"{key}: low {low:g} and high {high:g} given; allowed: low below high.")
    if log and low <= 0:
        raise ConfigError(f"{key}.low: {low:g} given with log; allowed: above 0.")
    if step is not None and (log or not 0 < step <= high - low):
        raise ConfigError(
            f"{key}.step: {step:g} given; allowed: above 0, at most high − low, and without log."
        )
    return Range(low, high, log, step)
