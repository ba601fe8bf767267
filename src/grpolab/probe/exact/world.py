"""A small world: prompts, a policy, a reference and rewards, of which everything is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from grpolab.probe.exact.tree import F64, Tree, forest

ARMS = (0.4, 0.3, 0.15, 0.1, 0.05)
"""The reference of the bandit that fixed points are worked out for."""
REWARDS = (0.0, 0.2, 0.5, 0.8, 1.0)


@dataclass(frozen=True)
class World:
    """P prompts with all their completions, and what each policy and the reward make of them."""

    name: str
    tree: Tree
    policy: Tensor
    """[S, V] logits of the policy that is trained, at which gradients are taken."""
    old: Tensor
    """[S, V] of the policy that generated the batch."""
    reference: Tensor
    """[S, V]"""
    rewards: Tensor
    """[M]"""
    sampler: Tensor | None = None
    """[S, V] of what the batch was really drawn from; None: of `old`."""

    @property
    def drawn_from(self) -> Tensor:
        """[S, V] logits that completions are drawn from."""
        return self.old if self.sampler is None else self.sampler

    def objective(self, table: Tensor, beta: float) -> Tensor:
        """J = the prompts' mean of E[R] − β·KL(π‖π_ref), the KL that of whole completions."""
        p = self.tree.probability(table)  # [M]
        value = self.rewards
        if beta:
            value = value - beta * (p / self.tree.probability(self.reference)).log()
        return (p * value).sum() / self.tree.prompts

    def true_gradient(self, beta: float) -> Tensor:
        """[S·V] ∇J at the policy."""
        table = self.policy.detach().clone().requires_grad_()
        return torch.autograd.grad(self.objective(table, beta), table)[0].flatten()

    def mean_reward(self, table: Tensor) -> float:
        """E[R], over the prompts."""
        return float(self.objective(table, 0.0))

    def state_advantages(self, table: Tensor) -> Tensor:
        """[S, V] E[R | this token here] − E[R | this state]: the natural gradient of E[R]."""
        table = table.detach().clone().requires_grad_()
        pull = torch.autograd.grad(self.tree.prompts * self.objective(table, 0.0), table)[0]
        p = table.detach().softmax(-1)
        return pull / (self.tree.visits(table.detach()).unsqueeze(1) * p)

    def stale(self, by: float) -> World:
        """The same trained policy, on a batch of an older one.

        The policy has since moved in the direction of the natural gradient of E[R], the way an
        update is meant to move it; the logit that moved most did so by `by`. The direction does not
        depend on the batch: what is left out is that a real update follows its own batch's noise.
        """
        if by == 0:
            return replace(self, old=self.policy)
        direction = self.state_advantages(self.policy)
        return replace(self, old=self.policy - by * direction / direction.abs().max())

    def mismatched(self, by: float, seed: int = 0) -> World:
        """The same policies, on a batch of a sampler that is not quite the old policy, as that of
        another engine or precision: normal noise of standard deviation `by` on each logit."""
        if by == 0:
            return replace(self, sampler=None)
        return replace(self, sampler=self.old + self.tree.table(3000 + seed, by))


def bandit(
    arms: int = 5,
    prompts: int = 1,
    *,
    rewards: Sequence[float] | str | None = None,
    reference: Sequence[float] | None = None,
    drift: float = 0.5,
    seed: int = 0,
) -> World:
    """K arms: completions of one token.

    Args:
        arms: K.
        prompts: P, each with a policy of its own, all with the same reference and rewards if those
            are given.
        rewards: [K]; "uniform" in [0, 1] or "binary" (0 or 1, never all the same), drawn for each
            prompt; None: 0, .2, .5, .8, 1 for five arms, else uniform.
        reference: [K] probabilities; None: .4, .3, .15, .1, .05 for five arms, else random.
        drift: standard deviation of the normal noise that lies between the logits of the policy and
            of the reference.
        seed: of whatever is drawn.
    """
    tree = forest(arms, [1] * prompts, ends=False)
    known = arms == len(ARMS)
    base: Tensor = tree.table(seed)
    if reference is not None or known:
        chosen = torch.tensor(ARMS if reference is None else reference, dtype=F64)
        base = (chosen / chosen.sum()).log().expand(prompts, arms)
    if rewards is None:
        rewards = REWARDS if known else "uniform"
    return _world("bandit", tree, base, rewards, drift, seed)


def token_tree(
    vocabulary: int = 3,
    tokens: int = 2,
    prompts: int = 1,
    *,
    ends: bool = False,
    rewards: Sequence[float] | str | None = None,
    drift: float = 0.5,
    spread: float = 1.0,
    seed: int = 0,
) -> World:
    """T tokens over a vocabulary of V: all V^T completions.

    Args:
        vocabulary: V.
        tokens: T.
        prompts: P, each with tables of its own.
        ends: token 0 ends a completion, so that lengths differ from 1 to T.
        rewards: [M] or [M/P], or "uniform" in [0, 1], or "binary"; None: uniform.
        drift: as in `bandit`.
        spread: standard deviation of the reference's logits.
        seed: of whatever is drawn.
    """
    tree = forest(vocabulary, [tokens] * prompts, ends)
    base = tree.table(seed, spread)
    return _world("token_tree", tree, base, "uniform" if rewards is None else rewards, drift, seed)


def _world(
    name: str,
    tree: Tree,
    reference: Tensor,
    rewards: Sequence[float] | str,
    drift: float,
    seed: int,
) -> World:
    policy = reference + tree.table(1000 + seed, drift)
    return World(name, tree, policy, policy, reference, make_rewards(tree, rewards, seed))


def make_rewards(tree: Tree, rewards: Sequence[float] | str, seed: int) -> Tensor:
    """[M] rewards as given, repeated for each prompt where one prompt's are; or drawn."""
    each = len(tree.ids) // tree.prompts
    source = torch.Generator().manual_seed(2000 + seed)
    if not isinstance(rewards, str):
        given = torch.tensor(list(rewards), dtype=F64)
        if len(given) not in (each, len(tree.ids)):
            raise ValueError(f"rewards: {len(given)} given; allowed: {each}, one a completion.")
        return given.repeat(len(tree.ids) // len(given))
    drawn = torch.rand(tree.prompts, each, dtype=F64, generator=source)
    if rewards == "uniform":
        return drawn.flatten()
    # below its prompt's median or not: half of them right, so that no prompt is all right or wrong
    return (drawn > drawn.median(dim=1, keepdim=True).values).to(F64).flatten()
