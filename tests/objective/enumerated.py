"""Tabular policies whose completions can all be written down, so that expectations are sums.

A policy is a table of logits [S, V]: one row for each prefix that can be continued. Token 0 ends a
completion; at the limit it ends anyway. Tokens are drawn from a policy that is not differentiated:
the expected gradient weighs each completion's gradient with a fixed probability.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from grpolab.component import component
from grpolab.objective.loss import Objective
from grpolab.objective.masked import from_here_on
from grpolab.probe.exact.tree import F64, Tree, forest, tree

__all__ = ["F64", "Tree", "forest", "tree"]


def close(a: Tensor, b: Tensor, rtol: float = 1e-9) -> None:
    """Equal to `rtol` of the largest entry of b; both 0 counts as equal."""
    scale = float(b.detach().abs().max()) if b.numel() else 0.0
    torch.testing.assert_close(a, b, rtol=rtol, atol=rtol * max(scale, 1e-3))


def apart(a: Tensor, b: Tensor, by: float = 1e-3) -> None:
    """Different for certain: what distinguishes a claim from its rival."""
    assert float((a - b).detach().abs().max()) > by


def gradient(value: Tensor, *inputs: Tensor) -> Tensor:
    """The gradients of a scalar, flat."""
    if not value.requires_grad:
        return torch.cat([torch.zeros_like(x).flatten() for x in inputs])
    found = torch.autograd.grad(value, inputs, retain_graph=True, materialize_grads=True)
    return torch.cat([g.flatten() for g in found])


def groups(trees: Tree, size: int) -> Tensor:
    """[B, P·size] completions of every possible batch of one group per prompt, prompt-major."""
    members = [
        (trees.prompt == p).nonzero().flatten().tolist() for p in range(int(trees.prompt.max()) + 1)
    ]
    each = [list(itertools.product(m, repeat=size)) for m in members]
    return torch.tensor([sum(batch, ()) for batch in itertools.product(*each)])


# --- Truths: nothing of the objective in them ---------------------------------------------------


def expected_reward(tree: Tree, theta: Tensor, rewards: Tensor) -> Tensor:
    return (tree.probability(theta) * rewards).sum()


def sequence_kl(tree: Tree, theta: Tensor, ref: Tensor) -> Tensor:
    """Σ over completions of p·ln(p/q)."""
    p, q = tree.probability(theta), tree.probability(ref)
    return (p * (p / q).log()).sum()


def state_kls(theta: Tensor, ref: Tensor) -> Tensor:
    """[S] reverse KL of each state's distribution."""
    p, q = theta.log_softmax(-1), ref.log_softmax(-1)
    return (p.exp() * (p - q)).sum(-1)


def reverse_by_state(tree: Tree, theta: Tensor, ref: Tensor, drawn: Tensor) -> Tensor:
    """Σ_s visits(s)·KL_s(π‖π_ref), the visits those of the policy that drew, and fixed."""
    return (tree.visits(drawn).detach() * state_kls(theta, ref)).sum()


def forward_by_state(tree: Tree, theta: Tensor, ref: Tensor, drawn: Tensor) -> Tensor:
    """The same of KL_s(π_ref‖π)."""
    return (tree.visits(drawn).detach() * state_kls(ref, theta)).sum()


# --- What the components do ---------------------------------------------------------------------


def estimate(
    tree: Tree, name: str, theta: Tensor, ref: Tensor, old: Tensor, **settings: Any
) -> Tensor:
    """[M, T]"""
    value: Tensor = component("kl", name, **settings)(
        tree.logps(theta),
        tree.logps(ref),
        tree.mask,
        old_logps=tree.logps(old),
        logits=tree.logits(theta),
        ref_logits=tree.logits(ref),
    )
    return value


def step(
    tree: Tree,
    theta: Tensor,
    old: Tensor,
    ref: Tensor,
    rewards: Tensor,
    kl: str,
    placement: str = "loss",
    *,
    beta: float,
    clip: str = "none",
    **settings: Any,
) -> Tensor:
    """The expected gradient of the loss, as an update makes it of tokens that `old` drew."""
    size = {"group_size": 1, "max_length": 9}
    penalty = None
    if placement != "loss":
        value = beta * estimate(tree, kl, old, ref, old, **settings).detach()
        if placement == "reward":
            rewards = rewards - value.sum(dim=1)
        else:
            penalty = from_here_on(value, tree.mask)
    advantages = component("advantage", "raw")(
        rewards.unsqueeze(1), mask=tree.mask, penalty=penalty
    )
    losses = Objective(
        component("clip", clip),
        component("kl", kl, **({} if kl == "none" else {"placement": placement}), **settings),
        component("correction", "none"),
    )(
        tree.logps(theta),
        tree.logps(old),
        advantages,
        tree.mask,
        beta=beta,
        ref_logps=tree.logps(ref),
        logits=tree.logits(theta),
        ref_logits=tree.logits(ref),
    )
    weight = component("aggregation", "seq_mean_token_sum").weights(tree.mask[:1], **size)
    drawn = tree.probability(old).detach().unsqueeze(1)
    return gradient((drawn * weight * losses.total).sum(), theta)
