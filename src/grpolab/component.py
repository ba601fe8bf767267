"""From a group and a name to a component: the registry, its validation, and the one place that
instantiates.

A component is a frozen dataclass with two class variables, `group` and `name`. Its fields are its
settings (declared with `grpolab.objective.settings.setting`), its `__call__` is its formula and
its docstring its specification. Classes are found by being defined in a group's modules; other
packages add theirs with an entry point in the group `grpolab.components` (a class, or a module
that defines some), or with a `_target_` in a YAML file of their own `--config-dir`.
"""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import inspect
import math
import typing
from collections.abc import Iterable, Mapping
from functools import cache
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from grpolab.deferred import deferred

MODULES: dict[str, tuple[str, ...]] = {
    "task": (
        "tasks.arithmetic",
        "tasks.gsm8k",
        "tasks.inline",
        "tasks.jsonl",
        "tasks.reasoning_gym",
    ),
    "sampler": ("sampling.static", "sampling.hf", "sampling.continuous"),
    "selection": ("training.selection",),
    "reward": (
        "rewards.text",
        "rewards.choice",
        "rewards.math_verify",
        "rewards.length",
        "rewards.repetition",
        "rewards.random",
        "rewards.neural",
        "rewards.python",
        "rewards.mixture",
    ),
    "advantage": (
        "objective.advantage.group",
        "objective.advantage.pass_at_k",
        "objective.advantage.batch",
        "objective.advantage.token",
    ),
    "reference": ("policy.reference",),
    "kl": (
        "objective.kl.base",
        "objective.kl.token",
        "objective.kl.weighted",
        "objective.kl.sequence",
    ),
    "clip": (
        "objective.clip.ratio",
        "objective.clip.weighted",
        "objective.clip.sequence",
        "objective.clip.batch",
    ),
    "mask": ("objective.clip.masks",),
    "aggregation": ("objective.aggregation",),
    "correction": ("objective.correction",),
    "design": ("sweep.designs",),
    "search": ("sweep.search.settings",),
}
NESTED = ("mask",)
"""Groups without a folder in conf/: their components stand in a list of another's settings."""
ENTRY_POINTS = "grpolab.components"
MISSING = "???"


class ConfigError(ValueError):
    """A setting cannot be used. One sentence: key, what was given, what is allowed."""


def nearest(given: str, allowed: Iterable[str]) -> str:
    """'; did you mean x?' for the allowed name closest to `given`, or nothing."""
    close = difflib.get_close_matches(str(given), list(allowed), n=1, cutoff=0.6)
    return f"; did you mean {close[0]}?" if close else ""


def component(group: str, name: str, **settings: Any) -> Any:
    """The component that `group=name group.setting=value …` gives on the command line.

    Args:
        group: a config group, such as "clip".
        name: one of the group's variants, such as "ppo".
        settings: the variant's settings; those not given keep the class's defaults.

    Raises:
        ConfigError: unknown group, name or setting, a wrong type, a value out of bounds.
    """
    return make(component_class(group, name), settings, key=group)


def from_config(group: str, node: Mapping[str, Any], key: str | None = None) -> Any:
    """The component that a config node describes: `name` or `_target_`, beside the settings."""
    key = key or group
    settings = {k: v for k, v in node.items() if k not in ("name", "_target_")}
    if "_target_" in node:
        return make(_outside_class(group, str(node["_target_"]), key), settings, key)
    if "name" not in node:
        raise ConfigError(f"{key}.name: missing; allowed: {', '.join(names(group))}.")
    return make(component_class(group, str(node["name"]), key), settings, key)


def names(group: str) -> list[str]:
    """The names registered in a group, sorted."""
    return sorted(registry(group))


def component_class(group: str, name: str, key: str | None = None) -> type:
    """The class registered under a name."""
    known = registry(group)
    if name not in known:
        raise ConfigError(
            f"{key or group}: unknown {group} {name!r}; allowed: {', '.join(sorted(known))}"
            f"{nearest(name, known) or '.'}"
        )
    return known[name]


@cache
def registry(group: str) -> dict[str, type]:
    """Every component of a group by name: the package's own, then those of entry points."""
    if group not in MODULES:
        raise ConfigError(
            f"unknown group {group!r}; allowed: {', '.join(MODULES)}{nearest(group, MODULES)}"
        )
    found: dict[str, type] = {}
    with deferred():
        for module in MODULES[group]:
            _collect(importlib.import_module(f"grpolab.{module}"), group, found)
    return found | outside(group)


def outside(group: str) -> dict[str, type]:
    """The components of a group that other packages add by entry point."""
    found: dict[str, type] = {}
    for entry in entry_points(group=ENTRY_POINTS):
        loaded = entry.load()
        if isinstance(loaded, ModuleType):
            _collect(loaded, group, found)
        elif getattr(loaded, "group", None) == group:
            found[loaded.name] = loaded
    return found


def _collect(module: ModuleType, group: str, found: dict[str, type]) -> None:
    for value in vars(module).values():
        if (
            inspect.isclass(value)
            and value.__module__ == module.__name__
            and dataclasses.is_dataclass(value)
            and getattr(value, "group", None) == group
            and "name" in vars(value)
        ):
            found[value.name] = value  # type: ignore[attr-defined]


def _outside_class(group: str, target: str, key: str) -> type:
    module_name, _, attribute = target.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{key}._target_: cannot import {target!r} ({error}); allowed: the import path of a "
            f"frozen dataclass with group = {group!r}."
        ) from error
    if not (inspect.isclass(found) and dataclasses.is_dataclass(found)):
        raise ConfigError(f"{key}._target_: {target!r} is no dataclass; a component is one.")
    if getattr(found, "group", None) != group:
        raise ConfigError(
            f"{key}._target_: {target!r} has group {getattr(found, 'group', None)!r}; "
            f"allowed here: {group!r}."
        )
    return found


def make(cls: type, settings: Mapping[str, Any], key: str) -> Any:
    """An instance of a dataclass from settings as given; refuses names it does not have."""
    fields = settings_of(cls)
    label = getattr(cls, "name", cls.__name__)
    for given in settings:
        if given not in fields:
            allowed = ", ".join(f"{key}.{f}" for f in fields) or f"none ({label} has no settings)"
            raise ConfigError(
                f"{key}.{given}: unknown setting of {key}={label} (given {settings[given]!r}); "
                f"allowed: {allowed}{nearest(given, fields) or '.'}"
            )
    return bind(cls, settings, key)


def settings_of(cls: type) -> dict[str, dataclasses.Field[Any]]:
    """The settings of a component class, in order of declaration."""
    return {f.name: f for f in dataclasses.fields(cls) if f.init}


def bind(cls: type, settings: Mapping[str, Any], key: str) -> Any:
    """An instance of a dataclass from checked settings (types, bounds, then its own checks)."""
    hints = type_hints(cls)
    fields = settings_of(cls)
    values = {
        name: check(f"{key}.{name}", value, hints[name], fields[name].metadata)
        for name, value in settings.items()
    }
    try:
        made = cls(**values)
    except TypeError as error:
        raise ConfigError(f"{key}: {error}.") from error
    except ConfigError:
        raise
    except ValueError as error:  # __post_init__: the conflicts between settings
        raise ConfigError(f"{key}.{error}") from error
    for name in fields:
        if getattr(made, name) == MISSING:
            raise ConfigError(
                f"{key}.{name}: missing; give it a value ({fields[name].metadata['help']})."
            )
    return made


@cache
def type_hints(cls: type) -> dict[str, Any]:
    """A class's annotations, resolved."""
    return typing.get_type_hints(cls)


@cache
def _adapter(hint: Any) -> Any:
    from pydantic import ConfigDict, TypeAdapter

    return TypeAdapter(hint, config=ConfigDict(strict=True))


def check(key: str, value: Any, hint: Any, metadata: Mapping[str, Any]) -> Any:
    """`value` as the type `hint`, within the bounds of `metadata`; ConfigError if it is not."""
    from pydantic import ValidationError

    try:
        value = _adapter(hint).validate_python(value)
    except ValidationError:
        raise ConfigError(
            f"{key}: {value!r} is not allowed; allowed: {describe_type(hint)}"
            f"{_bounds_text(metadata)}{nearest(value, _literals(hint)) or '.'}"
        ) from None
    for number in value if isinstance(value, (list, tuple)) else [value]:
        if isinstance(number, bool) or not isinstance(number, (int, float)):
            continue
        if isinstance(number, int) and number.bit_length() > BITS:
            raise ConfigError(
                f"{key}: a whole number of {number.bit_length()} bits is given; allowed: "
                f"{describe_type(hint)}{_bounds_text(metadata)} of at most {BITS} bits."
            )
        if math.isnan(number) or not _within(number, metadata):
            raise ConfigError(
                f"{key}: {value!r} is out of bounds; allowed: {describe_type(hint)}"
                f"{_bounds_text(metadata)}."
            )
    return value


BITS = 63
"""Of a whole number beside its sign: what tensors, files and stores hold."""

_BOUNDS: dict[str, tuple[str, Any]] = {
    "ge": ("≥", lambda x, b: x >= b),
    "gt": (">", lambda x, b: x > b),
    "le": ("≤", lambda x, b: x <= b),
    "lt": ("<", lambda x, b: x < b),
}


def _within(number: float, metadata: Mapping[str, Any]) -> bool:
    return all(holds(number, metadata[b]) for b, (_, holds) in _BOUNDS.items() if b in metadata)


def _bounds_text(metadata: Mapping[str, Any]) -> str:
    parts = [f"{sign} {metadata[b]:g}" for b, (sign, _) in _BOUNDS.items() if b in metadata]
    return " " + " and ".join(parts) if parts else ""


def _literals(hint: Any) -> list[str]:
    if typing.get_origin(hint) is typing.Literal:
        return [str(a) for a in typing.get_args(hint)]
    return [x for a in typing.get_args(hint) for x in _literals(a)]


_TYPE_NAMES: dict[Any, str] = {
    int: "a whole number",
    float: "a number",
    str: "text",
    bool: "true or false",
    type(None): "null",
    dict: "a mapping",
    list: "a list",
    Any: "anything",
}


def describe_type(hint: Any) -> str:
    """A type annotation in words, for error messages and the catalogue."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return ", ".join(str(a) for a in arguments)
    if origin in (list, dict, tuple):
        inner = describe_type(arguments[-1]).removeprefix("a ")
        return f"{_TYPE_NAMES.get(origin, 'a list')} of {inner}"
    if arguments:
        return " or ".join(describe_type(a) for a in arguments)
    return _TYPE_NAMES.get(hint, getattr(hint, "__name__", str(hint)))
