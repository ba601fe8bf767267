"""Designs: which combinations of the swept factors a sweep runs.

A design gets the factors as {key: override values, or an interval} and the baseline's values, and
returns points, {key: override value}. `seed`, and nothing else, is crossed with every point
whatever the design, so that any two arms can be compared seed by seed.

The baseline is what `tracking.baseline` says and, for factors it does not name, their first value.
"""

from __future__ import annotations

import itertools
import random
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.sweep import fraction
from grpolab.sweep.factors import (
    Interval,
    Point,
    Values,
    choices,
    distinct,
    draws,
    pick,
    product,
    start_value,
    unique,
)

SEED = "seed"


@dataclass(frozen=True)
class Design(ABC):
    """Base: the points of a design, crossed with the seeds."""

    group: ClassVar[str] = "design"
    name: ClassVar[str]
    takes_intervals: ClassVar[bool] = False
    baseline_on_request: ClassVar[bool] = False
    """The baseline arm is put first if `tracking.baseline` names it; else whatever the first point
    is serves as one."""

    def __call__(
        self, factors: Mapping[str, Values], baseline: Mapping[str, Any] | None = None
    ) -> list[Point]:
        """The points, no two the same, in the order in which they run: the baseline first.

        Args:
            factors: the override values of each swept key, or an interval.
            baseline: values of the baseline arm, of the type YAML gives them; keys that are no
                factor are left alone.

        Raises:
            ConfigError: the factors or the baseline do not fit the design.
        """
        self._check(factors)
        others = {k: v for k, v in factors.items() if k != SEED}
        start = self._start(others, baseline or {})
        points = self.points(others, start)
        points = unique(points if start is None else [start, *points])
        if SEED not in factors:
            return points
        seeds = [{SEED: s} for s in dict.fromkeys(choices(factors[SEED]))]
        if next(iter(factors)) == SEED:
            return [seed | point for seed in seeds for point in points]
        return [point | seed for point in points for seed in seeds]

    def _check(self, factors: Mapping[str, Values]) -> None:
        for key, values in factors.items():
            if not isinstance(values, Interval):
                continue
            if key == SEED or not self.takes_intervals:
                raise ConfigError(
                    f"{key}: an interval given with design={self.name}; allowed: single values "
                    "(a,b,c)" + ("." if key == SEED else ", or design=random or latin_hypercube.")
                )
            if not values.low < values.high or (values.log and values.low <= 0):
                raise ConfigError(
                    f"{key}: an interval from {values.low:g} to {values.high:g} given; allowed: "
                    f"one that goes up{' and starts above 0' if values.log else ''}."
                )

    def _start(self, factors: Mapping[str, Values], given: Mapping[str, Any]) -> Point | None:
        """The baseline's point; None where it is not asked for."""
        if self.baseline_on_request and not any(key in given for key in factors):
            return None
        return {key: start_value(key, values, given) for key, values in factors.items()}

    @abstractmethod
    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        """The points without the seed; the baseline may be left out."""

    def about(
        self, factors: Mapping[str, Values], baseline: Mapping[str, Any] | None = None
    ) -> list[str]:
        """The design of these factors in words, a sentence each."""
        others = {k: v for k, v in factors.items() if k != SEED}
        return [self.sentence(others, self(others, baseline))]

    @abstractmethod
    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        """What the points are."""


# -- every combination -------------------------------------------------------------------------


@dataclass(frozen=True)
class Product(Design):
    """Every combination of the factors' values, the last factor fastest, as Hydra itself has it.

    The seed stands in this order where it is given.
    """

    name: ClassVar[str] = "product"

    def __call__(
        self, factors: Mapping[str, Values], baseline: Mapping[str, Any] | None = None
    ) -> list[Point]:
        self._check(factors)
        return product(factors)

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        return product(factors)

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        sizes = " × ".join(str(len(choices(v))) for v in factors.values())
        return f"Every combination: {sizes or 1} = {len(points)}."


# -- a few factors, their effects one by one -----------------------------------------------------


@dataclass(frozen=True)
class OneFactor(Design):
    """The baseline, then each other choice of each factor alone, all else at the baseline.

    Says what each choice does to the baseline, and nothing about how choices act together. The
    baseline's own values need not be listed: `clip=cispo,gspo tracking.baseline={clip: ppo}`.
    """

    name: ClassVar[str] = "one_factor"

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        assert baseline is not None
        return [{**baseline, k: v} for k, vs in factors.items() for v in choices(vs)]

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return f"The baseline, and {len(points) - 1} choices each alone against it."


@dataclass(frozen=True)
class LeaveOneOut(Design):
    """The baseline, then every factor at its other choice, then that with each factor in turn back
    at the baseline: k + 2 points for k factors, fewer where they coincide.

    Says what each part contributes to the whole. A factor has two choices, the baseline's and one
    other (in `clip=ppo,cispo` the last, unless `tracking.baseline` says that this one is the
    baseline's); one with more is refused, since they would never run.
    """

    name: ClassVar[str] = "leave_one_out"

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        assert baseline is not None
        whole = other_choices(self.name, factors, baseline)
        return [baseline, whole, *({**whole, k: baseline[k]} for k in factors)]

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return (
            f"The baseline, all of {', '.join(factors) or 'nothing'} at their other choice, then "
            "each of them taken back."
        )


@dataclass(frozen=True)
class Ladder(Design):
    """The baseline, then the factors at their other choice one after the other, each on top of
    those before: k + 1 points for k factors.

    The order is that in which the factors are given. A factor has two choices, as in
    leave_one_out.
    """

    name: ClassVar[str] = "ladder"

    reverse: bool = setting(False, "switch on the last factor first")

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        assert baseline is not None
        others = other_choices(self.name, factors, baseline)
        rungs = [baseline]
        for key in reversed(list(factors)) if self.reverse else factors:
            rungs.append({**rungs[-1], key: others[key]})
        return rungs

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        steps = [
            next(f"{k}={v}" for k, v in after.items() if v != before[k])
            for before, after in itertools.pairwise(points)
        ]
        return " → ".join(["The baseline", *(f"+ {s}" for s in steps)]) + "."


# -- chosen combinations -------------------------------------------------------------------------


@dataclass(frozen=True)
class Zip(Design):
    """The factors' i-th values together: `steps=100,200 optimizer.lr=2e-4,1e-4` are two points.

    All factors have equally many values. The baseline is the first point; another one that
    `tracking.baseline` names is put first.
    """

    name: ClassVar[str] = "zip"
    baseline_on_request: ClassVar[bool] = True

    def __call__(
        self, factors: Mapping[str, Values], baseline: Mapping[str, Any] | None = None
    ) -> list[Point]:
        sizes = {k: len(choices(v)) for k, v in factors.items() if k != SEED}
        if len(set(sizes.values())) > 1:
            told = ", ".join(f"{n} of {k}" for k, n in sizes.items())
            raise ConfigError(f"design: zip given with {told}; allowed: equally many of each.")
        return super().__call__(factors, baseline)

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        rows = zip(*map(choices, factors.values()), strict=True) if factors else [()]
        return [dict(zip(factors, row, strict=True)) for row in rows]

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return f"The values of {', '.join(factors) or 'nothing'} side by side: {len(points)} arms."


@dataclass(frozen=True)
class Random(Design):
    """`n` combinations at random, no two the same; from intervals, numbers to four digits.

    Every value, and every number of an interval (of a `tag(log, interval(…))`: every ratio), is
    equally likely. A baseline that `tracking.baseline` names comes first, beside the n. Without
    one the first draw serves as the baseline of the others' arms.
    """

    name: ClassVar[str] = "random"
    takes_intervals: ClassVar[bool] = True
    baseline_on_request: ClassVar[bool] = True

    n: int = setting(10, "points, beside the baseline", ge=1)
    seed: int = setting(0, "of the draw (not of the runs)", ge=0)

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        source = random.Random(self.seed)
        drawn = draws(distinct(factors), source, self.n + 1)  # one may be the baseline
        found = [point for point in drawn if point != baseline][: self.n]
        if len(found) < self.n:
            raise ConfigError(
                f"design.n: {self.n} given; allowed: at most {len(found)}, the number of "
                f"combinations{' besides the baseline' if baseline is not None else ''}."
            )
        return found

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return (
            f"{self.n} combinations at random{_beside(points, self.n)} (design.seed={self.seed})."
        )


@dataclass(frozen=True)
class LatinHypercube(Design):
    """`n` points of a Latin hypercube: of each interval, one in each of n equal parts; each
    choice equally often, as far as n allows.

    Source: McKay et al 1979, through scipy.stats.qmc. Numbers of intervals have
    four digits. Where choices are few, points that coincide run once. A baseline that
    `tracking.baseline` names comes first, beside the n.
    """

    name: ClassVar[str] = "latin_hypercube"
    takes_intervals: ClassVar[bool] = True
    baseline_on_request: ClassVar[bool] = True

    n: int = setting(10, "points, beside the baseline", ge=1)
    seed: int = setting(0, "of the draw (not of the runs)", ge=0)

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        from scipy.stats import qmc

        each = distinct(factors)
        if not each:
            return [{}]
        shares = qmc.LatinHypercube(d=len(each), seed=self.seed).random(self.n)  # [n, k]
        return [
            {key: pick(v, float(s)) for (key, v), s in zip(each.items(), row, strict=True)}
            for row in shares
        ]

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return (
            f"{self.n} points of a Latin hypercube{_beside(points, self.n)} "
            f"(design.seed={self.seed})."
        )


@dataclass(frozen=True)
class FractionalFactorial(Design):
    """A fraction of all combinations of two-level factors in which every effect is estimated from
    all runs: 2^(k−p) points, of at least the resolution asked for and the highest they allow.

    Resolution III: main effects are aliased with interactions of two factors; IV: only with those
    of three, but those of two with each other; V: neither is aliased with anything of order two or
    less. `grpolab plan` prints the defining relation and the aliases. Signs are + at the baseline
    and − at the other choice, and every generator is positive, so that the baseline is a point.

    Source: Box and Hunter 1961. The generators are the first of the highest resolution in the
    order A, B, AB, C, AC, …; a table of minimum aberration may list others of that resolution.
    """

    name: ClassVar[str] = "fractional_factorial"

    resolution: int = setting(4, "3: screening, 4: clear main effects, 5: pairs too", ge=3, le=5)

    def points(self, factors: Mapping[str, Values], baseline: Point | None) -> list[Point]:
        assert baseline is not None
        others = other_choices(self.name, factors, baseline)
        plan = self._fraction(factors)
        return [
            {k: others[k] if on else baseline[k] for k, on in zip(factors, run, strict=True)}
            for run in plan.runs()
        ]

    def _fraction(self, factors: Mapping[str, Values]) -> fraction.Fraction:
        if len(factors) > fraction.MOST_FACTORS:
            raise ConfigError(
                f"design: fractional_factorial given with {len(factors)} factors; allowed: at most "
                f"{fraction.MOST_FACTORS}."
            )
        return fraction.smallest(len(factors), self.resolution)

    def about(
        self, factors: Mapping[str, Values], baseline: Mapping[str, Any] | None = None
    ) -> list[str]:
        keys = [k for k in factors if k != SEED]
        return self._fraction(dict.fromkeys(keys, ())).about(keys)

    def sentence(self, factors: Mapping[str, Values], points: Sequence[Point]) -> str:
        return self.about(factors)[0]


# -- shared --------------------------------------------------------------------------------------


def other_choices(design: str, factors: Mapping[str, Values], baseline: Point) -> Point:
    """Of each factor the one choice that is not the baseline's."""
    found = {}
    for key, values in factors.items():
        others = [v for v in dict.fromkeys(choices(values)) if v != baseline[key]]
        if len(others) != 1:
            raise ConfigError(
                f"{key}: {', '.join(choices(values))} given with design={design} and the baseline "
                f"{baseline[key]}; allowed: two choices, the baseline's and one other."
            )
        found[key] = others[0]
    return found


def _beside(points: Sequence[Point], n: int) -> str:
    return ", and the baseline" if len(points) > n else ""
