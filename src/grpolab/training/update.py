"""From scored rollouts to new weights: micro-batches, the loss, the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.objective.clip import Plan
from grpolab.objective.loss import Objective
from grpolab.objective.masked import from_here_on, valid
from grpolab.policy.policy import Policy
from grpolab.policy.sharding import local
from grpolab.rng import generator
from grpolab.rollouts import Rollouts
from grpolab.training.clock import Clock
from grpolab.training.failures import TrainingFailed as TrainingFailed
from grpolab.training.forward import Forward, cut, learning, unless_known
from grpolab.training.measure import Sums, measure, step_metrics
from grpolab.training.optimizer import lr_at, make_optimizer, set_lr
from grpolab.training.ranks import ALONE, Ranks

Seen = dict[str, Tensor]
"""Log-probs [N, T] by their name in `Rollouts`."""


class Updater:
    """The trained policy, its reference, and the optimizer."""

    def __init__(
        self, run: Run, policy: Policy, clock: Clock | None = None, ranks: Ranks = ALONE
    ) -> None:
        self.run, self.policy, self.ranks = run, policy, ranks
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
        """Whether old log-probs are needed before the first update. Where that update reads the
        whole batch, they are its own, detached: a forward pass saved, and r = 1 exactly."""
        reads = self.run.advantage.needs_distribution or self.run.selection.replays
        return self.run.minibatches > 1 or self.kl_in_reward or reads

    # -- before the update ---------------------------------------------------------------------

    @torch.no_grad()
    def score_logps(self, rollouts: Rollouts, beta: float) -> None:
        """Fills in old_logps, ref_logps, collision and the KL's penalty where they are needed
        beforehand. The old log-probs and collision that a replayed group brought along stay: they
        are those of the policy that generated it. The reference is asked anew for all."""
        if not self.scores_before:
            return
        fresh = rollouts.ages.repeat_interleave(rollouts.group_size).unsqueeze(1) == 0  # [N, 1]
        scores = self.forward.halving(
            lambda: self._scores(rollouts, fresh), rollouts, "the passes before an update"
        )
        self.ranks.sum_(scores)
        now, ref, kl, collision = scores
        rollouts.old_logps = unless_known(now, rollouts.old_logps, fresh)
        rollouts.ref_logps = ref if self.forward.uses_reference else None
        found = unless_known(collision, rollouts.collision, fresh)
        rollouts.collision = found if self.run.advantage.needs_distribution else None
        if self.kl_in_reward:
            entered = rollouts.mask if beta else torch.zeros_like(rollouts.mask)
            rollouts.kl_penalty = beta * valid(kl, entered)  # 0 · inf would be NaN

    def _scores(self, rollouts: Rollouts, fresh: Tensor) -> list[Tensor]:
        """Log-probs, the reference's, the KL and the collision [N, T] of this rank's rows; 0 where
        they are not needed and in the other rows."""
        needs_collision = self.run.advantage.needs_distribution
        now_all = self._empty(rollouts.mask)
        ref, kl, collision = (torch.zeros_like(now_all) for _ in range(3))
        rows_here = torch.arange(len(rollouts))
        rows_here = rows_here[self._mine(rollouts, rows_here)]
        parts = list(self.forward.microbatches(rollouts, rows_here))
        idle = self._idle_passes(len(parts))
        for rows, width in parts:
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
        self.forward.keep_pace(idle, rollouts)
        return [now_all, ref, kl, collision]

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
            with self.clock("logps"):
                plan = self._plan(rollouts, rows, (step, done)) if run.clip.needs_plan else None
            with self.clock("backward"):
                own, seen = self.backward(rollouts, rows, beta, plan)
                if not self.policy.sharded:  # else the backward passes have done so
                    self.ranks.sum_gradients(self.parameters.values())
            own, seen = own.over(self.ranks), self._whole(seen, rollouts)
            if run.minibatches == 1:  # all rows, by the weights that generated them
                for name, values in seen.items():
                    setattr(rollouts, name, values)
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

    def backward(
        self, rollouts: Rollouts, rows: Tensor, beta: float, plan: Plan | None = None
    ) -> tuple[Sums, Seen]:
        """Puts the gradient of an optimizer step into the parameters' `grad`.

        Returns:
            what was measured, and the log-probs that were computed, by their name in `rollouts`.
        """

        def attempt() -> tuple[Sums, Seen]:
            self.optimizer.zero_grad(set_to_none=True)  # also what a failed attempt left behind
            return self._microbatches(rollouts, rows, beta, plan)

        return self.forward.halving(attempt, rollouts, "an update", learns=True)

    def _microbatches(
        self, rollouts: Rollouts, rows: Tensor, beta: float, plan: Plan | None
    ) -> tuple[Sums, Seen]:
        sums = Sums()
        seen: Seen = {}
        weights = self.run.aggregation.weights(
            rollouts.mask[rows.to(rollouts.mask.device)],
            group_size=rollouts.group_size,
            max_length=self.run.sampler.max_new_tokens,
        )
        by_kl = self.objective.kl_in_loss and bool(beta)
        learns = learning(rollouts, rows, always=by_kl or not self.run.clip.needs_advantage)
        mine = self._mine(rollouts, rows, learns)
        for wanted in (True, False):
            if wanted and not bool(learns.any()):
                continue
            parts = list(self._parts(rollouts, rows, mine & (learns == wanted)))
            idle = self._idle_passes(len(parts))
            for part, own, width in parts:
                plans = None if plan is None else {k: cut(v[own], width) for k, v in plan.items()}
                found = self._microbatch(part, weights[own], plans, beta, sums, learns=wanted)
                for name, values in found.items():
                    whole = seen.setdefault(name, self._empty(rollouts.mask))
                    whole[rows[own.cpu()], :width] = values.to(whole)
            self.forward.keep_pace(idle, rollouts, learns=wanted)
        if not bool(learns.any()):  # the optimizer's moments decay all the same
            for parameter in self.parameters.values():
                parameter.grad = torch.zeros_like(parameter)
        return sums, seen

    def _mine(self, rollouts: Rollouts, rows: Tensor, learns: Tensor | None = None) -> Tensor:
        """[n] those of some rows (whole groups) that this rank runs; about as many tokens as the
        others, those of a backward pass counted three times."""
        if self.ranks.alone:
            return torch.ones(len(rows), dtype=torch.bool)
        group = rollouts.group_size
        sizes = rollouts.lengths.cpu()[rows]
        sizes = sizes if learns is None else sizes * (1 + 2 * learns)
        own = torch.zeros(len(rows) // group, dtype=torch.bool)
        own[self.ranks.share(sizes.reshape(-1, group).sum(dim=1).tolist())] = True
        return own.repeat_interleave(group)

    def _whole(self, seen: Seen, rollouts: Rollouts) -> Seen:
        """The log-probs that each rank has seen of its own rows, of all rows."""
        if self.ranks.alone:
            return seen
        names = sorted({name for found in self.ranks.gather(sorted(seen)) for name in found})
        whole = {name: seen.get(name, self._empty(rollouts.mask)) for name in names}
        self.ranks.sum_(list(whole.values()))
        return whole

    def _parts(
        self, rollouts: Rollouts, rows: Tensor, wanted: Tensor | None = None
    ) -> Iterator[tuple[dict[str, Tensor], Tensor, int]]:
        """(tensors, places among `rows`, completion width) of each micro-batch of some rows: those
        `wanted` [n], by default all."""
        place = {int(row): i for i, row in enumerate(rows)}
        chosen_rows = rows if wanted is None else rows[wanted]
        for chosen, width in self.forward.microbatches(rollouts, chosen_rows):
            own = torch.tensor([place[int(r)] for r in chosen], device=rollouts.mask.device)
            yield self.forward.part(rollouts, chosen, width), own, width

    def _idle_passes(self, own: int) -> int:
        """How many passes fewer than another rank this one has to run, where that matters."""
        return max(self.ranks.gather(own)) - own if self.policy.sharded else 0

    @torch.no_grad()
    def _plan(self, rollouts: Rollouts, rows: Tensor, noise: tuple[int, int]) -> Plan:
        """What a clip wants to know of a whole optimizer step, from a forward pass over it."""
        index = rows.to(rollouts.mask.device)
        found = self.forward.halving(
            lambda: self._planned(rollouts, rows), rollouts, "the plan of an update"
        )
        self.ranks.sum_(found)
        logps, entropy = found
        old = logps if rollouts.old_logps is None else rollouts.old_logps[index]
        source = generator(self.run.seed, "selection", *noise, 1)
        assert rollouts.rewards is not None
        plan: Plan = self.run.clip.plan(
            logps,
            old,
            rollouts.advantage_rows()[index],
            rollouts.mask[index],
            rewards=rollouts.rewards.reshape(-1, 1)[index],
            entropy=entropy,
            truncated=rollouts.truncated[index].unsqueeze(1),
            noise=torch.rand(logps.shape, generator=source).to(logps.device),
        )
        return plan

    def _planned(self, rollouts: Rollouts, rows: Tensor) -> list[Tensor]:
        """Log-probs and entropy [n, T] of those of some rows that this rank runs; 0 elsewhere."""
        logps = self._empty(rollouts.mask[rows.to(rollouts.mask.device)])
        entropy = torch.zeros_like(logps)
        parts = list(self._parts(rollouts, rows, self._mine(rollouts, rows)))
        idle = self._idle_passes(len(parts))
        for part, own, width in parts:
            now = self.forward.logps(part)
            logps[own, :width] = now.logps.to(logps)
            entropy[own, :width] = now.entropy.to(entropy)
        self.forward.keep_pace(idle, rollouts, reference=False)
        return [logps, entropy]

    def _microbatch(
        self,
        part: dict[str, Tensor],
        weights: Tensor,
        plan: Plan | None,
        beta: float,
        sums: Sums,
        *,
        learns: bool = True,
    ) -> Seen:
        """Adds a micro-batch's gradient, where it has one, and its measurements; the log-probs that
        `rollouts` did not know yet."""
        mask = part["mask"]
        with torch.set_grad_enabled(learns):
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
            if learns:
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
        found = {"old_logps": old}
        if base is not None and self.run.reference.needs_model:
            found["ref_logps"] = base.logps
        return {name: values for name, values in found.items() if name not in part}

    def _step(self) -> float:
        """One optimizer step; the gradient's norm. A non-finite gradient skips it."""
        if self.scaler.is_enabled():
            self.scaler.unscale_(self.optimizer)
        limit = self.run.optimizer.max_grad_norm
        with self.ranks.transfer() if self.policy.sharded else nullcontext():
            found = torch.nn.utils.clip_grad_norm_(self.parameters.values(), limit)
        norm = float(local(found))  # of all parts, on every rank
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
