"""What each KL does to a policy, exactly: trees of completions of one to three tokens.

Every completion is a batch of its own, weighed by its probability under the policy that drew it.
The truths are differentiated from sums that are written here and share nothing with the package:
J = E[R], the sequence's reverse KL, and the KLs of the single states with their visits held fixed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component, registry

if TYPE_CHECKING:
    from tests.objective import enumerated as lab
else:
    import enumerated as lab

BETA = 0.4
TREES = {
    "bandit": lab.tree(4, 1),
    "two tokens": lab.tree(4, 2),  # 1 + 3·4 = 13 completions
    "three tokens": lab.tree(3, 3),  # 1 + 2·1 + 4·3 = 15 completions
}
SEEDS = range(3)
on_trees = pytest.mark.parametrize("tree", TREES.values(), ids=TREES.keys())
seeds = pytest.mark.parametrize("seed", SEEDS)


def tables(tree: lab.Tree, seed: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(policy, another one that drew the tokens, reference, rewards [M])."""
    theta, old, ref = (tree.table(10 * seed + i) for i in range(3))
    return theta.requires_grad_(), theta.detach() + 0.3 * old, ref, tree.rewards(seed)


def kl_as_loss(
    tree: lab.Tree, theta: Tensor, drawn: Tensor, ref: Tensor, kl: str, **settings: Any
) -> Tensor:
    """The KL's own part: nothing to gain, β = 1."""
    nothing = torch.zeros(len(tree.ids), dtype=lab.F64)
    return lab.step(tree, theta, drawn, ref, nothing, kl, clip="reinforce", beta=1.0, **settings)


def kl_in_reward(
    tree: lab.Tree, theta: Tensor, ref: Tensor, kl: str, placement: str = "reward"
) -> Tensor:
    nothing = torch.zeros(len(tree.ids), dtype=lab.F64)
    return lab.step(tree, theta, theta.detach(), ref, nothing, kl, placement, beta=1.0)


REVERSE: list[tuple[str, dict[str, Any]]] = [
    ("k2", {}),
    ("full", {}),
    ("weighted_k3", {}),
    ("weighted_k3", {"level": "sequence"}),
    *(("straight_through", {"base": b}) for b in ("k1", "k3", "abs")),
    *(("weighted_k2", {"base": b}) for b in ("k1", "k2", "k3", "abs")),
]
"""As a loss, on-policy: the reverse KL at each state."""


# --- Values -------------------------------------------------------------------------------------


@on_trees
@seeds
def test_values_are_unbiased(tree: lab.Tree, seed: int) -> None:
    theta, old, ref, _ = tables(tree, seed)
    p, truth = tree.probability(theta).unsqueeze(1), lab.sequence_kl(tree, theta, ref)
    for name in ("k1", "k3", "full", "weighted_k3", "straight_through"):
        lab.close((p * lab.estimate(tree, name, theta, ref, theta)).sum(), truth)
    assert (lab.estimate(tree, "k3", theta, ref, theta) >= 0).all()
    # drawn by another policy, the ratio makes up for it at each state
    drawn = tree.probability(old).unsqueeze(1)
    off = (drawn * lab.estimate(tree, "weighted_k3", theta, ref, old)).sum()
    lab.close(off, lab.reverse_by_state(tree, theta, ref, old))
    lab.apart((drawn * lab.estimate(tree, "k3", theta, ref, old)).sum(), off)


@on_trees
@seeds
def test_values_that_stand_in_are_those_of_their_base(tree: lab.Tree, seed: int) -> None:
    theta, old, ref, _ = tables(tree, seed)
    for base in ("k1", "k3", "abs"):
        value = lab.estimate(tree, base, theta, ref, old)
        for name in ("straight_through", "weighted_k2"):
            assert torch.equal(lab.estimate(tree, name, theta, ref, old, base=base), value)


@on_trees
@seeds
def test_the_parts_of_a_sequence_add_up(tree: lab.Tree, seed: int) -> None:
    theta, old, ref, _ = tables(tree, seed)
    parts = lab.estimate(tree, "sequence_k2", theta, ref, old)
    total = (tree.probability(theta) / tree.probability(ref)).log()
    lab.close(parts.sum(dim=1), total.square() / 2)
    lab.close(parts[tree.mask], parts[:, :1].expand_as(parts)[tree.mask])  # evenly


# --- As a loss ----------------------------------------------------------------------------------


@on_trees
@seeds
def test_as_a_loss(tree: lab.Tree, seed: int) -> None:
    theta, _, ref, _ = tables(tree, seed)
    here = theta.detach()
    reverse = lab.gradient(lab.reverse_by_state(tree, theta, ref, here), theta)
    forward = lab.gradient(lab.forward_by_state(tree, theta, ref, here), theta)
    lab.close(kl_as_loss(tree, theta, here, ref, "k1"), torch.zeros_like(reverse))
    lab.close(kl_as_loss(tree, theta, here, ref, "k3"), forward)
    for name, settings in REVERSE:
        if settings.get("level") == "sequence" and tree is not TREES["bandit"]:
            continue  # the sequence's ratio is right for one token only
        lab.close(kl_as_loss(tree, theta, here, ref, name, **settings), reverse)
    lab.apart(forward, reverse)


@on_trees
@seeds
def test_the_sequence_kl_as_a_loss(tree: lab.Tree, seed: int) -> None:
    theta, _, ref, _ = tables(tree, seed)
    here = theta.detach()
    truth = lab.gradient(lab.sequence_kl(tree, theta, ref), theta)
    lab.close(kl_as_loss(tree, theta, here, ref, "sequence_k2"), truth)
    by_state = kl_as_loss(tree, theta, here, ref, "k2")
    if tree is TREES["bandit"]:
        lab.close(by_state, truth)
    else:
        lab.apart(by_state, truth)  # it leaves out what a token does to those after it


@on_trees
@seeds
def test_abs_as_a_loss(tree: lab.Tree, seed: int) -> None:
    theta, _, ref, _ = tables(tree, seed)
    pi = theta.detach().softmax(-1)
    sign = (theta - ref.log_softmax(-1) - theta.logsumexp(-1, keepdim=True)).detach().sign()
    # Σ_v π_v sign_v ∇ln π_v = π ∘ (sign − Σ_v π_v sign_v)
    each = pi * (sign - (pi * sign).sum(dim=1, keepdim=True))
    exact = (tree.visits(theta.detach()).unsqueeze(1) * each).flatten()
    lab.close(kl_as_loss(tree, theta, theta.detach(), ref, "abs"), exact)


@on_trees
@seeds
def test_as_a_loss_on_tokens_of_another_policy(tree: lab.Tree, seed: int) -> None:
    theta, old, ref, _ = tables(tree, seed)
    reverse = lab.gradient(lab.reverse_by_state(tree, theta, ref, old), theta)
    lab.close(kl_as_loss(tree, theta, old, ref, "weighted_k3"), reverse)
    lab.close(kl_as_loss(tree, theta, old, ref, "weighted_k2"), reverse)
    lab.close(kl_as_loss(tree, theta, old, ref, "full"), reverse)
    for name in ("k2", "k3", "straight_through"):
        lab.apart(kl_as_loss(tree, theta, old, ref, name), reverse)
    # with a bound that binds, exactly what lies above it is missing
    c = 0.9
    ratio = (tree.logps(theta) - tree.logps(old)).detach().exp()
    assert (ratio[tree.mask] > c).any()
    D = (tree.logps(theta) - tree.logps(ref)).detach()
    drawn = tree.probability(old).unsqueeze(1)
    missing = tree.pull(drawn * (ratio - ratio.clamp(max=c)) * D, theta.detach())
    lab.close(kl_as_loss(tree, theta, old, ref, "weighted_k2", c=c), reverse - missing)


@seeds
def test_the_sequence_ratio_is_that_of_its_mean(seed: int) -> None:
    tree = TREES["three tokens"]
    theta, old, ref, _ = tables(tree, seed)
    d = torch.where(tree.mask, tree.logps(theta) - tree.logps(old), 0.0).detach()
    D = torch.where(tree.mask, tree.logps(theta) - tree.logps(ref), 0.0).detach()
    n = tree.mask.sum(dim=1, keepdim=True)
    s = (d.sum(dim=1, keepdim=True) / n).exp()
    k3 = torch.where(tree.mask, (-D).exp() + D - 1, 0.0)
    # Σ_t s·k3_t: each lp moves s by s/n and its own k3 by 1 − e^−D
    each = s * (k3.sum(dim=1, keepdim=True) / n + 1 - (-D).exp())
    exact = tree.pull(tree.probability(old).unsqueeze(1) * each, theta.detach())
    lab.close(kl_as_loss(tree, theta, old, ref, "weighted_k3", level="sequence"), exact)


# --- In the reward ------------------------------------------------------------------------------


@on_trees
@seeds
@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_in_the_reward(tree: lab.Tree, seed: int, placement: str) -> None:
    theta, _, ref, _ = tables(tree, seed)
    here = theta.detach()
    truth = lab.gradient(lab.sequence_kl(tree, theta, ref), theta)
    forward = lab.gradient(lab.forward_by_state(tree, theta, ref, here), theta)
    reverse = lab.gradient(lab.reverse_by_state(tree, theta, ref, here), theta)
    lab.close(kl_in_reward(tree, theta, ref, "k1", placement), truth)
    lab.close(kl_in_reward(tree, theta, ref, "k3", placement), truth - forward)
    lab.close(kl_in_reward(tree, theta, ref, "full", placement), truth - reverse)
    # what one placement lacks, the other has
    for name in ("k3", "full"):
        both = kl_in_reward(tree, theta, ref, name, placement) + kl_as_loss(
            tree, theta, here, ref, name
        )
        lab.close(both, truth)


@on_trees
@seeds
@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_a_reward_is_a_number(tree: lab.Tree, seed: int, placement: str) -> None:
    """Whatever the estimator: the gradient of E[Σ KL], the KL held fixed."""
    theta, _, ref, _ = tables(tree, seed)
    for name in sorted(set(registry("kl")) - {"none"}):
        if placement in registry("kl")[name].refuses:  # type: ignore[attr-defined]
            continue
        number = lab.estimate(tree, name, theta, ref, theta).detach().sum(dim=1)
        exact = lab.gradient((tree.probability(theta) * number).sum(), theta)
        lab.close(kl_in_reward(tree, theta, ref, name, placement), exact)


def test_k3_in_the_reward_can_push_away() -> None:
    # q = (½, ½), p = (.1, .9): k3 = 5 − ln 5 − 1 = 2.39 of the rare arm, 5/9 + ln 1.8 − 1 = .14 of
    # the other. The rare arm is punished the more, so it becomes rarer still.
    tree = lab.tree(2, 1)
    theta = torch.tensor([[0.1, 0.9]], dtype=lab.F64).log().requires_grad_()
    ref = torch.zeros(1, 2, dtype=lab.F64)
    found = kl_in_reward(tree, theta, ref, "k3")  # descent moves against it
    assert found[0] > 0 > found[1]
    truth = lab.gradient(lab.sequence_kl(tree, theta, ref), theta)
    assert truth[0] < 0 < truth[1]  # the reverse KL would bring it back
    p, k3 = (0.1, 0.9), (5 - torch.tensor(5.0).log() - 1, 5 / 9 + torch.tensor(1.8).log() - 1)
    assert float(found[0]) == pytest.approx(p[0] * p[1] * float(k3[0] - k3[1]), rel=1e-6)


# --- The whole objective ------------------------------------------------------------------------

EXACT = [("k1", "reward"), ("k1", "reward_to_go"), ("sequence_k2", "loss")]


@on_trees
@seeds
@pytest.mark.parametrize(("kl", "placement"), EXACT)
@pytest.mark.parametrize("clip", ["reinforce", "none", "ppo", "cispo"])
def test_the_regularised_objective(
    tree: lab.Tree, seed: int, kl: str, placement: str, clip: str
) -> None:
    theta, _, ref, rewards = tables(tree, seed)
    truth = BETA * lab.sequence_kl(tree, theta, ref) - lab.expected_reward(tree, theta, rewards)
    found = lab.step(tree, theta, theta.detach(), ref, rewards, kl, placement, clip=clip, beta=BETA)
    lab.close(found, lab.gradient(truth, theta))


@seeds
def test_off_policy_bandit(seed: int) -> None:
    """One token of another policy: ratio and weighted KL are exact together."""
    tree = TREES["bandit"]
    theta, old, ref, rewards = tables(tree, seed)
    truth = lab.gradient(
        BETA * lab.sequence_kl(tree, theta, ref) - lab.expected_reward(tree, theta, rewards), theta
    )
    for kl in ("weighted_k2", "weighted_k3", "full"):
        lab.close(lab.step(tree, theta, old, ref, rewards, kl, beta=BETA), truth)
    for kl in ("k2", "k3"):
        lab.apart(lab.step(tree, theta, old, ref, rewards, kl, beta=BETA), truth)


@pytest.mark.parametrize("kl", sorted(registry("kl")))
def test_without_beta_nothing_of_the_kl_enters(kl: str) -> None:
    tree = TREES["three tokens"]
    theta, old, ref, rewards = tables(tree, 0)
    spoilt = ref.clone()
    spoilt[:, 1] = -torch.inf  # a KL of inf or NaN, if it were looked at
    plain = lab.step(tree, theta, old, ref, rewards, "none", clip="ppo", beta=0.0)
    found = lab.step(tree, theta, old, spoilt, rewards, kl, clip="ppo", beta=0.0)
    assert torch.equal(found, plain)


SIZES = {"group_size": 2, "max_length": 7}
GROUPS = lab.groups(TREES["two tokens"], 2)  # 13² = 169 pairs


@seeds
@pytest.mark.parametrize(("advantage", "scale"), [("rloo", 1.0), ("group_center", 0.5)])
@pytest.mark.parametrize(
    ("aggregation", "factor"),
    [
        ("seq_mean_token_sum", 1.0),
        ("token_sum", 2.0),
        ("constant", 2 / 1000),
        ("seq_mean_token_sum_norm", 1 / 7),
        ("seq_mean_token_mean", None),
        ("token_mean", None),
        ("prompt_mean", None),
        ("token_mean_micro", None),
    ],
)
def test_groups_and_denominators(
    seed: int, advantage: str, scale: float, aggregation: str, factor: float | None
) -> None:
    """Pairs with a KL in the reward: a fixed denominator leaves the gradient of J − β·KL what it
    is up to a factor; one that depends on the lengths drawn makes another of it."""
    tree = TREES["two tokens"]
    theta, _, ref, rewards = tables(tree, seed)
    value = BETA * lab.estimate(tree, "k1", theta, ref, theta).detach().sum(dim=1)
    pairs = (rewards - value)[GROUPS]
    advantages = component("advantage", advantage)(pairs).reshape(-1, 1)
    chosen = GROUPS.flatten()
    logps, mask = tree.logps(theta)[chosen], tree.mask[chosen]
    losses = component("clip", "none")(logps, logps.detach(), advantages, mask).loss
    mean = component("aggregation", aggregation)
    share = tree.probability(theta).detach()[GROUPS].prod(dim=1)
    each = torch.stack(
        [
            mean(loss, tokens, **SIZES)
            for loss, tokens in zip(torch.split(losses, 2), torch.split(mask, 2), strict=True)
        ]
    )
    found = lab.gradient((share * each).sum(), theta)
    truth = lab.gradient(
        BETA * lab.sequence_kl(tree, theta, ref) - lab.expected_reward(tree, theta, rewards), theta
    )
    if factor is not None:
        lab.close(found, factor * scale * truth)
    else:
        cosine = torch.nn.functional.cosine_similarity(found, truth, dim=0)
        assert 0 < float(cosine) < 0.999
