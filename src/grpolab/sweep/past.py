"""What jobs will take, by what runs of the same shape in the same output folder took."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from grpolab.config import Run
from grpolab.tracking.folder import RunFolder

NEWEST = 500
"""Runs that are looked at: reading a configuration takes milliseconds."""
SHAPE = (
    "model", "task", "hardware", "sampler.group_size", "sampler.max_new_tokens",
    "prompts_per_step",
)  # fmt: skip
"""Config keys in which a past run has to agree."""
GROWING = ("metrics.jsonl", "samples.jsonl")


@dataclass(frozen=True)
class Past:
    """What one run of the past took: means over its steps."""

    shape: str
    steps: int
    step_seconds: float
    """Of a step, log-probs and updates left out."""
    update_seconds: float
    """Of one update."""
    other_seconds: float
    """A step's share of what is neither a step nor an evaluation: logging, checkpoints."""
    tokens: float
    """Sampled for training, a step."""
    evaluation_seconds: float
    evaluation: tuple[int | None, int]
    """Its eval.prompts and eval.samples."""
    fixed_bytes: int | None
    """Files that do not grow with the steps; None where the run is not finished."""
    step_bytes: float


@dataclass(frozen=True)
class Estimate:
    """Of one job: tokens sampled for training, seconds from the first step on, bytes on the disk
    (its folder, without MLflow's store)."""

    tokens: float
    seconds: float
    bytes: float | None
    past_runs: int


def shape_of(raw: Mapping[str, Any]) -> str:
    """What a run's cost hangs on, as text that equals another's or does not."""
    return json.dumps([_look_up(raw, key) for key in SHAPE], sort_keys=True, default=str)


def past_runs(output_dir: Path, shapes: set[str]) -> list[Past]:
    """The newest runs under a folder that have one of these shapes and trained a step."""
    configs = sorted(output_dir.glob("*/*/config.yaml"), key=_changed, reverse=True)
    found = (_past(path.parent, shapes) for path in configs[:NEWEST])
    return [past for past in found if past is not None]


def estimate(run: Run, held_out: int, past: Sequence[Past]) -> Estimate | None:
    """A run's cost: the median over past runs of its shape, each scaled to its steps, updates a
    batch and evaluations; None where there is none."""
    own = shape_of(run.raw)
    alike = [p for p in past if p.shape == own]
    if not alike:
        return None
    sizes = [p.fixed_bytes + run.steps * p.step_bytes for p in alike if p.fixed_bytes is not None]
    return Estimate(
        tokens=statistics.median(p.tokens * run.steps for p in alike),
        seconds=statistics.median(_seconds(run, held_out, p) for p in alike),
        bytes=statistics.median(sizes) if sizes else None,
        past_runs=len(alike),
    )


def most_tokens(run: Run) -> int:
    """The most tokens that a run can sample for training: every completion as long as allowed, and
    every round of a selection that draws again."""
    completions = run.prompts_per_step * run.sampler.group_size * run.selection.rounds
    return int(run.steps * completions * run.sampler.max_new_tokens)


def evaluations(steps: int, every: int) -> int:
    """How often a run is evaluated: before the first step, every so many, and after the last."""
    regular = steps // every if every else 0
    return 1 + regular + (0 if every and steps % every == 0 else 1)


def completions(prompts: int | None, samples: int, held_out: int) -> int:
    """Completions of an evaluation: one greedy, and the samples, of each prompt."""
    return min(prompts or held_out, held_out) * (1 + samples)


def _seconds(run: Run, held_out: int, past: Past) -> float:
    step = past.step_seconds + past.other_seconds + past.update_seconds * run.updates_per_batch
    theirs = completions(*past.evaluation, held_out)
    ours = completions(run.eval.prompts, run.eval.samples, held_out)
    each = past.evaluation_seconds * ours / theirs
    return run.steps * step + evaluations(run.steps, run.eval.every) * each


def _past(path: Path, shapes: set[str]) -> Past | None:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError  # type: ignore[import-untyped]

    try:
        raw: Any = OmegaConf.to_container(OmegaConf.load(path / "config.yaml"))
        shape = shape_of(raw)
    except (OSError, YAMLError, OmegaConfBaseException, AttributeError):
        return None  # somebody else's folder
    if shape not in shapes:
        return None
    folder = RunFolder(path)
    rows = [metrics for _, metrics in folder.metrics()]
    steps = [m for m in rows if "time/step" in m and "time/update" in m]
    if not steps:
        return None
    looks = [m["time/eval"] for m in rows if "time/eval" in m]
    whole, update = (statistics.fmean(m[f"time/{k}"] for m in steps) for k in ("step", "update"))
    trained = len(steps)
    other = rows[-1]["time/wall"] - trained * whole - sum(looks)
    sizes = {p: p.stat().st_size for p in path.rglob("*") if p.is_file()}
    growing = sum(size for p, size in sizes.items() if p.name in GROWING)
    done = folder.status()["state"] == "done"
    return Past(
        shape=shape,
        steps=trained,
        step_seconds=whole - update,
        update_seconds=update / raw["updates_per_batch"],
        other_seconds=max(0.0, other) / trained,
        tokens=rows[-1]["tokens/generated"] / trained,
        evaluation_seconds=statistics.fmean(looks) if looks else 0.0,
        evaluation=(raw["eval"]["prompts"], raw["eval"]["samples"]),
        fixed_bytes=sum(sizes.values()) - growing if done else None,
        step_bytes=growing / trained,
    )


def _look_up(raw: Any, key: str) -> Any:
    for part in key.split("."):
        raw = raw.get(part)
    return raw


def _changed(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
