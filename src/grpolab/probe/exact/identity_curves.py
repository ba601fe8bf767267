"""What is proven, as curves: theory along an axis, and what the components make of it there.

Every measured point is a sum over all outcomes through the real components, or a component's
output; theory is written here in closed form. A row: figure, panel, series, x, theory, measured
(NaN where theory alone is drawn), tolerance, holds.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace

import pandas as pd
import torch

from grpolab.component import component
from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.identities import EXACT, expected, kl_alone
from grpolab.probe.exact.tree import F64
from grpolab.probe.exact.world import World, bandit, token_tree

Q = 0.3
"""The reference's probability of the first token."""
STALE = 1.0
"""Logits between the policy and the one that generated the batch, in the panel off-policy."""
LATER = (1.2, -0.6)
"""Offsets of the second token's logit from the reference's, after either first token."""
OFFSETS = [i / 8 for i in range(-16, 17)]
MEASURED_EVERY = 4


@dataclass(frozen=True)
class Point:
    """One point of a curve; `measured` None where theory alone is drawn."""

    figure: str
    panel: str
    series: str
    x: float
    theory: float
    measured: float | None
    tolerance: float = EXACT


def identity_curves() -> pd.DataFrame:
    """identity_curves.csv. `holds`: measured is theory to the tolerance, or theory stands alone."""
    points = [*kl_values(), *kl_in_the_loss(), *kl_in_the_reward(), *kl_off_policy()]
    points += [*kl_of_two_tokens(), *zscores(), *squares(), *baselines(), *pairs(), *scalings()]
    points += [*two_rewards()]
    frame = pd.DataFrame([vars(p) for p in points])
    frame["measured"] = frame["measured"].astype(float)
    off = (frame["measured"] - frame["theory"]).abs()
    return frame.assign(holds=(off <= frame["tolerance"]) | frame["measured"].isna())


# --- KL: two tokens to choose from, one logit -----------------------------------------------------


def coin(offset: float, stale: float = 0.0) -> World:
    """One token of two; the first's logit lies `offset` above the reference's, and `stale` above
    that of the policy that generated the batch."""
    base = bandit(2, rewards=[0.0, 1.0], reference=[Q, 1 - Q], drift=0.0)
    policy = base.reference + torch.tensor([[offset, 0.0]], dtype=F64)
    old = policy - torch.tensor([[stale, 0.0]], dtype=F64)
    return replace(base, policy=policy, old=old)


def chance(offset: float) -> float:
    """p of the first token at an offset from the reference's logit."""
    return 1 / (1 + math.exp(-(math.log(Q / (1 - Q)) + offset)))


def kl_to_reference(offset: float) -> float:
    """KL(p‖q) of one token."""
    p = chance(offset)
    return p * math.log(p / Q) + (1 - p) * math.log((1 - p) / (1 - Q))


def reverse_slope(offset: float) -> float:
    """∂KL(p‖q)/∂logit = p(1−p)·offset."""
    return chance(offset) * (1 - chance(offset)) * offset


def forward_slope(offset: float) -> float:
    """∂KL(q‖p)/∂logit = p − q."""
    return chance(offset) - Q


def slope(kl: str, offset: float, placement: str = "loss", stale: float = 0.0) -> float:
    """The expected slope that an estimator adds to the loss, by the first token's logit."""
    return float(kl_alone(coin(offset, stale), kl, placement)[0])


def some(i: int) -> bool:
    """Whether the i-th offset is measured, too."""
    return i % MEASURED_EVERY == 0


def kl_values() -> Iterator[Point]:
    """E[k1] = E[k3] = KL, E[k2] = E[d²]/2; pointwise, k3 ≥ 0; and E[k2] − KL of third order."""
    for i, offset in enumerate(OFFSETS):
        world = coin(offset)
        p, kl = chance(offset), kl_to_reference(offset)
        logs = (math.log(p / Q), math.log((1 - p) / (1 - Q)))
        square = (p * logs[0] ** 2 + (1 - p) * logs[1] ** 2) / 2
        for name, theory in (("k1", kl), ("k2", square), ("k3", kl)):
            measured = expected_value(world, name) if some(i) else None
            yield Point("kl_values", "expectation", name, offset, theory, measured)
        d = offset
        for name, theory in (("k1", d), ("k2", d * d / 2), ("k3", math.exp(-d) - 1 + d)):
            found = component("kl", name)(*one_token(d)) if some(i) else None
            value = None if found is None else float(found)
            yield Point("kl_values", "one token", name, d, theory, value)
    for power in range(1, 9):
        offset = 2.0**-power
        p, off = chance(offset), expected_value(coin(offset), "k2") - kl_to_reference(offset)
        both = (math.log(p / Q), math.log((1 - p) / (1 - Q)))
        third = (p * both[0] ** 3 + (1 - p) * both[1] ** 3) / 6
        # Σ p·e^−d = 1 by Taylor with remainder: E[k2] − KL = E[d³]/6 − E[d⁴·e^−ξ]/24, |ξ| ≤ |d|
        rest = (p * both[0] ** 4 + (1 - p) * both[1] ** 4) * math.exp(max(map(abs, both))) / 24
        yield Point("kl_values", "third order", "|E[k2] − KL|", offset, abs(third), abs(off), rest)


def one_token(d: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(logps, ref_logps, mask) of one token whose log-ratio is d."""
    here = torch.tensor([[d]], dtype=F64)
    return here, torch.zeros_like(here), torch.ones_like(here, dtype=torch.bool)


def expected_value(world: World, kl: str) -> float:
    """Σ p·k over the completions."""
    tree = world.tree
    now, ref = tree.logps(world.policy), tree.logps(world.reference)
    found = component("kl", kl)(now, ref, tree.mask)
    return float((tree.probability(world.policy).unsqueeze(1) * found).sum())


def kl_in_the_loss() -> Iterator[Point]:
    """k1: nothing; k2: the reverse KL's slope; k3: the forward KL's."""
    for i, offset in enumerate(OFFSETS):
        theories = {"k1": 0.0, "k2": reverse_slope(offset), "k3": forward_slope(offset)}
        for name, theory in theories.items():
            measured = slope(name, offset) if some(i) else None
            yield Point("kl_gradients", "in the loss", name, offset, theory, measured)


def kl_in_the_reward() -> Iterator[Point]:
    """k1: the reverse KL's slope; k3: reverse less forward; with k3 in the loss, reverse again."""
    for i, offset in enumerate(OFFSETS):
        reverse, forward = reverse_slope(offset), forward_slope(offset)
        k1 = slope("k1", offset, "reward") if some(i) else None
        k3 = slope("k3", offset, "reward") if some(i) else None
        both = None if k3 is None else k3 + slope("k3", offset)
        for name, theory, measured in (
            ("k1", reverse, k1),
            ("k3", reverse - forward, k3),
            ("k3, here and in the loss", reverse, both),
        ):
            yield Point("kl_gradients", "in the reward", name, offset, theory, measured)


def kl_off_policy() -> Iterator[Point]:
    """Tokens of an older policy: with the ratio's weight the reverse KL's slope, without not."""
    for i, offset in enumerate(OFFSETS):
        p, old = chance(offset), chance(offset - STALE)
        plain = (p - Q) * (old * (1 - p) / p + (1 - old) * p / (1 - p))
        for name, theory in (
            ("weighted_k2", reverse_slope(offset)),
            ("weighted_k3", reverse_slope(offset)),
            ("k3", plain),
        ):
            measured = slope(name, offset, stale=STALE) if some(i) else None
            yield Point("kl_gradients", "off-policy, in the loss", name, offset, theory, measured)


def kl_of_two_tokens() -> Iterator[Point]:
    """The first token's logit: per-token k2 as a loss forgets what it does to the second's KL."""
    later = kl_to_reference(LATER[0]) - kl_to_reference(LATER[1])
    for i, offset in enumerate(OFFSETS):
        p = chance(offset)
        alone = reverse_slope(offset)
        whole = alone + p * (1 - p) * later
        for name, kl, place, theory in (
            ("k2 in the loss", "k2", "loss", alone),
            ("sequence_k2 in the loss", "sequence_k2", "loss", whole),
            ("k1 in the reward", "k1", "reward", whole),
            ("k1 in the reward to go", "k1", "reward_to_go", whole),
        ):
            found = kl_alone(two_tokens(offset), kl, place) if some(i) else None
            measured = None if found is None else float(found[0])
            yield Point("kl_gradients", "first of two tokens", name, offset, theory, measured)


def two_tokens(offset: float) -> World:
    """Two tokens of two each, on-policy; states: the first token, the second after either."""
    world = token_tree(2, 2, drift=0.0)
    reference = torch.tensor([Q, 1 - Q], dtype=F64).log().expand(3, 2).clone()
    policy = reference.clone()
    first = world.tree.place[:, 0].unique().tolist()  # type: ignore[no-untyped-call]
    after = {int(world.tree.ids[m, 0]): int(world.tree.place[m, 1]) for m in range(4)}
    policy[first[0], 0] += offset
    for token, by in enumerate(LATER):
        policy[after[token], 0] += by
    return replace(world, policy=policy, old=policy, reference=reference)


# --- Advantages -----------------------------------------------------------------------------------


def group(values: list[float]) -> torch.Tensor:
    """[1, G]"""
    return torch.tensor([values], dtype=F64)


def zscores(size: int = 8) -> Iterator[Point]:
    """A of the right and of the wrong ones: √((1−p)/p) and −√(p/(1−p)); ddof 1 shrinks both."""
    for ddof in (0, 1):
        factor = 1.0 if ddof == 0 else math.sqrt((size - 1) / size)
        estimator = component("advantage", "group_zscore", ddof=ddof, eps=0.0)
        for tenth in range(5, 10 * size - 4, 5):
            right, p = tenth / 10, tenth / 10 / size
            measured = tenth % 10 == 0
            found = estimator(group([1.0] * int(right) + [0.0] * (size - int(right))))
            for name, theory, at in (
                ("right", math.sqrt((1 - p) / p), 0),
                ("wrong", -math.sqrt(p / (1 - p)), -1),
            ):
                value = float(found[0, at]) if measured else None
                yield Point(
                    "advantages", "z-score", f"{name}, ddof {ddof}", right, factor * theory, value
                )


def squares() -> Iterator[Point]:
    """Σ A = 0 and Σ A² = G (ddof 0) or G − 1 (ddof 1), of random rewards."""
    source = torch.Generator().manual_seed(0)
    for size in (2, 3, 4, 6, 8, 12, 16):
        rewards = torch.randn(1, size, dtype=F64, generator=source)
        for ddof in (0, 1):
            found = component("advantage", "group_zscore", ddof=ddof, eps=0.0)(rewards)
            square = float(found.square().sum())
            yield Point("advantages", "sums", f"Σ A², ddof {ddof}", size, size - ddof, square)
            if ddof == 0:
                yield Point("advantages", "sums", "Σ A", size, 0.0, float(found.sum()))


def baselines() -> Iterator[Point]:
    """The share of ∇E[R] in the expected gradient: 1 for rloo, (G−1)/G for centring."""
    world = bandit()
    truth = world.true_gradient(0.0)
    for size in range(2, 7):
        for name, theory in (("rloo", 1.0), ("group_center", (size - 1) / size)):
            found = expected(world, Arm(advantage=name), size)
            share = float(found @ truth / (truth @ truth))
            yield Point("advantages", "share of ∇E[R]", name, size, theory, share)


def pairs() -> Iterator[Point]:
    """G = 2: the z-score is the sign of the difference × 1 (ddof 0) or 1/√2 (ddof 1)."""
    for ddof, height in ((0, 1.0), (1, math.sqrt(0.5))):
        estimator = component("advantage", "group_zscore", ddof=ddof, eps=0.0)
        for step in range(-8, 9):
            off = step / 4
            found = float(estimator(group([off, 0.0]))[0, 0])
            theory = height * float((off > 0) - (off < 0))
            yield Point("advantages", "G = 2", f"ddof {ddof}", off, theory, found)


def scalings() -> Iterator[Point]:
    """R → a·R + b: what A of the first member becomes, as a multiple of what it was."""
    rewards = group([0.9, 0.1, 0.4, 0.3])
    for name, settings in (
        ("group_zscore", {"eps": 0.0}),
        ("group_center", {}),
        ("rloo", {}),
    ):
        estimator = component("advantage", name, **settings)
        before = float(estimator(rewards)[0, 0])
        for step in range(1, 9):
            a = step / 2
            found = float(estimator(a * rewards + 3.0)[0, 0]) / before
            theory = 1.0 if name == "group_zscore" else a
            yield Point("advantages", "R → a·R + 3", name, a, theory, found)


def two_rewards() -> Iterator[Point]:
    """Two parts, G = 2, the second member ahead in one or in both of them: the sum's z-score is the
    same, that of the parts, summed (gdpo without its batch's z-score), is not."""
    apart = component("advantage", "gdpo", eps=0.0, batch="none")
    summed = component("advantage", "group_zscore", eps=0.0)
    unit = math.sqrt(0.5)
    for ahead in (1, 2):
        parts = {"a": group([0.0, 1.0]), "b": group([0.0, 1.0 if ahead == 2 else 0.0])}
        total = parts["a"] + parts["b"]
        for name, theory, found in (
            ("sum, then z-score", unit, summed(total)),
            ("z-scores, then sum (gdpo)", ahead * unit, apart(total, parts=parts)),
        ):
            yield Point("advantages", "two rewards", name, ahead, theory, float(found[0, 1]))
