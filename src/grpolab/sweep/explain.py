"""Hydra's messages as one sentence: key, what was given, what is allowed, the nearest name."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from grpolab.component import nearest, outside, registry, settings_of
from grpolab.config import COMPONENTS, SETTINGS, Run

LAUNCHER = "hydra.launcher."


def conf_dir() -> Path:
    """The folder of YAML files: inside the installed package, or the checkout's."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "conf"
    return installed if installed.is_dir() else package.parents[1] / "conf"


def choices(group: str) -> list[str]:
    """The choices of a config group: its YAML files, and the components of other packages."""
    folder = conf_dir() / group
    files = {str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.yaml")}
    return sorted(files | set(outside(group)))


def default_choice(group: str) -> str:
    """The choice that train.yaml's defaults list makes for a group."""
    from omegaconf import OmegaConf

    root: Any = OmegaConf.to_container(OmegaConf.load(conf_dir() / "train.yaml"), resolve=False)
    found = [d[group] for d in root["defaults"] if isinstance(d, dict) and group in d]
    return str(found[0]) if found else ""


def explain(error: Exception, overrides: Sequence[str]) -> str:
    """One sentence for an error of Hydra or OmegaConf."""
    text = str(error)
    found = re.search(r"Could not find '([^']+)/([^/']+)'", text)
    if found:
        return _unknown_choice(*found.groups())
    found = re.search(r"Could not override '([^']+)'", text)
    if found:
        return _unknown_key(found.group(1), overrides)
    found = re.search(r"Missing mandatory value: (\S+)", text)
    if found:
        return f"{found.group(1)}: missing; give it a value."
    return f"config: {first_line(error)}"


def first_line(error: Exception) -> str:
    """The first line of an error's message; its type where it has none."""
    return next(iter(str(error).strip().splitlines()), type(error).__name__)


def _unknown_choice(group: str, given: str) -> str:
    allowed = choices(group)
    hint = nearest(given, allowed) or "."
    return f"{group}: unknown choice {given!r}; allowed: {', '.join(allowed)}{hint}"


def _unknown_key(key: str, overrides: Sequence[str]) -> str:
    given = next((o.partition("=")[2] for o in overrides if o.lstrip("+~").startswith(key)), "?")
    group, _, name = key.partition(".")
    if name and (group in SETTINGS or group in COMPONENTS):
        owner, allowed = _settings(group, overrides)
        if name in allowed:  # a table, whose new entries Hydra wants one by one
            return f"{key}: {given} given; allowed: each new entry by itself, as +{key}.NAME=VALUE."
        listed = ", ".join(f"{group}.{a}" for a in allowed) or "none"
        hint = nearest(name, allowed) or "."
        return f"{key}: unknown setting{owner} (given {given}); allowed: {listed}{hint}"
    if key.startswith(LAUNCHER) and (allowed := _launcher_settings(overrides)):
        listed = ", ".join(LAUNCHER + a for a in allowed)
        hint = nearest(key.removeprefix(LAUNCHER), allowed) or "."
        return f"{key}: unknown setting (given {given}); allowed: {listed}{hint}"
    root = [f for f in settings_of(Run) if f != "raw"]
    hint = nearest(group, root) or "."
    return f"{key}: unknown key (given {given}); allowed: {', '.join(root)}{hint}"


def _launcher_settings(overrides: Sequence[str]) -> list[str]:
    """Those of the launcher that was chosen, if it is one of ours."""
    from omegaconf import OmegaConf

    named = (o.partition("=")[2] for o in overrides if o.startswith("hydra/launcher="))
    path = conf_dir() / "hydra" / "launcher" / f"{next(named, 'local')}.yaml"
    if not path.is_file():
        return []
    found: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    return [name for name in found if name != "_target_"]


def _settings(group: str, overrides: Sequence[str]) -> tuple[str, list[str]]:
    if group in SETTINGS:
        return "", list(settings_of(SETTINGS[group]))
    chosen = next((o.partition("=")[2] for o in overrides if o.startswith(f"{group}=")), None)
    name = chosen or default_choice(group)
    known = registry(group)
    return f" of {group}={name}", list(settings_of(known[name])) if name in known else []
