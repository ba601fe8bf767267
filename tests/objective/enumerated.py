"""Tabular policies whose completions can all be written down, so that expectations are sums.

A policy is a table of logits [S, V]: one row for each prefix that can be continued. Token 0 ends a
completion; at the limit it ends anyway. Tokens are drawn from a policy that is not differentiated:
the expected gradient weighs each completion's gradient with a fixed probability.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from grpolab.component import component
from grpolab.objective.loss import Objective
from grpolab.objective.masked import from_here_on

F64 = torch.float64


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


@dataclass(frozen=True)
class Tree:
    """All M completions of one prompt, or of several: [M, T] each, padded on the right."""

    ids: Tensor
    place: Tensor
    """The row of the table that each token is drawn from."""
    mask: Tensor
    prompt: Tensor
    """[M]"""
    states: int
    vocabulary: int

    def table(self, seed: int, spread: float = 1.0) -> Tensor:
        """Random logits [S, V]."""
        source = torch.Generator().manual_seed(seed)
        return spread * torch.randn(self.states, self.vocabulary, dtype=F64, generator=source)

    def logps(self, table: Tensor) -> Tensor:
        """[M, T] of the tokens; masked positions hold those of an unrelated token."""
        return table.log_softmax(-1)[self.place, self.ids]

    def logits(self, table: Tensor) -> Tensor:
        """[M, T, V]"""
        return table[self.place]

    def probability(self, table: Tensor) -> Tensor:
        """[M] of each completion, given its prompt."""
        return torch.where(self.mask, self.logps(table), 0.0).sum(dim=1).exp()

    def rewards(self, seed: int) -> Tensor:
        """[M] random ones."""
        return torch.randn(len(self.ids), dtype=F64, generator=torch.Generator().manual_seed(seed))

    def visits(self, table: Tensor) -> Tensor:
        """[S] probability that a completion passes through each state."""
        share = self.probability(table).unsqueeze(1).expand_as(self.ids)[self.mask]
        empty = torch.zeros(self.states, self.vocabulary, dtype=F64)
        index = (self.place[self.mask], self.ids[self.mask])
        return empty.index_put(index, share, accumulate=True).sum(dim=1)

    def pull(self, weights: Tensor, table: Tensor) -> Tensor:
        """Σ weights·∇lp over the tokens, flat: ∇ log softmax = one-hot − π, written out."""
        weights = torch.where(self.mask, weights, 0.0)
        index = (self.place.flatten(), self.ids.flatten())
        empty = torch.zeros_like(table)
        hit = empty.index_put(index, weights.flatten(), accumulate=True)
        total = hit.sum(dim=1, keepdim=True)
        return (hit - total * table.softmax(-1)).flatten()


def tree(vocabulary: int, limit: int) -> Tree:
    """One prompt: completions of at most `limit` tokens."""
    return forest(vocabulary, [limit])


def forest(vocabulary: int, limits: list[int]) -> Tree:
    """Several prompts with a table of their own each, one below the other."""
    states: dict[tuple[int, ...], int] = {}
    done: list[tuple[int, list[tuple[int, ...]], list[int]]] = []

    def grow(prompt: int, limit: int, prefix: tuple[int, ...], path: list[tuple[int, ...]]) -> None:
        here = (prompt, *prefix)
        states.setdefault(here, len(states))
        for token in range(vocabulary):
            ended = token == 0 or len(prefix) + 1 == limit
            if ended:
                done.append((prompt, [*path, here], [*prefix, token]))
            else:
                grow(prompt, limit, (*prefix, token), [*path, here])

    for prompt, limit in enumerate(limits):
        grow(prompt, limit, (), [])
    width = max(limits)

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (width - len(values))

    lengths = torch.tensor([len(ids) for _, _, ids in done])
    return Tree(
        ids=torch.tensor([padded(ids) for _, _, ids in done]),
        place=torch.tensor([padded([states[s] for s in path]) for _, path, _ in done]),
        mask=torch.arange(width) < lengths.unsqueeze(1),
        prompt=torch.tensor([prompt for prompt, _, _ in done]),
        states=len(states),
        vocabulary=vocabulary,
    )


def groups(trees: Tree, size: int) -> Tensor:
    """[B, P·size] completions of every possible batch of one group per prompt, prompt-major."""
    members = [
        (trees.prompt == p).nonzero().flatten().tolist() for p in range(int(trees.prompt.max()) + 1)
    ]
    each = [list(itertools.product(m, repeat=size)) for m in members]
    return torch.tensor([sum(batch, ()) for batch in itertools.product(*each)])


# --- Truths: nothing of the package in them ------------------------------------------------------


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
