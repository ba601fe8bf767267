"""Where each KL leads: fixed points reached by following the real objective's expected gradient.

The flow is the natural one: each state's gradient divided by its visits and by π, in the table of
logits. It has the fixed points of the plain flow, and its speed does not die out with rare arms.
"""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

if TYPE_CHECKING:
    from tests.objective import enumerated as lab
else:
    import enumerated as lab

BANDIT = lab.tree(5, 1)
REFERENCE = torch.tensor([[0.4, 0.3, 0.15, 0.1, 0.05]], dtype=lab.F64).log()
REWARDS = torch.tensor([0.0, 0.2, 0.5, 0.8, 1.0], dtype=lab.F64)
BETA = 0.5
REVERSE_KL = [0.1887, 0.2111, 0.1923, 0.2336, 0.1743]  # q·e^{R/β}/Z
FORWARD_KL = [0.1860, 0.1713, 0.1303, 0.1815, 0.3309]  # βq/(β + λ − R)
SPREAD: dict[str, Any] = {"abs": 1e-4 / 2 + 1e-9}  # half a unit of the last digit given


def follow(
    tree: lab.Tree,
    ref: Tensor,
    rewards: Tensor,
    kl: str,
    placement: str = "loss",
    *,
    drawn: Tensor | None = None,
    steps: int = 200,
    rate: float = 0.5,
    **settings: Any,
) -> Tensor:
    """[M] probabilities after so many steps from the reference; tokens come from `drawn`, or from
    the policy itself."""
    theta = ref.log_softmax(-1)
    for _ in range(steps):
        here = theta.clone().requires_grad_()
        old = theta if drawn is None else drawn
        found = lab.step(tree, here, old, ref, rewards, kl, placement, beta=BETA, **settings)
        weight = tree.visits(theta).unsqueeze(1) * theta.softmax(-1)
        theta = (theta - rate * found.reshape(theta.shape) / weight).log_softmax(-1)
    return tree.probability(theta)


ON_POLICY: list[tuple[str, str, dict[str, Any]]] = [
    ("k1", "reward", {}),
    ("k1", "reward_to_go", {}),
    ("k2", "loss", {}),
    ("full", "loss", {}),
    ("sequence_k2", "loss", {}),
    ("straight_through", "loss", {"base": "k1"}),
    ("straight_through", "loss", {"base": "k3"}),
    ("straight_through", "loss", {"base": "abs"}),
    ("weighted_k2", "loss", {}),
    ("weighted_k3", "loss", {}),
]


@pytest.mark.parametrize(("kl", "placement", "settings"), ON_POLICY)
def test_the_reverse_kl_leads_to_its_optimum(
    kl: str, placement: str, settings: dict[str, Any]
) -> None:
    found = follow(BANDIT, REFERENCE, REWARDS, kl, placement, **settings)
    assert found.tolist() == pytest.approx(REVERSE_KL, **SPREAD)
    exact = (REFERENCE[0] + REWARDS / BETA).softmax(-1)
    assert found.tolist() == pytest.approx(exact.tolist(), rel=1e-9)


@pytest.mark.parametrize("kl", ["weighted_k2", "weighted_k3", "full"])
def test_tokens_of_another_policy_lead_there_too(kl: str) -> None:
    """Drawn from the reference throughout: r reaches .1743/.05 = 3.5, below c."""
    found = follow(BANDIT, REFERENCE, REWARDS, kl, drawn=REFERENCE)
    assert found.tolist() == pytest.approx(REVERSE_KL, **SPREAD)


def test_unweighted_they_lead_elsewhere() -> None:
    found = follow(BANDIT, REFERENCE, REWARDS, "k2", drawn=REFERENCE)
    assert max(abs(a - b) for a, b in zip(found.tolist(), REVERSE_KL, strict=True)) > 0.01


def test_k3_as_a_loss_leads_to_the_forward_kl() -> None:
    found = follow(BANDIT, REFERENCE, REWARDS, "k3", steps=400)
    assert found.tolist() == pytest.approx(FORWARD_KL, **SPREAD)
    shift = BETA * (REFERENCE.exp()[0] / found) + REWARDS - BETA  # λ, the same for every arm
    assert shift.tolist() == pytest.approx([float(shift[0])] * 5, abs=1e-8)


def test_k1_as_a_loss_does_not_regularise() -> None:
    # ln(p_5/p_4) grows by rate·0.2 = 0.1 a step: e^-40 of the second-best arm after 400
    found = follow(BANDIT, REFERENCE, REWARDS, "k1", steps=400)
    assert found.tolist() == pytest.approx([0, 0, 0, 0, 1], abs=1e-12)


def test_k3_in_the_reward_collapses() -> None:
    """What has become rare is punished for it, the harder the rarer."""
    path = [
        follow(BANDIT, REFERENCE, REWARDS, "k3", "reward", steps=n, rate=0.1) for n in (25, 30, 35)
    ]
    best = torch.tensor(REVERSE_KL, dtype=lab.F64)
    kls = [float((p * (p.log() - REFERENCE[0])).sum()) for p in (best, *path)]
    assert kls == sorted(kls)
    assert kls[-1] > 2 * kls[0]  # past the optimum, with no end
    falls = [float((b[0] / a[0]).log()) for a, b in itertools.pairwise(path)]
    assert falls[1] < 2 * falls[0] < 0  # ever faster


def test_abs_as_a_loss_stays_at_the_reference_until_the_reward_outweighs_it() -> None:
    # |∂| of β·|D| is at most β on each side: rewards that differ by less than 2β move nothing far
    small = follow(BANDIT, REFERENCE, 0.1 * REWARDS, "abs", rate=1e-3, steps=400)
    assert small.tolist() == pytest.approx(REFERENCE.exp()[0].tolist(), rel=5e-3)


# --- More than one token ------------------------------------------------------------------------

TREE = lab.tree(3, 2)
TREE_REFERENCE = TREE.table(5)
TREE_REWARDS = TREE.rewards(6)
TREE_OPTIMUM = TREE.probability(TREE_REFERENCE).log() + TREE_REWARDS / BETA


@pytest.mark.parametrize(
    ("kl", "placement"), [("k1", "reward"), ("k1", "reward_to_go"), ("sequence_k2", "loss")]
)
def test_sequences_reach_the_optimum(kl: str, placement: str) -> None:
    """p* ∝ q·e^{R/β} over whole completions, of one token and of two."""
    found = follow(TREE, TREE_REFERENCE, TREE_REWARDS, kl, placement)
    assert found.tolist() == pytest.approx(TREE_OPTIMUM.softmax(0).tolist(), rel=1e-6)


@pytest.mark.parametrize("kl", ["k2", "full", "straight_through", "weighted_k2", "weighted_k3"])
def test_token_by_token_they_do_not(kl: str) -> None:
    """The first token does not pay for the KL of the second."""
    found = follow(TREE, TREE_REFERENCE, TREE_REWARDS, kl)
    assert float((found - TREE_OPTIMUM.softmax(0)).abs().max()) > 0.01
    # The second token's state has its own optimum; the first token's is that of the value without
    # the KL to come: the same for every one of these estimators.
    log_q = TREE_REFERENCE.log_softmax(-1)
    rewards = TREE_REWARDS.reshape(-1)
    names = [tuple(i[m].tolist()) for i, m in zip(TREE.ids, TREE.mask, strict=True)]
    reward = dict(zip(names, rewards.tolist(), strict=True))
    value = torch.tensor([reward[(0,)], 0.0, 0.0], dtype=lab.F64)
    for token in (1, 2):
        state = int(TREE.place[names.index((token, 0)), 1])
        after = torch.tensor([reward[(token, v)] for v in range(3)], dtype=lab.F64)
        value[token] = ((log_q[state] + after / BETA).softmax(-1) * after).sum()
    first = (log_q[0] + value / BETA).softmax(-1)
    starts = torch.tensor([n[0] for n in names])
    for token in range(3):
        assert float(found[starts == token].sum()) == pytest.approx(float(first[token]), rel=1e-6)
