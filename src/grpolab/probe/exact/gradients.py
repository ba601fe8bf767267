"""The gradient of an arm on each of many batches, by the components that training uses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpolab.objective.masked import from_here_on
from grpolab.probe.exact.arms import Arm
from grpolab.probe.exact.batches import Batches
from grpolab.probe.exact.world import World

Key = tuple[Any, ...]


@dataclass
class Bench:
    """A world's batches, with what arms share of them: advantages, losses per token, weights.

    Steps as in training: the KL in the reward is measured at the policy that generated the batch,
    advantages follow from a batch alone, and so does a clip's plan.
    """

    world: World
    batches: Batches
    beta: float
    source: torch.Generator | None = None
    """Of the noise that a clip draws; where absent it makes a fixed draw of its own."""
    kept: dict[Key, Any] = field(default_factory=dict)
    noise: Tensor | None = None

    def __post_init__(self) -> None:
        if self.source is not None:
            shape = (*self.batches.rows.shape, self.world.tree.limit)
            self.noise = torch.rand(shape, generator=self.source, dtype=torch.float64)

    def gradients(self, arm: Arm) -> Tensor:
        """[B, S·V] the estimate of ∇J on each batch: minus the gradient of the loss."""
        size = len(self.batches.rows)
        weights = self.once(("weights", arm.aggregation), lambda: self.weights(arm))  # [B, N]
        pull = self.logit_gradients(arm) * weights.reshape(-1, 1, 1)  # [B·N, T, V]
        tree = self.world.tree
        batch = torch.arange(size).repeat_interleave(self.batches.rows.shape[1])
        place = batch.unsqueeze(1) * tree.states + tree.place[self.batches.flat]  # [B·N, T]
        empty = torch.zeros(size * tree.states, tree.vocabulary, dtype=pull.dtype)
        summed = empty.index_add(0, place.flatten(), pull.reshape(-1, tree.vocabulary))
        return -summed.reshape(size, -1)

    def logit_gradients(self, arm: Arm) -> Tensor:
        """[B·N, T, V] of the sum over each row's tokens of the loss: an aggregation's weights are
        per row, so that they can follow."""
        key = ("loss", arm.advantage, arm.clip, arm.kl, arm.placement, arm.correction)
        found: Tensor = self.once(key, lambda: self._logit_gradients(arm))
        return found

    def _logit_gradients(self, arm: Arm) -> Tensor:
        world, tree, flat = self.world, self.world.tree, self.batches.flat
        _, objective, _ = arm.parts
        mask, ids = tree.mask[flat], tree.ids[flat]
        logits = tree.logits(world.policy)[flat].detach().requires_grad_()  # [B·N, T, V]
        logps = logits.log_softmax(-1).gather(-1, ids.unsqueeze(-1)).squeeze(-1)
        rest = self.beside()
        losses = objective(
            logps,
            tree.logps(world.old)[flat],
            self.advantages(arm),
            mask,
            beta=self.beta,
            ref_logps=tree.logps(world.reference)[flat],
            sampler_logps=None if world.sampler is None else tree.logps(world.sampler)[flat],
            logits=logits,
            ref_logits=tree.logits(world.reference)[flat],
            plan=self.plan(arm, logps.detach(), rest) if objective.clip.needs_plan else None,
            **rest,
        )
        total = torch.where(mask, losses.total, 0.0).sum()
        if not total.requires_grad:
            return torch.zeros_like(logits)
        return torch.autograd.grad(total, logits)[0]

    def beside(self) -> dict[str, Tensor]:
        """What a clip may read beside log-probs: rewards [B·N, 1], entropy [B·N, T], truncated."""
        tree, flat = self.world.tree, self.batches.flat
        p = tree.logits(self.world.policy).softmax(-1)
        entropy = -(p * p.log()).sum(-1)
        return {
            "rewards": self.world.rewards[flat].unsqueeze(1),
            "entropy": entropy[flat],
            "truncated": torch.zeros(len(flat), 1, dtype=torch.bool),
        }

    def plan(self, arm: Arm, logps: Tensor, rest: dict[str, Tensor]) -> dict[str, Tensor]:
        """A clip's plan, made of each batch alone: {key: [B·N, …]}."""
        key = ("plan", arm.clip, *self._advantage_key(arm))
        found: dict[str, Tensor] = self.once(key, lambda: self._plan(arm, logps, rest))
        return found

    def _plan(self, arm: Arm, logps: Tensor, rest: dict[str, Tensor]) -> dict[str, Tensor]:
        tree, flat, count = self.world.tree, self.batches.flat, self.batches.rows.shape[1]
        old, mask, advantages = (
            tree.logps(self.world.old)[flat],
            tree.mask[flat],
            self.advantages(arm),
        )
        _, objective, _ = arm.parts
        made = []
        for b in range(len(self.batches.rows)):
            own = slice(b * count, (b + 1) * count)
            noise = None if self.noise is None else self.noise[b]
            one = {k: v[own] for k, v in rest.items()}
            made.append(
                objective.clip.plan(
                    logps[own], old[own], advantages[own], mask[own], noise=noise, **one
                )
            )
        return {k: torch.cat([one[k] for one in made]) for k in made[0]}

    # -- rewards and advantages ----------------------------------------------------------------

    def kl_number(self, arm: Arm) -> Tensor:
        """[M, T] β·KL of each token at the old policy, where it stands in the reward."""
        tree, old, ref = self.world.tree, self.world.old, self.world.reference
        _, objective, _ = arm.parts
        found: Tensor = objective.kl(
            tree.logps(old),
            tree.logps(ref),
            tree.mask,
            old_logps=tree.logps(old),
            logits=tree.logits(old),
            ref_logits=tree.logits(ref),
        )
        return self.beta * torch.where(tree.mask, found, 0.0)

    def rewards(self, arm: Arm) -> Tensor:
        """[B, N], less β·ΣKL with the placement reward."""
        rewards = self.world.rewards
        if arm.placement == "reward" and self.beta:
            rewards = rewards - self.kl_number(arm).sum(dim=1)
        return rewards[self.batches.rows]

    def advantages(self, arm: Arm) -> Tensor:
        """[B·N, 1 or T] of every batch, each made of it alone."""
        key = ("advantage", *self._advantage_key(arm))
        found: Tensor = self.once(key, lambda: self._advantages(arm))
        return found

    def _advantage_key(self, arm: Arm) -> Key:
        in_reward = () if arm.placement == "loss" else (arm.kl, arm.placement)
        return (arm.advantage, *in_reward)

    def _advantages(self, arm: Arm) -> Tensor:
        tree, rows, size = self.world.tree, self.batches.rows, self.batches.group_size
        estimator, _, _ = arm.parts
        given = {"rewards": self.rewards(arm).reshape(len(rows), -1, size), "mask": tree.mask[rows]}
        given["lengths"] = given["mask"].sum(dim=-1).reshape(given["rewards"].shape)
        if arm.placement == "reward_to_go" and self.beta:
            given["penalty"] = from_here_on(self.kl_number(arm), tree.mask)[rows]
        if estimator.needs_distribution:
            old = tree.logits(self.world.old)
            given["logps"] = tree.logps(self.world.old)[rows]
            given["collision"] = old.softmax(-1).square().sum(-1)[rows]
        fixed: dict[str, Any] = {}
        if estimator.needs_greedy:
            fixed["greedy"] = self.world.rewards[tree.greedy(self.world.old)]
        if arm.advantage == "ema_baseline":  # what the average tends to
            fixed["baseline"] = self.world.mean_reward(self.world.old)
        found = each(lambda own: estimator(**own, **fixed), given)
        return found.reshape(rows.numel(), -1)

    # -- weights -------------------------------------------------------------------------------

    def weights(self, arm: Arm) -> Tensor:
        """[B, N] of the rows' tokens; batches of the same lengths have the same."""
        tree, size = self.world.tree, self.batches.group_size
        _, _, aggregation = arm.parts
        lengths = tree.mask.sum(dim=1)[self.batches.rows]  # [B, N]
        patterns, which = lengths.unique(  # type: ignore[no-untyped-call]
            dim=0, return_inverse=True
        )
        steps = torch.arange(tree.limit)
        found = [
            aggregation.weights(
                steps < own.unsqueeze(1), group_size=size, max_length=tree.limit
            ).flatten()
            for own in patterns
        ]
        return torch.stack(found)[which]

    def once(self, key: Key, make: Callable[[], Any]) -> Any:
        """What is kept under a key. Of gradients and plans, which are large, only the last is."""
        if key not in self.kept:
            if key[0] in ("loss", "plan"):
                self.kept = {k: v for k, v in self.kept.items() if k[0] != key[0]}
            self.kept[key] = make()
        return self.kept[key]


def each(formula: Callable[[dict[str, Tensor]], Tensor], given: dict[str, Tensor]) -> Tensor:
    """formula of each batch, stacked: in one go, or one by one where it looks into the values."""
    try:
        return torch.vmap(formula)(given)
    except RuntimeError:
        count = len(next(iter(given.values())))
        return torch.stack([formula({k: v[b] for k, v in given.items()}) for b in range(count)])
