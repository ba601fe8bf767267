"""What the page says beside verdicts and figures: configs, samples, crashes, provenance."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from grpolab.results.frames import FACTOR_PREFIX, Results
from grpolab.results.from_files import json_object
from grpolab.results.summary import arms_of

PROMPTS = 3  # shown side by side, from the first and from the last step that all arms share
_LONGEST = 2000  # characters of a completion
_UNTOLD = ("seed", "output_dir", "study", "tracking", "retry", "on_error", "checkpoint", "report")
_DISTINCT = (
    "git_sha", "python", "platform", "device", "dtype", "gpu", "cpus", "threads", "world_size",
)  # fmt: skip


@dataclass(frozen=True)
class Sample:
    """A prompt, and what each arm's policy made of it at a step; None: it was not logged there."""

    step: int
    seed: int
    prompt: str
    completions: dict[str, dict[str, Any] | None]


@dataclass(frozen=True)
class Provenance:
    """Where the runs come from."""

    command: str | None = None
    created: str | None = None
    values: dict[str, list[str]] = field(default_factory=dict)
    """{what: its distinct values over the runs}."""
    changed_sources: bool = False


def folders(output_dir: Path, runs: pd.DataFrame) -> dict[tuple[str, int], Path]:
    """{(arm, seed): the run's folder} of those that are there."""
    found = {}
    for run in runs.itertuples(index=False):
        path = output_dir / str(run.study) / str(run.job_id)
        if path.is_dir():
            found[str(run.arm), int(str(run.seed))] = path
    return found


def arms(results: Results) -> list[str]:
    """The arms, baseline first."""
    return [arm for _, arm, _, _ in arms_of(results.runs)]


def config_differences(
    results: Results, places: Mapping[tuple[str, int], Path]
) -> dict[str, list[tuple[str, str, str]]]:
    """{arm: [(key, the baseline's value, its own)]} from config.yaml, else from the factors."""
    names = arms(results)
    found: dict[str, dict[str, str]] = {}
    for arm in names:
        own = (path for (name, _), path in sorted(places.items()) if name == arm)
        configs = [config for config in map(_config, own) if config]
        found[arm] = configs[0] if configs else _factors(results, arm)
    base = found[names[0]] if names else {}
    return {
        arm: [
            (key, base.get(key, "–"), found[arm].get(key, "–"))
            for key in sorted(base.keys() | found[arm].keys())
            if base.get(key, "–") != found[arm].get(key, "–")
        ]
        for arm in names[1:]
    }


def tuned(results: Results, places: Mapping[tuple[str, int], Path]) -> list[str]:
    """On which seeds a search tuned these configurations, in a sentence for each choice of seeds.

    A tuned configuration beside one that is not is no fair comparison: a reader must see it.
    """
    found: dict[str, set[int]] = {}
    for (arm, _), path in places.items():
        listed = (json_object(path / "run.json") or {}).get("tuned_on")
        own = [s for s in listed if isinstance(s, int)] if isinstance(listed, list) else []
        found.setdefault(arm, set()).update(own)
    names = arms(results)
    used = set(results.runs["seed"])
    sentences = []
    for seeds in dict.fromkeys(tuple(sorted(found[arm])) for arm in names if found.get(arm)):
        those = [arm for arm in names if tuple(sorted(found.get(arm, ()))) == seeds]
        who = "Every arm" if those == names else ", ".join(those)
        was = "were" if len(those) > 1 and those != names else "was"
        sentence = f"{who} {was} tuned by a search on seeds {', '.join(map(str, seeds))}"
        rest = ", none of which is used here" if used.isdisjoint(seeds) else ""
        sentences.append(f"{sentence}{rest}.")
    return sentences


def _config(folder: Path) -> dict[str, str] | None:
    from omegaconf import OmegaConf

    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except (OSError, ValueError):
        return None
    except Exception:  # what a YAML parser may raise: a damaged file has no differences to show
        return None
    return {k: v for k, v in _flat(raw) if k.split(".")[0] not in _UNTOLD}


def _flat(node: Any, before: str = "") -> Iterator[tuple[str, str]]:
    if isinstance(node, dict) and node:
        for key, value in node.items():
            yield from _flat(value, f"{before}.{key}" if before else str(key))
    else:
        yield before, json.dumps(node, ensure_ascii=False).strip('"')


def _factors(results: Results, arm: str) -> dict[str, str]:
    row = results.runs[results.runs["arm"] == arm].iloc[0]
    columns = map(str, results.runs.columns)
    keys = [c for c in columns if c.startswith(FACTOR_PREFIX) and c != "factor.seed"]
    return {key.removeprefix(FACTOR_PREFIX): str(row[key]) for key in keys}


def samples(results: Results, places: Mapping[tuple[str, int], Path]) -> list[Sample]:
    """The same prompts under every arm, at the first and the last step that all arms share.

    Arms of a seed draw the same prompts at the same step. The seed shown is the smallest that most
    arms logged samples of.
    """
    logged = {key: by_step(path / "samples.jsonl") for key, path in places.items()}
    logged = {key: found for key, found in logged.items() if found}
    if not logged:
        return []
    seeds = sorted({seed for _, seed in logged})
    seed = max(seeds, key=lambda s: (sum(other == s for _, other in logged), -s))
    own = {arm: logged[arm, seed] for arm in arms(results) if (arm, seed) in logged}
    shared = sorted(set.intersection(*(set(found) for found in own.values())))
    return [
        Sample(step, seed, prompt, {a: own[a][step].get(prompt) if a in own else None
                                    for a in arms(results)})
        for step in dict.fromkeys([*shared[:1], *shared[-1:]])
        for prompt in _prompts(own, step)[:PROMPTS]
    ]  # fmt: skip


def _prompts(own: Mapping[str, dict[int, dict[str, Any]]], step: int) -> list[str]:
    """A step's prompts, those that most arms have first."""
    every = list(dict.fromkeys(prompt for found in own.values() for prompt in found[step]))
    return sorted(every, key=lambda p: -sum(p in found[step] for found in own.values()))


def by_step(path: Path) -> dict[int, dict[str, dict[str, Any]]]:
    """{step: {prompt: its first logged completion}} of a samples.jsonl; {} if it is unreadable."""
    from grpolab.tracking.folder import read_jsonl

    found: dict[int, dict[str, dict[str, Any]]] = {}
    for record in read_jsonl(path):
        if not isinstance(record, dict) or "completion" not in record:
            continue
        text = str(record["completion"])
        entry = {
            "text": text[:_LONGEST] + (" …" if len(text) > _LONGEST else ""),
            "reward": record.get("reward"),
            "truncated": bool(record.get("truncated")),
        }
        prompt = str(record.get("prompt", ""))[:_LONGEST]
        found.setdefault(int(record.get("step", 0)), {}).setdefault(prompt, entry)
    return found


def provenance(
    output_dir: Path, results: Results, places: Mapping[tuple[str, int], Path]
) -> Provenance:
    """Command, sources, packages and hardware; what differs between runs has several values."""
    notes = [found for path in places.values() if (found := json_object(path / "provenance.json"))]
    values: dict[str, list[str]] = {}
    for note in notes:
        packages = note.get("packages")
        flat = {key: note.get(key) for key in _DISTINCT}
        flat |= packages if isinstance(packages, dict) else {}
        for key, value in flat.items():
            if value is not None and str(value) not in values.setdefault(str(key), []):
                values[str(key)].append(str(value))
    row = results.runs.iloc[0]
    manifest = json_object(output_dir / str(row["study"]) / "sweeps" / f"{row['sweep']}.json") or {}
    command = manifest.get("command") or next(
        (n["command"] for n in notes if n.get("command")), None
    )
    return Provenance(
        None if command is None else str(command),
        str(manifest["created"]) if manifest.get("created") else None,
        {key: found for key, found in values.items() if found},
        any(note.get("git_diff") for note in notes),
    )
