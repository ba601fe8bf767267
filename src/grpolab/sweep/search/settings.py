"""What a search is asked for: `search=none`, or `search=optuna` with its settings.

A search's settings change which runs are made, never a run's numbers, so they are no part of a
run's identity.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, cast

from grpolab.component import ConfigError, nearest
from grpolab.metrics import METRICS, find
from grpolab.objective.settings import setting

Direction = Literal["maximize", "minimize"]
DIRECTIONS = ("maximize", "minimize")


@dataclass(frozen=True)
class Goal:
    """One objective: a metric's final value, and which way is better."""

    metric: str
    direction: Direction


@dataclass(frozen=True)
class NoSearch:
    """Nothing is searched: the command's own runs."""

    group: ClassVar[str] = "search"
    name: ClassVar[str] = "none"


@dataclass(frozen=True)
class Optuna:
    """Settings are searched for by Optuna, a trial at a time, for the best mean over `seeds` of a
    run's final value.

    A run's final value is the mean of the last 10 % of its evaluations, as in the analysis. The
    seeds of a trial run one after the other, and Hyperband's resource counts their steps together,
    so that trials are compared at the same seed and step. Source: arXiv 1907.10902 (Optuna),
    1603.06560 (Hyperband).
    """

    group: ClassVar[str] = "search"
    name: ClassVar[str] = "optuna"

    space: dict[str, Any] | None = setting(
        None,
        "what is searched: {key: [choice, …]} or {key: {low, high, log, step}}; null takes one out",
    )
    objective: list[Any] = setting(
        ["eval/accuracy"],
        "metrics, or {metric, direction: maximize|minimize}; several: a Pareto front",
    )
    trials: int = setting(20, "trials in total; a larger number goes on with the same study", ge=1)
    seeds: list[int] = setting(
        [1000, 1001],
        "tuning seeds, over which a trial's value is the mean; none that results are reported on",
        ge=0,
    )
    sampler: Literal["tpe", "random"] = setting("tpe", "how Optuna draws the next trial")
    startup: int = setting(10, "trials drawn at random before tpe goes by what it has seen", ge=1)
    seed: int = setting(0, "of the sampler", ge=0)
    pruner: Literal["hyperband", "none"] = setting(
        "hyperband", "stops trials that fall behind; none with several objectives"
    )
    min_steps: int | None = setting(
        None,
        "steps before which hyperband stops nothing; null: those to the first evaluation",
        ge=1,
    )
    reduction: int = setting(3, "hyperband keeps one of so many trials at each rung", ge=2)

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds: {self.seeds} given; allowed: at least one, each once.")
        if self.pruner == "none" and self.min_steps is not None:
            raise ValueError(
                f"min_steps: {self.min_steps} given with search.pruner=none; allowed: null."
            )
        if len(self.goals) > 1 and self.pruner != "none":
            raise ValueError(
                f"pruner: {self.pruner} given with {len(self.goals)} objectives, of which Optuna "
                "prunes none; allowed: search.pruner=none, or one objective."
            )

    @property
    def goals(self) -> list[Goal]:
        """The objectives, each with its direction.

        Raises:
            ConfigError: an unknown metric, or one whose better direction nobody has said.
        """
        found = [goal(entry, f"search.objective[{i}]") for i, entry in enumerate(self.objective)]
        names = [g.metric for g in found]
        if not found or len(set(names)) < len(names):
            raise ConfigError(
                f"search.objective: {names} given; allowed: at least one metric, each once."
            )
        return found


def goal(entry: Any, key: str) -> Goal:
    """An entry of `objective`: a metric's name, or {metric, direction}."""
    given = {"metric": entry} if isinstance(entry, str) else entry
    if not isinstance(given, Mapping) or not {"metric"} <= set(given) <= {"metric", "direction"}:
        raise ConfigError(
            f"{key}: {entry!r} given; allowed: a metric's name, or "
            "{metric: name, direction: maximize|minimize}."
        )
    name, direction = str(given["metric"]), given.get("direction")
    known = find(name)
    if known is None:
        names = [m.name for m in METRICS]
        raise ConfigError(
            f"{key}: unknown metric {name!r}; allowed: one of grpolab.metrics"
            f"{nearest(name, names) or '.'}"
        )
    if direction is None and known.better != "neither":
        return Goal(name, "minimize" if known.better == "lower" else "maximize")
    if direction not in DIRECTIONS:
        said = "no direction" if direction is None else repr(direction)
        raise ConfigError(
            f"{key}.direction: {said} given for {name}; allowed: maximize, minimize"
            f"{nearest(str(direction), DIRECTIONS) or '.'}"
        )
    return Goal(name, cast(Direction, direction))
