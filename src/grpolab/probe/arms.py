"""The arms of a probe: a base configuration, and what each arm changes of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from grpolab.component import ConfigError, nearest
from grpolab.config import Run, bind_run
from grpolab.sweep.compose import Command, compose_all, expand
from grpolab.sweep.factors import as_override
from grpolab.sweep.manifest import job_value

MAY_DIFFER = (
    "selection", "reward", "advantage", "reference", "kl", "clip", "aggregation", "correction",
)  # fmt: skip
"""What can be asked of the same completions."""
OPENING, CLOSING = "([{", ")]}"


@dataclass(frozen=True)
class Arm:
    """One variant: its name (sorted overrides) and its whole configuration."""

    name: str
    run: Run


def split_list(text: str, separators: str = ",") -> list[str]:
    """The parts of a text between separators that stand in no bracket and no quotes."""
    parts, depth, quote, current = [], 0, "", ""
    for letter in text:
        if quote:
            quote = "" if letter == quote else quote
        elif letter in "'\"":
            quote = letter
        depth += (letter in OPENING) - (letter in CLOSING) if not quote else 0
        if letter in separators and depth == 0 and not quote:
            parts.append(current)
            current = ""
        else:
            current += letter
    return [p.strip() for p in [*parts, current] if p.strip()]


def parse_variants(given: str | Sequence[Any]) -> list[list[str]]:
    """The overrides of each arm of `variants`.

    An arm is one override (`clip=cispo`), several in brackets (`[kl=k3,kl.beta=0.01]`) or several
    with spaces between them.

    Raises:
        ConfigError: the list is empty, or an arm is no override.
    """
    items: Sequence[Any] = given if not isinstance(given, str) else split_list(_inside(given))
    if not items:
        raise ConfigError("variants: an empty list given; allowed: arms such as [clip=ppo,kl=k3].")
    return [_overrides(item) for item in items]


def _overrides(item: Any) -> list[str]:
    if isinstance(item, Mapping):
        return [f"{k}={as_override(v)}" for k, v in item.items()]
    if not isinstance(item, str):
        return [one for part in item for one in _overrides(part)]
    text = item.strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        text = text[1:-1]
    words = split_list(_inside(text)) if text.startswith("[") else split_list(text, " ")
    for word in words:
        key, sign, value = word.partition("=")
        if not (key and sign and value):
            raise ConfigError(
                f"variants: {word!r} given; allowed: overrides such as clip=cispo, several of one "
                "arm in brackets."
            )
    return words


def _inside(text: str) -> str:
    text = text.strip()
    return text[1:-1] if text.startswith("[") and text.endswith("]") else text


def arms_of(command: Command, variants: Sequence[Sequence[str]]) -> tuple[Run, list[Arm]]:
    """(the configuration that draws the rollouts, the arms): those of the command's sweep in the
    order of its design, then `variants`.

    Raises:
        ConfigError: an arm that cannot run, one that changes the rollouts, or no arm at all.
    """
    fixed = [o for o in command.overrides if o.partition("=")[0] != "seed"]
    sweep = expand(Command(command.overrides, multirun=True, config_dir=command.config_dir))
    if any(f == "seed" for f in sweep.factors):
        raise ConfigError("seed: several values given; allowed: one, of which rollouts are drawn.")
    found: list[tuple[str, dict[str, Any]]] = []
    if sweep.factors:
        for job in sweep.jobs:
            parts = sorted(f"{f}={job_value(job, f)}" for f in sweep.factors)
            found.append((",".join(parts), job.raw))
        fixed = list(sweep.jobs[0].overrides)
    base = bind_run(sweep.jobs[0].raw)
    plain = fixed if sweep.factors else list(command.overrides)
    lists = [{o.partition("=")[0]: o for o in [*plain, *overrides]} for overrides in variants]
    jobs = compose_all(command.config_dir, [list(last.values()) for last in lists])
    found += [(",".join(sorted(v)), job.raw) for v, job in zip(variants, jobs, strict=True)]
    if not found:
        raise ConfigError(
            "variants: none given; allowed: a list of arms such as variants=[clip=ppo,clip=cispo], "
            "or several values of a key (clip=ppo,cispo)."
        )
    unique = dict(found)
    return base, [_arm(name, raw, base.raw) for name, raw in unique.items()]


def _arm(name: str, raw: dict[str, Any], base: Mapping[str, Any]) -> Arm:
    for key, value in raw.items():
        if value != base.get(key) and key not in (*MAY_DIFFER, "design", "tracking"):
            raise ConfigError(
                f"{key}: differs between the arms ({name}), which share their rollouts and "
                f"weights; allowed: settings of {', '.join(MAY_DIFFER)}"
                f"{nearest(key, MAY_DIFFER) or '.'}"
            )
    try:
        return Arm(name, bind_run(raw))
    except ConfigError as error:
        raise ConfigError(f"{str(error).rstrip('.')} (arm {name}).") from error


def recomposed(
    raw: Mapping[str, Any], config_dir: str | None = None, key: str = "run"
) -> list[str]:
    """Overrides that compose to a resolved configuration: choices, then whatever differs. The key
    that named the run is for the error.

    Raises:
        ConfigError: none do, as with components that this command does not know.
    """
    choices = [
        f"{group}={node['name']}"
        for group, node in raw.items()
        if isinstance(node, Mapping) and "name" in node and group != "model"
    ]
    start = expand(Command(choices, config_dir=config_dir)).jobs[0].raw
    found = choices + list(_differences(start, raw))
    again = expand(Command(found, config_dir=config_dir)).jobs[0].raw
    if any(again.get(k) != v for k, v in raw.items()):
        raise ConfigError(
            f"{key}: its configuration does not compose again with these choices; allowed: runs of "
            "this version, with the --config-dir they were made with."
        )
    return found


def _differences(start: Mapping[str, Any], wanted: Mapping[str, Any], path: str = "") -> list[str]:
    found = []
    for key, value in wanted.items():
        known = start.get(key)
        if value == known:
            continue
        if isinstance(value, Mapping) and isinstance(known, Mapping) and known:
            found += _differences(known, value, f"{path}{key}.")
        else:
            found.append(f"{path}{key}={as_override(value)}")
    return found
