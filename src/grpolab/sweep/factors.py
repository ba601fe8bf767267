"""The factors of a sweep: values as override texts, intervals, and the points made of them."""

from __future__ import annotations

import itertools
import math
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpolab.component import ConfigError

RESERVED = ("true", "false", "null", "nan", "inf")
"""Words that Hydra's grammar does not read as text."""
DIGITS = 4
TRIES = 1000
"""Draws in a row that may repeat earlier ones until there seems to be nothing else."""


@dataclass(frozen=True)
class Interval:
    """The numbers from `low` (included) to `high` (excluded): Hydra's `interval(low, high)`."""

    low: float
    high: float
    log: bool = False
    """`tag(log, interval(…))`: equal ratios are equally likely."""
    whole: bool = False
    """`int(interval(…))`: whole numbers."""

    def at(self, share: float) -> str:
        """The number at a share in [0, 1) of the interval, to four digits; to more at its ends,
        where four would leave it."""
        if self.log:
            value = self.low * (self.high / self.low) ** share
        else:
            value = self.low + (self.high - self.low) * share
        if self.whole:
            return str(min(math.floor(value), math.ceil(self.high) - 1))
        texts = (f"{value:.{digits}g}" for digits in range(DIGITS, 18))
        return next((t for t in texts if self.low <= float(t) < self.high), repr(value))


Values = Sequence[str] | Interval
"""A factor's choices as override texts, or all numbers of an interval."""
Point = dict[str, str]
"""One combination: {key: override text}."""


def distinct(factors: Mapping[str, Values]) -> dict[str, Values]:
    """The factors, each value once."""
    return {k: v if isinstance(v, Interval) else list(dict.fromkeys(v)) for k, v in factors.items()}


def unique(points: Sequence[Point]) -> list[Point]:
    """The points, each once, in the order in which they first stand."""
    found: dict[tuple[str, ...], Point] = {}
    for point in points:
        found.setdefault(tuple(point.values()), point)
    return list(found.values())


def size(factors: Mapping[str, Values]) -> int:
    """The number of all combinations."""
    return math.prod(len(choices(v)) for v in factors.values())


def combination(factors: Mapping[str, Values], number: int) -> Point:
    """Combination `number` of `size`, the last factor fastest."""
    point = {}
    for key, values in reversed(list(factors.items())):
        number, place = divmod(number, len(choices(values)))
        point[key] = choices(values)[place]
    return {key: point[key] for key in factors}


def matching(value: Any, texts: Sequence[str]) -> str | None:
    """The override text that means a YAML value; None where there is none."""
    wanted = "null" if value is None else str(value)
    return next((t for t in texts if wanted in (t, unescaped(t)) or _same_number(wanted, t)), None)


def unescaped(text: str) -> str:
    """An override's value without the quotes and backslashes of Hydra's grammar."""
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1].replace(f"\\{text[0]}", text[0])
    return re.sub(r"\\(.)", r"\1", text)


def as_override(value: Any) -> str:
    """A YAML value as the text of an override."""
    if isinstance(value, str):
        plainly = re.fullmatch(r"[A-Za-z_][\w./-]*", value) and value.lower() not in RESERVED
        return value if plainly else "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, list):
        return f"[{','.join(map(as_override, value))}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}:{as_override(v)}" for k, v in value.items()) + "}"
    return "null" if value is None else str(value)


def start_value(key: str, values: Values, given: Mapping[str, Any]) -> str:
    """The baseline's value of a factor: the one given, as the sweep writes it, or the first."""
    if isinstance(values, Interval):
        if key not in given:
            raise ConfigError(
                f"tracking.baseline.{key}: missing; {key} is swept over an interval, which has no "
                "first value."
            )
        return as_override(given[key])
    if key not in given:
        return values[0]
    found = matching(given[key], values)
    return as_override(given[key]) if found is None else found


def product(factors: Mapping[str, Values]) -> list[Point]:
    """Every combination, the last factor fastest."""
    rows = itertools.product(*map(choices, factors.values()))
    return [dict(zip(factors, row, strict=True)) for row in rows]


def choices(values: Values) -> Sequence[str]:
    """The values one by one; an interval has none."""
    return () if isinstance(values, Interval) else values


def pick(values: Values, share: float) -> str:
    """The value at a share in [0, 1)."""
    return values.at(share) if isinstance(values, Interval) else values[int(share * len(values))]


def draws(factors: Mapping[str, Values], source: random.Random, wanted: int) -> Iterator[Point]:
    """`wanted` different combinations at random, or all there are."""
    if not any(isinstance(v, Interval) for v in factors.values()):
        total = size(factors)
        numbers = source.sample(range(total), min(wanted, total))
        yield from (combination(factors, number) for number in numbers)
        return
    seen: set[tuple[str, ...]] = set()
    repeated = 0
    while len(seen) < wanted and repeated < TRIES:
        draw = {k: pick(v, source.random()) for k, v in factors.items()}
        repeated += 1
        if tuple(draw.values()) not in seen:
            seen.add(tuple(draw.values()))
            repeated = 0
            yield draw


def _same_number(wanted: str, text: str) -> bool:
    try:
        return float(wanted) == float(text)
    except ValueError:
        return False
