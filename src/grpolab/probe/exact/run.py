"""What `grpolab lab` does: the parts asked for, as frames, then as files and figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from grpolab.component import ConfigError
from grpolab.probe.exact import figures
from grpolab.probe.exact.arms import DESIGNS, FACTORS, Arm, choices, chosen, possible
from grpolab.probe.exact.bias import Budget, Progress, bias_table
from grpolab.probe.exact.flow import COURSES, fixed_points, trajectories
from grpolab.probe.exact.identities import identities
from grpolab.probe.exact.schulman import schulman_table
from grpolab.probe.exact.settings import Settings, check_components
from grpolab.probe.exact.world import World, bandit, token_tree
from grpolab.results.style import save

FILES = {
    "bias": "bias.csv",
    "identities": "identities.csv",
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
    """{part: frame}; the flow's trajectories are under `trajectories`, and what `bias` left out
    under `left_out`."""
    found: dict[str, pd.DataFrame] = {}
    if "bias" in s.parts:
        found["bias"], left = bias_frame(s, progress)
        found["left_out"] = pd.DataFrame({"arm": left})
    if "identities" in s.parts:
        found["identities"] = identities(s.seed, s.samples)
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


def write(found: Mapping[str, pd.DataFrame], folder: Path) -> list[Path]:
    """The tables, and the figures that they have enough for."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for part, name in FILES.items():
        if part in found:
            path = folder / name
            found[part].to_csv(path, index=False, float_format="%.10g")
            paths.append(path)
    for name, (draw, frame, caption) in drawings(found).items():
        paths += save(draw(frame), folder, name, caption)
    return paths


Drawing = tuple[Callable[[pd.DataFrame], Figure], pd.DataFrame, str]


def drawings(found: Mapping[str, pd.DataFrame]) -> dict[str, Drawing]:
    """{file name: (figure, its frame, its caption)} of what was measured."""
    made: dict[str, Drawing] = {}
    if "bias" in found:
        made |= bias_drawings(found["bias"])
    if "identities" in found:
        made["pass_rate"] = (
            figures.pass_rate_weights,
            found["identities"],
            "Left: what the z-score (ddof 0) makes of a prompt with pass rate p: its expected "
            "gradient is f_G(p)·∇p. Right: the share of groups whose rewards do not differ, "
            "p^G + (1−p)^G. Lines: theory. Points: sampled groups through the real component, with "
            "intervals that hold for all sampled identities together with 95 %.",
        )
    if "kl_table" in found:
        made["kl_table"] = (
            figures.schulman,
            found["kl_table"],
            "Schulman's table: bias and standard deviation of k1, k2 and k3 over the true KL, "
            "q = N(0, 1), p = N(μ, 1). Grey ticks: closed form. Points: "
            f"{found['kl_table']['samples'].iloc[0]:,} samples, with intervals that hold for all "
            "twelve together with 95 %.",
        )
    if "trajectories" in found:
        made["fixed_points"] = (
            figures.flow,
            found["trajectories"],
            "The policy of a five-armed bandit on the natural-gradient flow of the exact expected "
            "gradient, β = 0.5, from the reference on. The distance is from q·e^{R/β}/Z, the "
            "optimum of E[R] − β·KL; it is drawn down to 1e-6. 'k2, z-score': groups of four, all "
            "others without a baseline.",
        )
    return made


def bias_drawings(frame: pd.DataFrame) -> dict[str, Drawing]:
    """The map of all arms, error against G, and bias against staleness."""
    kind = (
        "exact sums over all batches"
        if frame["exact"].all()
        else ("exact sums over all batches, or samples where `exact` is false")
    )
    sizes, stales = sorted(frame["group_size"].unique()), sorted(frame["staleness"].unique())
    at = frame[(frame["group_size"] == sizes[-1]) & (frame["beta"].isin([0, frame["beta"].max()]))]
    shown = at[at["staleness"].isin([stales[0], stales[-1]])]
    factors = frame.apply(figures.factor_of, axis=1)
    made: dict[str, Drawing] = {}
    if len(set(factors) - {"unbiased"}) > 1:
        made["bias_variance"] = (
            figures.bias_variance_map,
            shown,
            f"Each arm's direction bias and noise, G = {sizes[-1]}. {kind}. Points are coloured by "
            "what differs from the unbiased arm (rloo, no clip, no KL, seq_mean_token_sum); what "
            f"has a bias below {figures.FLOOR:g}, exact zeros included, is drawn at the left edge. "
            "Names: arms that stand alone; others coincide with them or lie close.",
        )
    at = frame[frame["staleness"] == stales[0]]
    if len(sizes) > 1 and "advantage" in set(factors):
        own = at[factors[at.index].isin(["unbiased", "advantage"])]
        made["error_by_group_size"] = (error_by_group_size, own, f"{ERROR_CAPTION} {kind}.")
    if len(sizes) > 1 and "aggregation" in set(factors):
        own = at[factors[at.index].isin(["unbiased", "aggregation"])]
        made["bias_by_group_size"] = (
            bias_by_group_size,
            own,
            "Direction bias of each aggregation against G, completions of different lengths. Below "
            f"{figures.FLOOR:g}, zeros included, it is drawn at the bottom. Arms that coincide "
            f"share a line. {kind}.",
        )
    if len(stales) > 2 and "clip" in set(factors):
        own = frame[factors.isin(["unbiased", "clip"]) & (frame["group_size"] == sizes[-1])]
        made["bias_by_staleness"] = (
            bias_by_staleness,
            own,
            f"Direction bias of each clip against staleness, G = {sizes[-1]}: the largest change "
            f"of a logit since the batch was drawn. Below {figures.FLOOR:g}, zeros included, it "
            f"is drawn at the bottom. Arms that coincide share a line. {kind}.",
        )
    return made


ERROR_CAPTION = (
    "What is left of the squared error when each arm is given its best learning rate, as a share "
    "of ‖∇J‖²: min over c of E‖c·g − ∇J‖²/‖∇J‖². Arms that coincide share a line; a line "
    "has the group sizes that the estimator allows."
)


def error_by_group_size(frame: pd.DataFrame) -> Figure:
    """Rescaled error of each advantage against G."""
    return figures.lines(
        frame,
        "group_size",
        "rescaled_mse",
        "advantage",
        "Group size G",
        "Error at the best learning rate / ‖∇J‖²",
        log="x",
    )


def bias_by_staleness(frame: pd.DataFrame) -> Figure:
    """Direction bias of each clip against staleness."""
    return figures.lines(
        frame,
        "staleness",
        "direction_bias",
        "clip",
        "Staleness: largest logit change since the batch was drawn",
        "Direction bias",
        log="y",
    )


def bias_by_group_size(frame: pd.DataFrame) -> Figure:
    """Direction bias of each aggregation against G."""
    return figures.lines(
        frame,
        "group_size",
        "direction_bias",
        "aggregation",
        "Group size G",
        "Direction bias",
        log="xy",
    )
