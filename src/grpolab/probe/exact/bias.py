"""Bias, variance and error of arms against the true gradient, over G, staleness, mismatch and β."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pandas as pd
import torch

from grpolab.probe.exact.arms import FACTORS, Arm
from grpolab.probe.exact.batches import (
    Batches,
    all_batches,
    all_orders,
    count_batches,
    count_orders,
    sample_batches,
)
from grpolab.probe.exact.gradients import Bench
from grpolab.probe.exact.moments import moments
from grpolab.probe.exact.world import World

Progress = Callable[[int, int, str], None]
CONDITIONS = ("group_size", "staleness", "mismatch", "beta")
LOTS = ("clip_cov", "kl_cov")
"""Clips that draw lots among the tokens, if only to break ties."""
Way = Literal["groups", "orders", "sample"]
"""A sum over all groups whatever their order, over all orders too, or over a sample."""


@dataclass(frozen=True)
class Budget:
    """When the expectation is a sum over all batches, and how many are drawn otherwise."""

    enumerate: int = 5000
    """Batches, at most, that are all gone through."""
    samples: int = 20_000
    seed: int = 0


def bias_table(
    world: World,
    arms: Sequence[Arm],
    *,
    group_sizes: Iterable[int] = (4,),
    staleness: Iterable[float] = (0.0,),
    mismatch: Iterable[float] = (0.0,),
    betas: Iterable[float] = (0.1,),
    budget: Budget | None = None,
    progress: Progress | None = None,
) -> pd.DataFrame:
    """A row for each arm under each condition, columns as in bias.csv (see `grpolab lab --help`).

    Args:
        world: policy, reference and rewards; its `old` is set by the staleness, its `sampler` by
            the mismatch.
        arms: what is compared; those that a group size rules out raise ConfigError.
        group_sizes, staleness, mismatch, betas: every combination. An arm without a KL knows no β:
            its truth is ∇E[R], and it is measured once, with β 0.
        budget: exact or sampled; by default all of at most 5000 batches, else 20,000 drawn ones.
        progress: called with (arms done, arms in all, condition).
    """
    budget = budget or Budget()
    conditions = list(itertools.product(group_sizes, staleness, mismatch, betas))
    rows: list[dict[str, Any]] = []
    total, done = len(conditions) * len(arms), 0
    for at, (size, stale, off, beta) in enumerate(conditions):
        first = beta == conditions[0][-1]
        here = [a for a in arms if first or a.kl != "none"]
        there = world.stale(stale).mismatched(off, budget.seed)
        for row in measure(there, here, size, beta, budget, at):
            rows.append(conditions_of(world, size, stale, off) | row)
            done += 1
            if progress is not None:
                progress(
                    done,
                    total,
                    f"group_size={size} staleness={stale:g} mismatch={off:g} beta={beta:g}",
                )
        done = (at + 1) * len(arms)
    return pd.DataFrame(rows)


def conditions_of(world: World, size: int, stale: float, mismatch: float) -> dict[str, Any]:
    """The columns that are the same for all arms."""
    return {
        "lab": world.name,
        "prompts": world.tree.prompts,
        "group_size": size,
        "staleness": stale,
        "mismatch": mismatch,
    }


def measure(
    world: World, arms: Sequence[Arm], size: int, beta: float, budget: Budget, at: int
) -> Iterable[dict[str, Any]]:
    """The rows of arms under one condition, with β and what stands for itself."""
    benches: dict[tuple[Way, float], Bench] = {}
    truths = {b: world.true_gradient(b) for b in {0.0, beta}}
    for arm in arms:
        arm.check(size)
        own = 0.0 if arm.kl == "none" else beta
        key = (way_of(arm, size, world, budget), own)
        if key not in benches:
            batches, source = drawn(world, size, key[0], budget, at)
            benches[key] = Bench(world, batches, own, source)
        batches = benches[key].batches
        found = moments(benches[key].gradients(arm), batches, truths[own])
        yield {
            "beta": own,
            "arm": arm.label,
            **{f: getattr(arm, f) for f in FACTORS},
            **found.row(),
            "exact": batches.exact,
            "batches": len(batches.rows),
        }


def way_of(arm: Arm, size: int, world: World, budget: Budget) -> Way:
    """How the expectation of an arm is taken."""
    tree = world.tree
    if arm.clip in LOTS:
        alone = tree.prompts == 1 and tree.limit == 1 and not cut(arm, size, world)
        return "orders" if alone and count_orders(tree, size) <= budget.enumerate else "sample"
    few = count_batches(tree, size) <= budget.enumerate
    return "groups" if few and not cut(arm, size, world) else "sample"


def drawn(
    world: World, size: int, way: Way, budget: Budget, at: int
) -> tuple[Batches, torch.Generator | None]:
    """All batches, or a sample with the generator that goes on to draw a clip's lots."""
    if way == "groups":
        return all_batches(world.tree, world.drawn_from, size), None
    if way == "orders":
        return all_orders(world.tree, world.drawn_from, size), None
    source = torch.Generator().manual_seed(1_000_003 * budget.seed + at)
    return sample_batches(world.tree, world.drawn_from, size, budget.samples, source), source


def cut(arm: Arm, size: int, world: World) -> bool:
    """Whether micro-batches cut a group, so that the order inside it plays a part."""
    if arm.aggregation != "token_mean_micro":
        return False
    rows = arm.parts[2].rows
    return not (rows >= size * world.tree.prompts or rows % size == 0)
