"""What `grpolab lab` does: the parts asked for, as frames, then as files and figures."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from grpolab.component import ConfigError
from grpolab.probe.exact.arms import DESIGNS, FACTORS, Arm, choices, chosen, possible
from grpolab.probe.exact.bias import Budget, Progress, bias_table
from grpolab.probe.exact.drawings import drawings
from grpolab.probe.exact.flow import COURSES, fixed_points, trajectories
from grpolab.probe.exact.identities import identities
from grpolab.probe.exact.identity_curves import identity_curves
from grpolab.probe.exact.product import write_compact
from grpolab.probe.exact.schulman import schulman_table
from grpolab.probe.exact.settings import Settings, check_components
from grpolab.probe.exact.world import World, bandit, token_tree
from grpolab.results.style import save

FILES = {
    "bias": "bias.csv",
    "identities": "identities.csv",
    "identity_curves": "identity_curves.csv",
    "kl_table": "kl_table.csv",
    "fixed_points": "fixed_points.csv",
}
AWAY: Mapping[str, Arm] = {
    **COURSES,
    "k2, z-score": Arm(advantage="group_zscore", kl="k2"),
}


def world_of(s: Settings) -> World:
    """The world that the settings describe; ConfigError if rewards do not fit it."""
    common = {"prompts": s.prompts, "rewards": s.rewards, "drift": s.drift, "seed": s.seed}
    try:
        if s.lab == "bandit":
            return bandit(s.arms, reference=s.reference, **common)  # type: ignore[arg-type]
        return token_tree(s.vocabulary, s.tokens, ends=s.ends, spread=s.spread, **common)  # type: ignore[arg-type]
    except ValueError as error:
        raise ConfigError(str(error)) from error


def arms_of(s: Settings, size: int) -> tuple[list[Arm], list[str]]:
    """(arms for a group size, why others are left out). Without any factor, all choices of all;
    with some, the others stay at the unbiased arm's. ConfigError if no arm is left."""
    given = s.factors or {f: ["all"] for f in FACTORS}
    factors = {f: chosen(f, names) for f, names in given.items()}
    if "kl" in factors and "placement" not in factors:
        factors["placement"] = chosen("placement", ["loss"])
    whole = {f: factors.get(f, choices(f)[:1]) for f in FACTORS}
    check_components(whole, s.components)
    kept, refused = possible(DESIGNS[s.design](factors, s.components), size)
    if not kept:
        raise ConfigError(refused[0].partition(": ")[2])
    return kept, refused


def bias_frame(s: Settings, progress: Progress | None = None) -> tuple[pd.DataFrame, list[str]]:
    """(bias.csv, what was left out and why)."""
    world = world_of(s)
    plans = [(size, *arms_of(s, size)) for size in s.group_size]
    budget = Budget(s.enumerate, s.samples, s.seed)
    frames, left = [], []
    for size, arms, refused in plans:
        left += [f"G={size}: {line}" for line in refused if "kl.placement" not in line]
        frames.append(
            bias_table(
                world,
                arms,
                group_sizes=[size],
                staleness=s.staleness,
                mismatch=s.mismatch,
                betas=s.beta,
                budget=budget,
                progress=progress,
            )
        )
    return pd.concat(frames, ignore_index=True), left


def check_before(s: Settings) -> None:
    """Everything that can be refused, before anything is measured or written."""
    world_of(s)
    if "bias" in s.parts:
        for size in s.group_size:
            arms_of(s, size)


def run(s: Settings, progress: Progress | None = None) -> dict[str, pd.DataFrame]:
    """{part: frame}; the flow's trajectories are under `trajectories`, the identities along an axis
    under `identity_curves`, and what `bias` left out under `left_out`."""
    found: dict[str, pd.DataFrame] = {}
    if "bias" in s.parts:
        found["bias"], left = bias_frame(s, progress)
        found["left_out"] = pd.DataFrame({"arm": left})
    if "identities" in s.parts:
        found["identities"] = identities(s.seed, s.samples)
        found["identity_curves"] = identity_curves()
    if "kl_table" in s.parts:
        found["kl_table"] = schulman_table(np.random.default_rng(s.seed), 100 * s.samples)
    if "fixed_points" in s.parts:
        found["fixed_points"] = fixed_points(bandit())
        parts = [
            trajectories(bandit(), {course: arm}, group_size=4 if "z-score" in course else 1)
            for course, arm in AWAY.items()
        ]
        found["trajectories"] = pd.concat(parts, ignore_index=True)
    return found


def write(found: Mapping[str, pd.DataFrame], folder: Path, *, compact: bool = False) -> list[Path]:
    """The tables, and the figures that they have enough for.

    Args:
        found: of `run`.
        folder: made if it is not there.
        compact: bias.parquet, rounded, in place of bias.csv.
    """
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, name in FILES.items():
        if part not in found:
            continue
        path = folder / name
        if part == "bias" and compact:
            path = path.with_suffix(".parquet")
            write_compact(found[part], path)
        else:
            found[part].to_csv(path, index=False, float_format="%.10g")
        paths.append(path)
    for name, (draw, frame, caption) in drawings(found).items():
        paths += save(draw(frame), folder, name, caption)
    return paths
