"""Every clip × aggregation × KL × placement: the expected gradient is the closed form.

All batches of two prompts with two completions each are enumerated (7² · 3² = 441 of them), drawn
from an old policy that differs from the trained one and from the reference. What our components
give, differentiated through the table of logits, is compared with the sum over all batches of

    P(batch) · Σ_rows Σ_t w · (∂policy + β·∂kl) · ∇lp_t,   ∇lp = one-hot − π,

where every factor is written out here by hand: w from the lengths, ∂ from what each formula claims.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grpolab.component import component, registry
from grpolab.objective.loss import Objective
from grpolab.objective.masked import from_here_on

if TYPE_CHECKING:
    from tests.objective import enumerated as lab
else:
    import enumerated as lab

BETA = 0.3
GROUP = 2
LIMIT = 5  # the token limit; no completion is that long
PROMPTS = lab.forest(vocabulary=3, limits=[2, 1])
BATCHES = lab.groups(PROMPTS, GROUP)
OLD = PROMPTS.table(7)
THETA = OLD + PROMPTS.table(22, spread=1.2)  # ratios from 0.08 to 16: every bound binds somewhere
REFERENCE = THETA + PROMPTS.table(7, spread=0.7)
REWARDS = PROMPTS.rewards(5)
SHARE = PROMPTS.probability(OLD)[BATCHES].prod(dim=1)  # [B]


def rows(per_completion: Tensor) -> Tensor:
    """[M, …] → [B·N, …]: the rows of every batch, one batch after the other."""
    return per_completion[BATCHES.flatten()]


MASK = rows(PROMPTS.mask)


@dataclass(frozen=True)
class Row:
    """What a claim reads: [B·N, T] each, 0 where masked, nothing differentiated."""

    d: Tensor
    D: Tensor
    A: Tensor
    mask: Tensor
    reward: Tensor
    """[B·N, 1]"""
    p: Tensor
    old_p: Tensor

    @property
    def r(self) -> Tensor:
        return self.d.exp()

    @property
    def n(self) -> Tensor:
        return self.mask.sum(dim=1, keepdim=True)

    @property
    def w(self) -> Tensor:
        """[B·N, 1] the product of the sequence's ratios."""
        return self.d.sum(dim=1, keepdim=True).exp()

    @property
    def s(self) -> Tensor:
        """[B·N, 1] the sequence's ratio."""
        return (self.d.sum(dim=1, keepdim=True) / self.n).exp()


# --- What each formula claims: ∂(Σ_t loss_t)/∂lp_t of a row -------------------------------------


def learning(ratio: Tensor, a: Tensor, low: float, high: float) -> Tensor:
    """1 where the clipped surrogate passes its gradient."""
    return 1.0 - ((a > 0) & (ratio > 1 + high) | (a < 0) & (ratio < 1 - low)).double()


def shared(per_token: Tensor, x: Row) -> Tensor:
    """A ratio of the whole sequence: each lp has 1/n of the sum of its tokens' derivatives."""
    total = torch.where(x.mask, per_token, 0.0).sum(dim=1, keepdim=True)
    return (total / x.n).expand_as(x.d)


CLIPS: dict[str, Callable[[Row], Tensor]] = {
    "reinforce": lambda x: -x.A,
    "none": lambda x: -x.A * x.r,
    "ppo": lambda x: -x.A * x.r * learning(x.r, x.A, 0.2, 0.2),
    # for A < 0 nothing is learnt beyond r > c
    "dual": lambda x: (
        -x.A * x.r * learning(x.r, x.A, 0.2, 0.2) * torch.where(x.A < 0, x.r < 3, True)
    ),
    "two_sided": lambda x: (
        -x.A * x.r * learning(x.r, x.A, 0.2, 0.2) * torch.where(x.A < 0, x.r < 4, True)
    ),
    "cispo": lambda x: -x.A * x.r.clamp(0, 5),
    "gspo": lambda x: shared(-x.A * x.s * learning(x.s, x.A, 3e-4, 4e-4), x),
    "luspo": lambda x: shared(-x.A * x.s * learning(x.s, x.A, 2e-3, 2.5e-3), x),
    "gspo_token": lambda x: -x.A * x.s * learning(x.s, x.A, 3e-4, 4e-4),
    # a clipped token moves nothing, but its sequence's coefficient is there for the others
    "gmpo": lambda x: shared(-x.A * geometric(x), x) * ~clipped_in_log_space(x),
    # σ' = σ(1 − σ), and τ cancels
    "sapo": lambda x: -4 * x.A * x.r * gate(x) * (1 - gate(x)),
    "vespo": lambda x: (
        -x.A * torch.where(x.A >= 0, 3 + 2 * x.w.log() - 3 * x.w, 2 + 3 * x.w.log() - 2 * x.w).exp()
    ),
    "dppo": lambda x: (
        -x.A * x.r * torch.where(x.A > 0, x.p - x.old_p <= 0.2, x.p - x.old_p >= -0.2)
    ),
    "quadratic": lambda x: -x.A + 0.1 * x.d,
    "fipo": lambda x: -x.A * x.r * learning(x.r, x.A, 0.2, 0.2) * future(x),
    "topr": lambda x: -x.A * torch.where(x.reward > 0, 1.0, x.r.clamp(0, 1)),
    "tis_pg": lambda x: -x.A * x.r.clamp(0, 1),
}


def clipped_in_log_space(x: Row) -> Tensor:
    return (x.A > 0) & (x.d > 0.4) | (x.A <= 0) & (x.d < -0.4)


def geometric(x: Row) -> Tensor:
    """[B·N, 1] exp of the mean log-ratio, each clipped on its advantage's side."""
    clipped = torch.where(clipped_in_log_space(x), 0.4 * x.d.sign(), x.d)
    return (clipped.sum(dim=1, keepdim=True) / x.n).exp()


def gate(x: Row) -> Tensor:
    tau = 1 + 0.05 * (x.A <= 0).double()
    return 1 / (1 + (-tau * (x.r - 1)).exp())


def future(x: Row) -> Tensor:
    """exp of the discounted log-ratios to come, in [1, 1.2]; 1 where A < 0 and r > 4."""
    width = range(x.d.shape[1])
    sums = [sum(2 ** (-(k - t) / 32) * x.d[:, k] for k in width if k >= t) for t in width]
    weight = torch.stack([torch.as_tensor(s) for s in sums], dim=1).exp().clamp(1, 1.2)
    return torch.where((x.A < 0) & (x.r > 4), 1.0, weight)


KLS: dict[str, Callable[[Row], Tensor]] = {
    "none": lambda x: torch.zeros_like(x.D),
    "k1": lambda x: torch.ones_like(x.D),
    "abs": lambda x: x.D.sign(),
    "k2": lambda x: x.D,
    "k3": lambda x: 1 - (-x.D).exp(),
    "straight_through": lambda x: x.D,
    "weighted_k3": lambda x: x.r * x.D,  # r·k3 + r·(1 − e^−D) = r·(e^−D + D − 1 + 1 − e^−D)
    "weighted_k2": lambda x: x.r.clamp(max=10) * x.D,
    "sequence_k2": lambda x: x.D.sum(dim=1, keepdim=True).expand_as(x.D),
    # its value is Σ_t q_t (ln q_t − ln softmax(lp)_t) over time, q = softmax(old)
    "seed_kl_div": lambda x: over_time(x.p, x.mask) - over_time(x.old_p, x.mask),
}


def over_time(p: Tensor, mask: Tensor) -> Tensor:
    """softmax(ln p) along the sequence."""
    p = torch.where(mask, p, 0.0)
    return p / p.sum(dim=1, keepdim=True)


def full_gradient(weights: Tensor) -> Tensor:
    """Σ weights·∇KL(state): ∂KL/∂logit_v = π_v (ln π_v/q_v − KL), flat."""
    log_p, log_q = THETA.log_softmax(-1), REFERENCE.log_softmax(-1)
    p, log_ratio = log_p.exp(), log_p - log_q
    each = p * (log_ratio - (p * log_ratio).sum(dim=1, keepdim=True))  # [S, V]
    visits = torch.zeros(PROMPTS.states, dtype=lab.F64)
    place = rows(PROMPTS.place)
    visits = visits.index_put((place[MASK],), weights.expand_as(MASK)[MASK], accumulate=True)
    return (visits.unsqueeze(1) * each).flatten()


# The number that an estimator puts into the reward: of the old policy, at which it is measured.
NUMBERS: dict[str, Callable[[Tensor], Tensor]] = {
    "k1": lambda D: D,
    "abs": lambda D: D.abs(),
    "k2": lambda D: D**2 / 2,
    "k3": lambda D: (-D).exp() + D - 1,
    "sequence_k2": lambda D: D.sum(1, keepdim=True) ** 2 / 2 / (D != 0).sum(1, keepdim=True),
}


def number(kl: str) -> Tensor:
    """[M, T] of each completion, 0 where masked."""
    if kl == "full":
        log_p, log_q = OLD.log_softmax(-1), REFERENCE.log_softmax(-1)
        per_token = (log_p.exp() * (log_p - log_q)).sum(dim=1)[PROMPTS.place]
    else:
        per_token = NUMBERS[kl](
            torch.where(PROMPTS.mask, PROMPTS.logps(OLD) - PROMPTS.logps(REFERENCE), 0.0)
        )
    return torch.where(PROMPTS.mask, per_token, 0.0)


def claimed_advantages(kl: str, placement: str) -> Tensor:
    """[B·N, T] R less its group's mean, with the KL where it stands."""
    reward, later = REWARDS, torch.zeros(MASK.shape, dtype=lab.F64)
    if placement == "reward":
        reward = reward - BETA * number(kl).sum(dim=1)
    if placement == "reward_to_go":
        own = rows(number(kl))
        later = BETA * torch.stack([own[:, t:].sum(dim=1) for t in range(own.shape[1])], dim=1)
    grouped = rows(reward).reshape(-1, GROUP)
    centred = (grouped - grouped.mean(dim=1, keepdim=True)).reshape(-1, 1)
    return torch.where(MASK, centred - later, 0.0)


def row(kl: str, placement: str) -> Row:
    def token(value: Tensor) -> Tensor:
        return torch.where(MASK, rows(value), 0.0)

    now, old, ref = (PROMPTS.logps(t) for t in (THETA, OLD, REFERENCE))
    return Row(
        d=token(now - old),
        D=token(now - ref),
        A=claimed_advantages(kl, placement),
        mask=MASK,
        reward=rows(REWARDS).unsqueeze(1),
        p=token(now.exp()),
        old_p=token(old.exp()),
    )


# --- Weights of the aggregations, from the lengths of a batch's four rows -----------------------


def weights_of(lengths: list[int]) -> dict[str, list[float]]:
    n, tokens = len(lengths), sum(lengths)
    pairs = [lengths[0] + lengths[1]] * 2 + [lengths[2] + lengths[3]] * 2
    return {
        "token_mean": [1 / tokens] * n,
        "token_mean_micro": [1 / tokens] * n,  # 8 rows and more: one micro-batch
        "token_sum": [1.0] * n,
        "constant": [1 / 1000] * n,
        "seq_mean_token_mean": [1 / (n * k) for k in lengths],
        "seq_mean_token_sum": [1 / n] * n,
        "seq_mean_token_sum_norm": [1 / (n * LIMIT)] * n,
        "prompt_mean": [1 / (2 * k) for k in pairs],
    }


AGGREGATIONS = sorted(registry("aggregation"))


@cache
def claimed_weights(name: str) -> Tensor:
    """[B·N, 1], with the probability of each row's batch."""
    lengths = PROMPTS.mask.sum(dim=1)[BATCHES].tolist()
    found = torch.tensor([weights_of(batch)[name] for batch in lengths], dtype=lab.F64)
    return (found * SHARE.unsqueeze(1)).reshape(-1, 1)


@cache
def real_weights(name: str) -> Tensor:
    """The same from the component; equal lengths have equal weights."""
    aggregation = component("aggregation", name)
    masks = PROMPTS.mask[BATCHES]  # [B, N, T]
    known: dict[tuple[int, ...], Tensor] = {}
    for mask in masks:
        key = tuple(mask.sum(dim=1).tolist())
        if key not in known:
            known[key] = aggregation.weights(mask, group_size=GROUP, max_length=LIMIT)
    found = torch.stack([known[tuple(m.sum(dim=1).tolist())] for m in masks])  # [B, N, 1]
    return (found * SHARE.reshape(-1, 1, 1)).reshape(-1, 1)


# --- What the components give -------------------------------------------------------------------


def real_advantages(kl: str, placement: str) -> Tensor:
    """[B·N, 1 or T], as the training loop makes them."""
    rewards, penalty = REWARDS, None
    if placement != "loss":
        old = PROMPTS.logps(OLD)
        value = BETA * component("kl", kl, placement=placement)(
            old,
            PROMPTS.logps(REFERENCE),
            PROMPTS.mask,
            old_logps=old,
            logits=PROMPTS.logits(OLD),
            ref_logits=PROMPTS.logits(REFERENCE),
        )
        if placement == "reward_to_go":
            penalty = rows(from_here_on(value, PROMPTS.mask))
        else:
            rewards = rewards - value.sum(dim=1)
    grouped = rows(rewards).reshape(-1, GROUP)
    found: Tensor = component("advantage", "group_center")(grouped, mask=MASK, penalty=penalty)
    return found if penalty is not None else found.reshape(-1, 1)


def real_losses(table: Tensor, clip: str, kl: str, placement: str) -> Tensor:
    """[B·N, T] of every row; a clip that plans takes all batches for one step."""
    settings = {} if kl == "none" else {"placement": placement}
    objective = Objective(
        component("clip", clip), component("kl", kl, **settings), component("correction", "none")
    )
    return objective(
        rows(PROMPTS.logps(table)),
        rows(PROMPTS.logps(OLD)),
        real_advantages(kl, placement),
        MASK,
        beta=BETA,
        ref_logps=rows(PROMPTS.logps(REFERENCE)),
        logits=rows(PROMPTS.logits(table)),
        ref_logits=rows(PROMPTS.logits(REFERENCE)),
        rewards=rows(REWARDS).unsqueeze(1),
        entropy=torch.zeros(MASK.shape, dtype=lab.F64),
        truncated=torch.zeros(len(MASK), 1, dtype=torch.bool),
    ).total


@cache
def policy_derivative(clip: str, kl: str, placement: str) -> Tensor:
    """[B·N, T] ∂(Σ_t policy loss)/∂lp: the claim, or for a loss without one its own derivative,
    of which then only the way into the whole is tested."""
    x = row(kl, placement)
    if clip in CLIPS:
        return CLIPS[clip](x)
    logps = rows(PROMPTS.logps(THETA)).requires_grad_()
    loss = component("clip", clip)(
        logps,
        rows(PROMPTS.logps(OLD)),
        x.A,
        MASK,
        rewards=x.reward,
        entropy=torch.zeros_like(x.A),
        truncated=torch.zeros(len(MASK), 1, dtype=torch.bool),
    ).loss
    return torch.autograd.grad(loss.sum(), logps)[0]


def cases() -> list[tuple[str, str]]:
    """(kl, placement): each where it is allowed."""
    found = [("none", "loss")]
    for name in sorted(set(registry("kl")) - {"none"}):
        refused = registry("kl")[name].refuses  # type: ignore[attr-defined]
        found += [(name, p) for p in ("loss", "reward", "reward_to_go") if p not in refused]
    return found


@pytest.mark.parametrize(("kl", "placement"), cases())
@pytest.mark.parametrize("clip", sorted(registry("clip")))
def test_expected_gradient_is_the_closed_form(clip: str, kl: str, placement: str) -> None:
    table = THETA.clone().requires_grad_()
    losses = real_losses(table, clip, kl, placement)
    policy, x = policy_derivative(clip, kl, placement), row(kl, placement)
    for name in AGGREGATIONS:
        w = claimed_weights(name)
        expected = policy
        beside = torch.zeros(THETA.numel(), dtype=lab.F64)
        if placement == "loss" and kl == "full":
            beside = BETA * full_gradient(w)
        elif placement == "loss":
            expected = policy + BETA * KLS[kl](x)
        index = rows(torch.arange(len(PROMPTS.ids)))
        summed = torch.zeros(PROMPTS.mask.shape, dtype=lab.F64).index_add(0, index, w * expected)
        exact = PROMPTS.pull(summed, THETA) + beside
        found = lab.gradient((real_weights(name) * losses).sum(), table)
        assert float(exact.abs().max()) > 1e-6, name
        lab.close(found, exact)


def test_the_batches_reach_every_bound() -> None:
    """Else the claims above would be those of losses that never clip."""
    x = row("none", "loss")
    for sign in (1, -1):
        ratios = x.r[MASK & (sign * x.A > 0)]
        for low, high in ((0, 0.8), (0.8, 1.2), (1.2, 3), (3, 4), (5, 10), (10, 20)):
            assert ((ratios > low) & (ratios < high)).any(), (sign, low, high)
    assert (x.D[MASK] > 0.5).any()
    assert (x.D[MASK] < -0.5).any()


def test_every_formula_has_a_claim() -> None:
    """Those that plan a step have none here: which tokens they pick is their own tests' matter."""
    planned = {n for n, cls in registry("clip").items() if cls.plans}  # type: ignore[attr-defined]
    assert set(CLIPS) == set(registry("clip")) - planned
    assert set(KLS) | {"full"} == set(registry("kl"))
    assert set(weights_of([1, 1, 1, 1])) == set(AGGREGATIONS)
