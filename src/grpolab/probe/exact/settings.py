"""What `grpolab lab` is asked for: keys, their checks, and the world and arms they stand for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from grpolab.component import ConfigError, check, component_class, nearest, settings_of, type_hints
from grpolab.objective.settings import setting

PARTS = ("bias", "identities", "kl_table", "fixed_points")
FACTORS = ("advantage", "clip", "kl", "placement", "aggregation", "correction")
GROUPS = ("advantage", "clip", "kl", "aggregation", "correction")
ONLY = {
    "arms": "bandit",
    "reference": "bandit",
    "vocabulary": "token_tree",
    "tokens": "token_tree",
    "ends": "token_tree",
    "spread": "token_tree",
}
"""Keys that one laboratory alone knows."""


@dataclass(frozen=True)
class Settings:
    """The keys, with their defaults, bounds and help; factors and components' settings apart."""

    lab: Literal["bandit", "token_tree"] = setting("bandit", "bandit or token_tree")
    parts: list[str] = setting(list(PARTS), "what is measured: " + ", ".join(PARTS))
    out: str | None = setting(None, "folder for the tables and figures")
    design: Literal["one_factor", "product"] = setting(
        "one_factor", "arms: each choice alone against the first ones, or every combination"
    )
    group_size: list[int] = setting([4], "G, one or several", ge=1, le=64)
    staleness: list[float] = setting(
        [0.0, 0.3], "how far the logits moved since the batch was drawn", ge=0, le=20
    )
    mismatch: list[float] = setting(
        [0.0],
        "standard deviation between the sampler and the policy it was to sample, in logits",
        ge=0,
        le=20,
    )
    beta: list[float] = setting([0.1], "weight of the KL, one or several", ge=0)
    prompts: int = setting(1, "prompts in a batch", ge=1, le=8)
    arms: int = setting(5, "bandit: K, its arms", ge=2, le=64)
    reference: list[float] | None = setting(None, "bandit: probabilities of the reference", gt=0)
    vocabulary: int = setting(3, "token_tree: V", ge=2, le=16)
    tokens: int = setting(2, "token_tree: T", ge=1, le=8)
    ends: bool = setting(False, "token_tree: token 0 ends a completion, so that lengths differ")
    spread: float = setting(1.0, "token_tree: standard deviation of the reference's logits", ge=0)
    rewards: list[float] | Literal["uniform", "binary"] | None = setting(
        None, "uniform, binary, or one number a completion"
    )
    drift: float = setting(0.5, "standard deviation between policy and reference, in logits", ge=0)
    seed: int = setting(0, "of everything that is drawn", ge=0)
    samples: int = setting(10_000, "batches drawn where not all are gone through", ge=100)
    enumerate: int = setting(5000, "batches at most that are all gone through", ge=0)
    compact: bool = setting(
        False, "bias.parquet, four digits and no intervals, in place of bias.csv"
    )
    factors: Mapping[str, Sequence[str]] = field(default_factory=dict)
    components: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


KEYS = {f.name: f for f in fields(Settings) if f.metadata}


def parse(words: Sequence[str]) -> Settings:
    """Settings from `key=value` words; ConfigError names the key, what was given, and what is
    allowed."""
    plain: dict[str, Any] = {}
    factors: dict[str, list[str]] = {}
    components: dict[str, dict[str, Any]] = {}
    for word in words:
        key, separator, text = word.partition("=")
        group, _, name = key.partition(".")
        if separator and key in FACTORS:
            factors[key] = [t for t in text.strip("[]").split(",") if t]
        elif separator and name and group in GROUPS:
            components.setdefault(group, {})[name] = value_of(text)
        elif separator and key in KEYS:
            plain[key] = read(key, text)
        else:
            allowed = [*KEYS, *FACTORS]
            raise ConfigError(
                f"{key}: unknown key (given {word!r}); allowed: {', '.join(allowed)}, or a setting "
                f"of a component (clip.high=0.28){nearest(key, allowed) or '.'}"
            )
    made = Settings(**plain, factors=factors, components=components)
    check_together(made, plain)
    return made


def read(key: str, text: str) -> Any:
    """The value of one of our keys, checked."""
    hint = type_hints(Settings)[key]
    lists = str(hint).startswith("list") or "list" in str(hint)
    value: Any = value_of(text)
    if isinstance(value, str) and "," in value:
        value = [value_of(v) for v in value.split(",")]
    if lists and not isinstance(value, list) and value is not None:
        words = value in ("uniform", "binary") or (key == "rewards" and isinstance(value, str))
        value = value if words else [value]
    if "float" in str(hint):
        value = as_floats(value)
    return check(key, value, hint, KEYS[key].metadata)


def as_floats(value: Any) -> Any:
    """Whole numbers as floats, where a float is what is meant."""
    if isinstance(value, list):
        return [as_floats(v) for v in value]
    return float(value) if isinstance(value, int) and not isinstance(value, bool) else value


def value_of(text: str) -> Any:
    """A value as YAML reads it."""
    import yaml  # type: ignore[import-untyped]

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    try:
        return float(value) if isinstance(value, str) else value
    except ValueError:
        return value


def check_together(made: Settings, given: Mapping[str, Any]) -> None:
    """Refuses keys that do not go together, and component settings that nothing has."""
    for part in made.parts:
        if part not in PARTS:
            raise ConfigError(
                f"parts: {part!r} given; allowed: {', '.join(PARTS)}{nearest(part, PARTS) or '.'}"
            )
    for key in given:
        if ONLY.get(key, made.lab) != made.lab:
            raise ConfigError(f"{key}: given with lab={made.lab}; allowed with lab={ONLY[key]}.")
    if made.reference is not None and len(made.reference) != made.arms:
        raise ConfigError(
            f"reference: {len(made.reference)} given; allowed: {made.arms}, one for each of arms."
        )
    size = made.arms if made.lab == "bandit" else made.vocabulary**made.tokens
    if size > 4096:
        raise ConfigError(
            f"tokens: {made.tokens} given with vocabulary={made.vocabulary}, {size} completions; "
            "allowed: at most 4096 of them."
        )


def check_components(
    factors: Mapping[str, Sequence[str]], components: Mapping[str, Mapping[str, Any]]
) -> None:
    """Refuses a setting that no chosen component of its group has."""
    for group, given in components.items():
        known = {s for name in factors[group] for s in settings_of(component_class(group, name))}
        for name, value in given.items():
            if name not in known or (group == "kl" and name in ("placement", "beta")):
                hint = " (the key is beta=)" if name == "beta" else ""
                raise ConfigError(
                    f"{group}.{name}: {value!r} given, which none of {group}="
                    f"{','.join(factors[group])} has{hint}; allowed: "
                    f"{', '.join(sorted(known)) or 'none'}{nearest(name, known) or '.'}"
                )
