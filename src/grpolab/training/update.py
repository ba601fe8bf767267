"""From scored rollouts to new weights: micro-batches, the loss, the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from grpolab.config import Optimizer, Run
from grpolab.objective.clip import Plan
from grpolab.objective.loss import Objective
from grpolab.objective.masked import from_here_on, valid
from grpolab.policy.policy import Policy
from grpolab.rng import generator
from grpolab.rollouts import Rollouts
from grpolab.training.clock import Clock
from grpolab.training.forward import Forward, cut
from grpolab.training.measure import Sums, measure, step_metrics


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message is the reason in STATUS."""


class Updater:
    """The trained policy, its reference, and the optimizer."""

    def __init__(self, run: Run, policy: Policy, clock: Clock | None = None) -> None:
        self.run, self.policy = run, policy
        self.clock = Clock() if clock is None else clock
        self.objective = Objective(run.clip, run.kl, run.correction)
        self.forward = Forward(run, policy)
        self.parameters = policy.trainable()
        self.optimizer = make_optimizer(run.optimizer, list(self.parameters.values()))
        scales = policy.autocasts and policy.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=scales)
        self.skipped = 0

    @property
    def kl_in_reward(self) -> bool:
        """Whether the KL enters through the rewards."""
        return self.forward.uses_reference and not self.objective.kl_in_loss

    @property
    def scores_before(self) -> bool:
        """Whether old log-probs are needed before the first update. With a single update per
        batch, they are the update's own, detached: a forward pass saved, and r = 1 exactly."""
        reads = self.run.advantage.needs_distribution or self.run.selection.replays
        return self.run.updates_per_batch > 1 or self.kl_in_reward or reads

    # -- before the update ---------------------------------------------------------------------

    @torch.no_grad()
    def score_logps(self, rollouts: Rollouts, beta: float) -> None:
        """Fills in old_logps, ref_logps, collision and the KL's penalty where they are needed
        beforehand. The old log-probs and collision that a replayed group brought along stay: they
        are those of the policy that generated it. The reference is asked anew for all."""
        if not self.scores_before:
            return
        needs_collision = self.run.advantage.needs_distribution
        now_all = self._empty(rollouts.mask)
        ref, kl, collision = (torch.zeros_like(now_all) for _ in range(3))
        fresh = rollouts.ages.repeat_interleave(rollouts.group_size).unsqueeze(1) == 0  # [N, 1]
        for rows, width in self.forward.microbatches(rollouts, torch.arange(len(rollouts))):
            part = self.forward.part(rollouts, rows, width)
            now = self.forward.logps(part, collision=needs_collision)
            now_all[rows, :width] = now.logps.to(now_all)
            if now.collision is not None:
                collision[rows, :width] = now.collision.to(collision)
            if self.forward.uses_reference:
                old = unless_known(now.logps, part.get("old_logps"), fresh[rows])
                base = self.forward.reference_logps(part, old)
                ref[rows, :width] = base.logps.to(ref)
                if self.kl_in_reward:
                    kl[rows, :width] = self.run.kl(
                        now.kl_logps,
                        base.logps,
                        part["mask"],
                        old_logps=now.logps,
                        logits=now.logits,
                        ref_logits=base.logits,
                    ).to(kl)
        rollouts.old_logps = unless_known(now_all, rollouts.old_logps, fresh)
        rollouts.ref_logps = ref if self.forward.uses_reference else None
        found = unless_known(collision, rollouts.collision, fresh)
        rollouts.collision = found if needs_collision else None
        if self.kl_in_reward:
            entered = rollouts.mask if beta else torch.zeros_like(rollouts.mask)
            rollouts.kl_penalty = beta * valid(kl, entered)  # 0 · inf would be NaN

    def advantages(self, rollouts: Rollouts, baseline: float | None) -> Tensor:
        """The advantages of scored rollouts, with the KL where it stands in the reward."""
        rewards, to_go = self.returns(rollouts)
        found: Tensor = self.run.advantage(
            rewards,
            lengths=rollouts.lengths.reshape(rewards.shape),
            parts=rollouts.reward_parts,
            part_weights=getattr(self.run.reward, "weights", None),
            mask=rollouts.mask,
            penalty=to_go,
            greedy=rollouts.greedy_rewards,
            baseline=baseline,
            logps=rollouts.old_logps,
            collision=rollouts.collision,
        )
        return found

    def returns(self, rollouts: Rollouts) -> tuple[Tensor, Tensor | None]:
        """(rewards [P, G], less β·ΣKL with placement reward; β·KL still to come at each token
        [N, T] with placement reward_to_go)."""
        assert rollouts.rewards is not None
        if rollouts.kl_penalty is None:
            return rollouts.rewards, None
        if self.run.kl.placement == "reward_to_go":
            return rollouts.rewards, from_here_on(rollouts.kl_penalty, rollouts.mask)
        penalty = rollouts.kl_penalty.sum(dim=1).reshape(rollouts.rewards.shape)
        return rollouts.rewards - penalty, None

    def _empty(self, mask: Tensor) -> Tensor:
        dtype = torch.promote_types(self.policy.dtype, torch.float32)
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device)

    # -- the update ----------------------------------------------------------------------------

    def update(self, rollouts: Rollouts, step: int, beta: float) -> dict[str, float]:
        """All updates of a batch; the step's policy, clip, KL, loss and optimizer metrics."""
        run, group = self.run, rollouts.group_size
        set_lr(self.optimizer, lr_at(run.optimizer, step, run.steps))
        rollouts = replace(rollouts, mask=run.clip.trained(rollouts.mask, rollouts.truncated))
        sums, norms, done = Sums(), [], 0
        for groups in self.minibatches(rollouts.groups):
            if not len(groups):
                continue
            rows = (groups.unsqueeze(1) * group + torch.arange(group)).flatten()
            own = Sums()
            self._backward(rollouts, rows, beta, own, noise=(step, done))
            with self.clock("optimizer"):
                norms.append(self._step())
            sums.merge(own)
            done += 1
            if self._passed_target(own):
                break
        return step_metrics(sums, norms, done) | {
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "optim/skipped": float(self.skipped),
        }

    def minibatches(self, groups: int) -> Iterator[Tensor]:
        """Group indices of each update: `minibatches` contiguous parts, `epochs` times over."""
        for _ in range(self.run.epochs):
            yield from torch.arange(groups).tensor_split(self.run.minibatches)

    def _backward(
        self,
        rollouts: Rollouts,
        rows: Tensor,
        beta: float,
        sums: Sums,
        noise: tuple[int, int] = (0, 0),
    ) -> None:
        run = self.run
        mask = rollouts.mask[rows.to(rollouts.mask.device)]
        weights = run.aggregation.weights(
            mask, group_size=rollouts.group_size, max_length=run.sampler.max_new_tokens
        )
        with self.clock("logps"):
            plan = self._plan(rollouts, rows, noise) if run.clip.needs_plan else None
        self.optimizer.zero_grad(set_to_none=True)
        with self.clock("backward"):
            for part, own, width in self._parts(rollouts, rows):
                mine = None if plan is None else {k: cut(v[own], width) for k, v in plan.items()}
                self._microbatch(part, weights[own], mine, beta, sums)

    def _parts(
        self, rollouts: Rollouts, rows: Tensor
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, int]]:
        """(tensors, places among `rows`, completion width) of each micro-batch of some rows."""
        place = {int(row): i for i, row in enumerate(rows)}
        for chosen, width in self.forward.microbatches(rollouts, rows):
            own = torch.tensor([place[int(r)] for r in chosen], device=rollouts.mask.device)
            yield self.forward.part(rollouts, chosen, width), own, width

    @torch.no_grad()
    def _plan(self, rollouts: Rollouts, rows: Tensor, noise: tuple[int, int]) -> Plan:
        """What a clip wants to know of a whole optimizer step, from a forward pass over it."""
        index = rows.to(rollouts.mask.device)
        mask = rollouts.mask[index]
        logps = self._empty(mask)
        entropy = torch.zeros_like(logps)
        for part, own, width in self._parts(rollouts, rows):
            now = self.forward.logps(part)
            logps[own, :width] = now.logps.to(logps)
            entropy[own, :width] = now.entropy.to(entropy)
        old = logps if rollouts.old_logps is None else rollouts.old_logps[index]
        source = generator(self.run.seed, "selection", *noise, 1)
        assert rollouts.rewards is not None
        plan: Plan = self.run.clip.plan(
            logps,
            old,
            rollouts.advantage_rows()[index],
            mask,
            rewards=rollouts.rewards.reshape(-1, 1)[index],
            entropy=entropy,
            truncated=rollouts.truncated[index].unsqueeze(1),
            noise=torch.rand(mask.shape, generator=source).to(mask.device),
        )
        return plan

    def _microbatch(
        self, part: dict[str, Tensor], weights: Tensor, plan: Plan | None, beta: float, sums: Sums
    ) -> None:
        mask = part["mask"]
        with torch.enable_grad():
            now = self.forward.logps(part)
            old = part.get("old_logps", now.logps.detach())
            base = None
            if self.forward.uses_reference:
                with torch.no_grad():
                    base = self.forward.reference_logps(part, old)
            losses = self.objective(
                now.logps,
                old,
                part["advantages"],
                mask,
                beta=beta,
                kl_logps=now.kl_logps,
                ref_logps=None if base is None else base.logps,
                sampler_logps=part["sampler_logps"],
                logits=now.logits,
                ref_logits=None if base is None else base.logits,
                rewards=part["rewards"],
                entropy=now.entropy,
                truncated=part["truncated"],
                plan=plan,
            )
            weights = weights.to(losses.total.dtype)
            loss = (losses.total * weights).sum()
            scaled: Tensor = self.scaler.scale(loss)
            torch.autograd.backward([scaled])
        with torch.no_grad():
            sums.add("loss/policy", (losses.policy * weights).sum())
            sums.add("loss/kl", (losses.kl * weights).sum())
            sums.add("loss/total", loss)
            measure(
                sums,
                logps=now.logps,
                old_logps=old,
                entropy=now.entropy,
                advantages=part["advantages"],
                mask=mask,
                sampler_policy_logps=part["sampler_policy_logps"],
                ref=None if base is None else (now.kl_logps, base.logps),
                clip_metrics=losses.metrics,
            )

    def _step(self) -> float:
        """One optimizer step; the gradient's norm. A non-finite gradient skips it."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        norm = float(
            torch.nn.utils.clip_grad_norm_(
                self.parameters.values(), self.run.optimizer.max_grad_norm
            )
        )
        if math.isfinite(norm):
            self.scaler.step(self.optimizer)
            self.policy.sync()
        else:
            self.skipped += 1
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        if self.skipped > self.run.optimizer.max_skipped:
            raise TrainingFailed(
                f"{self.skipped} updates had a non-finite loss or gradient "
                f"(optimizer.max_skipped is {self.run.optimizer.max_skipped})"
            )
        return norm

    def _passed_target(self, sums: Sums) -> bool:
        target = getattr(self.run.kl, "target_kl", None)
        if target is None:
            return False
        measured = float(sums.totals["kl/old_k3"] / sums.totals["tokens"].clamp(min=1))
        return measured > float(target)


def unless_known(now: Tensor, known: Tensor | None, fresh: Tensor) -> Tensor:
    """`now` in fresh rows [N, 1]; in the others what is known from their own time."""
    return now if known is None else torch.where(fresh, now, known.to(now))


def make_optimizer(settings: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW, fused where the device has it."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    spares = settings.decay == "matrices"
    spared = [p for p in parameters if p.dim() < 2 and spares]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1 or not spares]}
    ]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def lr_at(settings: Optimizer, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
