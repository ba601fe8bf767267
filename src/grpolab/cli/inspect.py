"""`grpolab analyze`, `grpolab list` and `grpolab fetch`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import MISSING
from inspect import cleandoc
from pathlib import Path
from typing import Any

from grpolab.component import (
    MODULES,
    ConfigError,
    component_class,
    describe_type,
    nearest,
    registry,
    settings_of,
    type_hints,
)

ANALYZE_KEYS = {
    "sweep": "a sweep's id, or latest (the default)",
    "study": "all runs of a study instead of one sweep",
    "output_dir": "where the runs lie (outputs)",
    "uri": "read from this MLflow store instead of the run folders",
    "out": "folder for the results (<output_dir>/analysis/<sweep>)",
    "metric": "what the comparison is about (eval/accuracy)",
}


def analyze(arguments: Sequence[str]) -> int:
    """Writes figures, tables and verdicts of a sweep."""
    from grpolab.results import analyze as results
    from grpolab.results.frames import ResultsError

    if any(a in ("-h", "--help") for a in arguments):
        print("usage: grpolab analyze [key=value …]\n")
        print("\n".join(f"  {k:<12}{v}" for k, v in ANALYZE_KEYS.items()))
        return 0
    given = key_values(arguments, ANALYZE_KEYS)
    if "sweep" not in given and "study" not in given:
        given["sweep"] = "latest"
    try:
        made = results.analyze(**given)
    except ResultsError as error:
        raise ConfigError(str(error)) from error
    print(results.summary(made))
    return 0


def key_values(arguments: Sequence[str], allowed: dict[str, str]) -> dict[str, str]:
    """`key=value` words as a mapping; ConfigError for a key that is not allowed."""
    given = {}
    for word in arguments:
        key, separator, value = word.partition("=")
        if not separator or key not in allowed:
            raise ConfigError(
                f"{key}: unknown key (given {word!r}); allowed: {', '.join(allowed)}"
                f"{nearest(key, allowed) or '.'}"
            )
        given[key] = value
    return given


def list_components(arguments: Sequence[str]) -> int:
    """Prints the catalogue, a group of it, or one entry in full."""
    words = [a for a in arguments if not a.startswith("-")]
    if len(words) == 2:
        print(entry_text(*words))
        return 0
    groups = words or list(MODULES)
    for group in groups:
        print(group_text(group))
    return 0


def group_text(group: str) -> str:
    """A group: each variant's first line, and its settings with defaults."""
    lines = [f"{group}/"]
    width = max(map(len, registry(group)))
    for name, cls in sorted(registry(group).items()):
        lines.append(f"  {name:<{width}}  {first_line(cls)}")
        own = ", ".join(f"{k}={default_text(f)}" for k, f in settings_of(cls).items())
        if own:
            lines.append(f"  {'':<{width}}    {own}")
    return "\n".join(lines) + "\n"


def entry_text(group: str, name: str) -> str:
    """One variant in full: its specification, and each setting with type, default and help."""

    cls = component_class(group, name)
    lines = [f"{group}={name}", "", cleandoc(cls.__doc__ or ""), "", "settings"]
    for key, item in settings_of(cls).items():
        kind = describe_type(type_hints(cls)[key])
        lines.append(f"  {group}.{key} = {default_text(item)}  ({kind}): {item.metadata['help']}")
    if not settings_of(cls):
        lines.append("  none")
    return "\n".join(lines)


def first_line(cls: type) -> str:
    """The first sentence of a class's docstring, as one line."""
    text = (cls.__doc__ or "").strip().split("\n\n")[0]
    return " ".join(text.split())


def default_text(item: Any) -> str:
    """A setting's default as YAML writes it."""
    value = item.default if item.default is not MISSING else item.default_factory()
    special = {None: "null", True: "true", False: "false"}
    return special.get(value, str(value)) if isinstance(value, bool | None) else str(value)


def fetch_model(arguments: Sequence[str]) -> int:
    """Downloads a model into the cache."""
    from grpolab.policy.locate import FETCHABLE, fetch

    if len(arguments) != 1 or arguments[0].startswith("-"):
        print(f"usage: grpolab fetch <model>\n\nmodels: {', '.join(FETCHABLE)}")
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    folder: Path = fetch(arguments[0])
    print(f"{arguments[0]} is in {folder}")
    return 0
