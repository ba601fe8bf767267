"""What is proven of KL gradients and advantages, measured: a table of theory beside measurement.

Exact rows sum over all batches and have to agree to 1e-9. Sampled rows have intervals that hold for
all of them together with 95 % (Bonferroni), so that one row that misses says something.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from scipy.stats import norm
from torch import Tensor

from grpolab.component import component
from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.batches import all_batches, sample_batches
from grpolab.probe.exact.gradients import Bench
from grpolab.probe.exact.tree import F64
from grpolab.probe.exact.world import World, bandit, token_tree

EXACT = 1e-9
PASS_RATES = (0.05, 0.1, 0.25, 0.5, 0.75, 0.9)
GROUP_SIZES = (2, 3, 8)


@dataclass(frozen=True)
class Finding:
    """One identity: what theory says, what was measured, and its standard error where sampled."""

    section: str
    identity: str
    theory: float
    measured: float
    error: float | None = None


def identities(seed: int = 0, samples: int = 20_000) -> pd.DataFrame:
    """identities.csv: section, identity, theory, measured, low, high, holds, exact.

    Args:
        seed: of the token tree and of the samples.
        samples: batches of each sampled row.
    """
    source = torch.Generator().manual_seed(seed)
    found = [*kl_gradients(seed), *baselines(), *zscore(), *pass_rates(source, samples)]
    sampled = sum(f.error is not None for f in found)
    z = float(norm.ppf(1 - 0.025 / max(sampled, 1)))
    return pd.DataFrame([row(f, z) for f in found])


def row(found: Finding, z: float) -> dict[str, object]:
    """A line of the table; `holds`: theory inside the interval, or within 1e-9 where exact."""
    half = EXACT if found.error is None else z * found.error
    shown = 0.0 if found.error is None else half
    return {
        "section": found.section,
        "identity": found.identity,
        "theory": found.theory,
        "measured": found.measured,
        "low": found.measured - shown,
        "high": found.measured + shown,
        "holds": abs(found.measured - found.theory) <= half,
        "exact": found.error is None,
    }


# --- KL ------------------------------------------------------------------------------------------


def kl_alone(world: World, kl: str, placement: str = "loss") -> Tensor:
    """[S·V] the expected gradient that an estimator adds to the loss, β = 1, nothing to gain."""
    nothing = replace(world, rewards=torch.zeros_like(world.rewards))
    batches = all_batches(world.tree, world.old, 1)
    arm = Arm(advantage="raw", clip="reinforce", kl=kl, placement=placement)
    return -(batches.weights @ Bench(nothing, batches, 1.0).gradients(arm))


def gradient(value: Tensor, table: Tensor) -> Tensor:
    """[S·V]"""
    return torch.autograd.grad(value, table)[0].flatten()


def state_kl(world: World, forward: bool) -> Tensor:
    """[S·V] ∇ Σ_s visits(s)·KL_s, the visits those of the old policy and fixed: of KL(π‖π_ref) at
    each state, or of KL(π_ref‖π)."""
    table = world.policy.clone().requires_grad_()
    p, q = table.log_softmax(-1), world.reference.log_softmax(-1)
    kls = (q.exp() * (q - p)).sum(-1) if forward else (p.exp() * (p - q)).sum(-1)
    return gradient((world.tree.visits(world.old) * kls).sum(), table)


def sequence_kl(world: World) -> tuple[float, Tensor]:
    """(KL of whole completions, its gradient [S·V])."""
    table = world.policy.clone().requires_grad_()
    p, q = world.tree.probability(table), world.tree.probability(world.reference)
    value = (p * (p / q).log()).sum()
    return float(value.detach()), gradient(value, table)


def kl_gradients(seed: int) -> Iterator[Finding]:
    """Distances are shares of ‖∇KL‖: 0 says that the two gradients are the same."""
    here = token_tree(3, 2, ends=True, drift=0.8, seed=seed)
    away = here.stale(0.7)
    value, whole = sequence_kl(here)
    reverse, forward = state_kl(here, forward=False), state_kl(here, forward=True)
    yield from kl_values(here, value)

    def off(found: Tensor, claim: Tensor) -> float:
        return float((found - claim).norm() / whole.norm())

    def same(identity: str, found: Tensor, claim: Tensor, section: str = "as a loss") -> Finding:
        return Finding(section, identity, 0.0, off(found, claim))

    yield same("k1: no gradient", kl_alone(here, "k1"), torch.zeros_like(whole))
    yield same("k2: ∇ reverse KL, state by state", kl_alone(here, "k2"), reverse)
    yield same("k3: ∇ forward KL, state by state", kl_alone(here, "k3"), forward)
    yield same("sequence_k2: ∇ reverse KL of the sequence", kl_alone(here, "sequence_k2"), whole)
    yield Finding(
        "as a loss",
        "k2: distance from ∇ reverse KL of the sequence",
        off(reverse, whole),
        off(kl_alone(here, "k2"), whole),
    )
    for place in ("reward", "reward_to_go"):
        own = f"in the {place}"
        yield same("k1: ∇ reverse KL of the sequence", kl_alone(here, "k1", place), whole, own)
        found = kl_alone(here, "k3", place)
        yield same("k3: ∇ reverse − ∇ forward KL", found, whole - forward, own)
        both = found + kl_alone(here, "k3")
        yield same("k3 here and as a loss: ∇ reverse KL", both, whole, own)
    old = state_kl(away, forward=False)
    for kl in ("weighted_k3", "weighted_k2", "full"):
        yield same(f"{kl}: ∇ reverse KL", kl_alone(away, kl), old, "off-policy")
    # ∂k3/∂lp = 1 − e^−D, each token weighed by the old policy alone
    D = away.tree.logps(away.policy) - away.tree.logps(away.reference)
    drawn = away.tree.probability(away.old).unsqueeze(1)
    claim = away.tree.pull(drawn * (1 - (-D).exp()), away.policy)
    apart = off(kl_alone(away, "k3"), old)
    yield Finding("off-policy", "k3: distance from ∇ reverse KL", off(claim, old), apart)


def kl_values(world: World, kl: float) -> Iterator[Finding]:
    """E[k1] = E[k3] = KL of the sequence, and k3 is never below 0."""
    tree = world.tree
    now, ref = tree.logps(world.policy), tree.logps(world.reference)
    p = tree.probability(world.policy).unsqueeze(1)
    for name in ("k1", "k3"):
        found = component("kl", name)(now, ref, tree.mask)
        yield Finding("value", f"E[{name}] = KL", kl, float((p * found).sum()))
    yield Finding("value", "share of tokens with k3 < 0", 0.0, float((found < 0).double().mean()))


# --- Advantages ----------------------------------------------------------------------------------


def expected(world: World, arm: Arm, size: int) -> Tensor:
    """[S·V] E[g] without a KL."""
    batches = all_batches(world.tree, world.old, size)
    return batches.weights @ Bench(world, batches, 0.0).gradients(arm)


def baselines() -> Iterator[Finding]:
    """RLOO is unbiased, centring is (G−1)/G of it; a leave-one-out z-score keeps the direction."""
    world = bandit()
    truth = world.true_gradient(0.0)
    for size in (2, 3, 4):
        for name, factor in (("rloo", 1.0), ("group_center", (size - 1) / size)):
            found = expected(world, Arm(advantage=name), size)
            off = float((found - factor * truth).norm() / truth.norm())
            scale = float(found @ truth / (truth @ truth))
            yield Finding("baseline", f"{name}, G={size}: share of ∇E[R]", factor, scale)
            yield Finding("baseline", f"{name}, G={size}: distance from that share", 0.0, off)
    for size in (3, 4):
        found = expected(world, Arm(advantage="loo_zscore"), size)
        along = found @ truth / (truth @ truth)
        off = float((found - along * truth).norm() / found.norm())
        yield Finding("baseline", f"loo_zscore, G={size}: distance from ∇E[R]'s line", 0.0, off)


def zscore() -> Iterator[Finding]:
    """A of the right ones among eight, ddof 0: √((1−p)/p)."""
    estimator = component("advantage", "group_zscore", ddof=0, eps=0.0)
    for right in range(1, 8):
        rewards = torch.tensor([[1.0] * right + [0.0] * (8 - right)], dtype=F64)
        p = right / 8
        value = float(estimator(rewards)[0, 0])
        yield Finding("z-score", f"A of {right} right of 8", math.sqrt((1 - p) / p), value)


def weight_of_pass_rate(size: int, p: float) -> float:
    """f_G(p): the expected z-score gradient (ddof 0) of a binary prompt is f_G(p)·∇p.

    With k right of G, A is √((G−k)/k) or −√(k/(G−k)), and ∇lp is ∇p/p or −∇p/(1−p): together
    √(k(G−k)) / (G·p(1−p)) · ∇p.
    """
    each = (
        math.comb(size, k) * p**k * (1 - p) ** (size - k) * math.sqrt(k * (size - k))
        for k in range(size + 1)
    )
    return sum(each) / (size * p * (1 - p))


def coin(p: float) -> World:
    """A prompt that is answered rightly with probability p."""
    base = bandit(2, rewards=[1.0, 0.0], reference=[p, 1 - p], drift=0.0)
    return replace(base, policy=base.reference, old=base.reference)


ZSCORE = Arm(advantage="group_zscore", settings={"advantage": {"ddof": 0, "eps": 0.0}})


def sampled_weight(p: float, size: int, source: torch.Generator, samples: int) -> tuple[float, ...]:
    """(f_G(p) from sampled groups, its standard error, share of groups without a difference)."""
    world = coin(p)
    batches = sample_batches(world.tree, world.old, size, samples, source)
    bench = Bench(world, batches, 0.0)
    slope = world.true_gradient(0.0)  # ∇p
    along = bench.gradients(ZSCORE) @ slope / (slope @ slope)  # [B]
    silent = (bench.advantages(ZSCORE).reshape(samples, size) == 0).all(dim=1)
    return float(along.mean()), float(along.std()) / samples**0.5, float(silent.double().mean())


def pass_rates(
    source: torch.Generator,
    samples: int,
    rates: Sequence[float] = PASS_RATES,
    sizes: Sequence[int] = GROUP_SIZES,
) -> Iterator[Finding]:
    """f_G(p) exactly and from samples, and the share of silent groups p^G + (1−p)^G."""
    for size in sizes:
        for p in rates:
            world, claim = coin(p), weight_of_pass_rate(size, p)
            slope = world.true_gradient(0.0)
            exact = float(expected(world, ZSCORE, size) @ slope / (slope @ slope))
            yield Finding("pass rate", f"f_{size}({p:g})", claim, exact)
            found, error, silent = sampled_weight(p, size, source, samples)
            yield Finding("pass rate", f"f_{size}({p:g}), sampled", claim, found, error)
            share = p**size + (1 - p) ** size
            wide = math.sqrt(share * (1 - share) / samples)
            name = f"groups of {size} without a difference, p = {p:g}, sampled"
            yield Finding("pass rate", name, share, silent, wide)
