"""Where a KL leads: the policy that training ends at, reached by following the expected gradient.

The flow is the natural one: each state's gradient divided by its visits and by π, in the table of
logits. It has the fixed points of the plain flow, and its speed does not die out with rare arms.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import pandas as pd
import torch
from torch import Tensor

from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.batches import all_batches
from grpolab.probe.exact.gradients import Bench
from grpolab.probe.exact.world import World

COURSES: Mapping[str, Arm] = {
    "k1 in the reward": Arm(advantage="raw", kl="k1", placement="reward"),
    "k2 as a loss": Arm(advantage="raw", kl="k2"),
    "k3 as a loss": Arm(advantage="raw", kl="k3"),
    "k1 as a loss": Arm(advantage="raw", kl="k1"),
}
"""Without a baseline, a batch of one: the expectation is over the arms alone."""


def follow(
    world: World, arm: Arm, beta: float, *, steps: int, rate: float = 0.5, group_size: int = 1
) -> Iterator[Tensor]:
    """The tables [S, V] from the reference on, `steps` + 1 of them, each on-policy."""
    table = world.reference.log_softmax(-1)
    for step in range(steps + 1):
        yield table
        if step == steps:
            return
        here = replace(world, policy=table, old=table)
        batches = all_batches(world.tree, table, group_size)
        found = batches.weights @ Bench(here, batches, beta).gradients(arm)
        natural = found.reshape(table.shape) / (world.tree.visits(table).unsqueeze(1))
        table = (table + rate * natural / table.softmax(-1)).log_softmax(-1)


def reverse_kl_optimum(world: World, beta: float) -> Tensor:
    """[M] argmax of E[R] − β·KL(π‖π_ref): q·e^{R/β}/Z."""
    return (world.tree.probability(world.reference).log() + world.rewards / beta).softmax(0)


def forward_kl_optimum(world: World, beta: float) -> Tensor:
    """[M] argmax of E[R] − β·KL(π_ref‖π) of a bandit: p = βq/(β + λ − R), λ by bisection."""
    q, rewards = world.tree.probability(world.reference), world.rewards
    low, high = float(rewards.max()) - beta + 1e-15, float(rewards.max()) + 1e3 * beta
    for _ in range(200):
        middle = (low + high) / 2
        if float((beta * q / (beta + middle - rewards)).sum()) > 1:
            low = middle
        else:
            high = middle
    return beta * q / (beta + high - rewards)


def best_arm(world: World) -> Tensor:
    """[M] all mass on the best completion."""
    found = torch.zeros_like(world.rewards)
    found[world.rewards.argmax()] = 1.0
    return found


def fixed_points(world: World, beta: float = 0.5, steps: int = 400) -> pd.DataFrame:
    """fixed_points.csv: for each course and arm of a bandit, theory and where the flow ends.

    Columns: course, beta, completion, reference, reward, theory, measured, error, holds (within
    1e-3, for all completions of the course).
    """
    theory = {
        "k1 in the reward": reverse_kl_optimum(world, beta),
        "k2 as a loss": reverse_kl_optimum(world, beta),
        "k3 as a loss": forward_kl_optimum(world, beta),
        "k1 as a loss": best_arm(world),
    }
    reference = world.tree.probability(world.reference)
    frames = []
    for course, arm in COURSES.items():
        *_, last = follow(world, arm, beta, steps=steps)
        found = world.tree.probability(last)
        error = (found - theory[course]).abs()
        columns = {
            "completion": range(len(found)),
            "reference": reference.tolist(),
            "reward": world.rewards.tolist(),
            "theory": theory[course].tolist(),
            "measured": found.tolist(),
            "error": error.tolist(),
        }
        frame = pd.DataFrame(columns)
        frame.insert(0, "course", course)
        frame.insert(1, "beta", beta)
        frames.append(frame.assign(holds=bool((error < 1e-3).all())))
    return pd.concat(frames, ignore_index=True)


def trajectories(
    world: World,
    courses: Mapping[str, Arm],
    beta: float = 0.5,
    *,
    steps: int = 60,
    rate: float = 0.2,
    group_size: int = 1,
) -> pd.DataFrame:
    """Columns course, step, reward, kl (to the reference), distance: the largest difference of a
    probability from those that E[R] − β·KL is largest at."""
    best = reverse_kl_optimum(world, beta)
    q = world.tree.probability(world.reference)
    rows = []
    for course, arm in courses.items():
        tables = follow(world, arm, beta, steps=steps, rate=rate, group_size=group_size)
        for step, table in enumerate(tables):
            p = world.tree.probability(table)
            rows.append(
                {
                    "course": course,
                    "step": step,
                    "reward": float((p * world.rewards).sum()),
                    "kl": float((p * (p.clamp(min=1e-300) / q).log()).sum()),
                    "distance": float((p - best).abs().max()),
                }
            )
    return pd.DataFrame(rows)


def ends(
    world: World,
    arms: Sequence[Arm],
    betas: Sequence[float],
    *,
    group_size: int = 4,
    steps: int = 300,
    rate: float = 0.2,
) -> pd.DataFrame:
    """Where whole arms, advantage included, end: columns arm, beta, kl, best_kl (that of the
    optimum of E[R] − β·KL), distance (as in `trajectories`)."""
    rows = []
    q = world.tree.probability(world.reference)
    for beta in betas:
        best = reverse_kl_optimum(world, beta)
        for arm in arms:
            *_, last = follow(world, arm, beta, steps=steps, rate=rate, group_size=group_size)
            p = world.tree.probability(last)
            rows.append(
                {
                    "arm": arm.label,
                    "beta": beta,
                    "kl": float((p * (p / q).log()).sum()),
                    "best_kl": float((best * (best / q).log()).sum()),
                    "distance": float((p - best).abs().max()),
                }
            )
    return pd.DataFrame(rows)
