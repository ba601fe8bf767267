"""From scored rollouts to new weights: micro-batches, the loss, the optimizer step."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpolab.config import Optimizer, Run
from grpolab.objective.loss import Objective, kl_estimates, ratio_sums
from grpolab.objective.masked import valid
from grpolab.policy.policy import Policy, TokenLogps
from grpolab.rollouts import Rollouts


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message is the reason in STATUS."""


@dataclass
class Sums:
    """Sums over valid tokens, on the device, until one transfer at the end of the step."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Adds a 0-d tensor to a sum."""
        value = value.detach().float()
        self.totals[name] = self.totals[name] + value if name in self.totals else value

    def keep_max(self, name: str, value: Tensor) -> None:
        """Keeps the larger of a 0-d tensor and the maximum so far."""
        value = value.detach().float()
        known = self.maxima.get(name)
        self.maxima[name] = value if known is None else torch.maximum(known, value)

    def fetch(self) -> dict[str, float]:
        """All of them as numbers, in one transfer."""
        named = {**self.totals, **self.maxima}
        if not named:
            return {}
        numbers = torch.stack(list(named.values())).tolist()
        return dict(zip(named, numbers, strict=True))


class Updater:
    """The trained policy, its reference, and the optimizer."""

    def __init__(self, run: Run, policy: Policy) -> None:
        self.run, self.policy = run, policy
        self.objective = Objective(run.clip, run.kl, run.correction)
        self.uses_reference = run.kl.needs_reference
        keeps_model = self.uses_reference and run.reference.needs_model
        self.reference: Any = policy.frozen_copy() if keeps_model else None
        self.parameters = policy.trainable()
        self.optimizer = make_optimizer(run.optimizer, list(self.parameters.values()))
        scales = policy.autocasts and policy.dtype == torch.float16
        self.scaler = torch.amp.GradScaler(policy.device.type, enabled=scales)
        self.skipped = 0

    @property
    def scores_before(self) -> bool:
        """Whether old log-probs are needed before the first update. With a single update per
        batch, they are the update's own, detached: a forward pass saved, and r = 1 exactly."""
        in_reward = self.uses_reference and not self.objective.kl_in_loss
        return self.run.updates_per_batch > 1 or in_reward or self.run.correction.needs_old_logps

    # -- before the update ---------------------------------------------------------------------

    @torch.no_grad()
    def score_logps(self, rollouts: Rollouts, beta: float) -> None:
        """Fills in old_logps and ref_logps where they are needed beforehand, and subtracts
        β·ΣKL from the rewards where the KL stands there."""
        if not self.scores_before:
            return
        old = torch.zeros(rollouts.mask.shape, device=rollouts.mask.device)
        ref, kl = torch.zeros_like(old), torch.zeros_like(old)
        for rows, width in self.microbatches(rollouts, torch.arange(len(rollouts))):
            part = self._part(rollouts, rows, width)
            now = self._forward(part)
            old[rows, :width] = now.logps.to(old)
            if self.uses_reference:
                base = self._reference(part, now.logps)
                ref[rows, :width] = base.logps.to(ref)
                kl[rows, :width] = self.run.kl(
                    now.logps,
                    base.logps,
                    part["mask"],
                    old_logps=now.logps,
                    logits=now.logits,
                    ref_logits=base.logits,
                ).to(kl)
        rollouts.old_logps = old
        rollouts.ref_logps = ref if self.uses_reference else None
        if self.uses_reference and not self.objective.kl_in_loss:
            assert rollouts.rewards is not None
            penalty = valid(kl, rollouts.mask).sum(dim=1).reshape(rollouts.rewards.shape)
            rollouts.rewards = rollouts.rewards - beta * penalty

    # -- the update ----------------------------------------------------------------------------

    def update(self, rollouts: Rollouts, step: int, beta: float) -> dict[str, float]:
        """All updates of a batch; the step's policy, clip, KL, loss and optimizer metrics."""
        run = self.run
        set_lr(self.optimizer, lr_at(run.optimizer, step, run.steps))
        sums, norms, done = Sums(), [], 0
        for groups in self.minibatches(rollouts.groups):
            if not len(groups):
                continue
            rows = (
                groups.unsqueeze(1) * run.sampler.group_size + torch.arange(run.sampler.group_size)
            ).flatten()
            own = Sums()
            self._backward(rollouts, rows, beta, own)
            norms.append(self._step())
            merge(sums, own)
            done += 1
            if self._passed_target(own):
                break
        return self._metrics(sums, norms, done)

    def minibatches(self, groups: int) -> Iterator[Tensor]:
        """Group indices of each update: `minibatches` contiguous parts, `epochs` times over."""
        for _ in range(self.run.epochs):
            yield from torch.arange(groups).tensor_split(self.run.minibatches)

    def _backward(self, rollouts: Rollouts, rows: Tensor, beta: float, sums: Sums) -> None:
        run = self.run
        mask = rollouts.mask[rows.to(rollouts.mask.device)]
        weights = run.aggregation.weights(
            mask, group_size=run.sampler.group_size, max_length=run.sampler.max_new_tokens
        )
        place = {int(row): i for i, row in enumerate(rows)}
        self.optimizer.zero_grad(set_to_none=True)
        for chosen, width in self.microbatches(rollouts, rows):
            part = self._part(rollouts, chosen, width)
            own = weights[torch.tensor([place[int(r)] for r in chosen], device=weights.device)]
            self._microbatch(part, own, beta, sums)

    def _microbatch(
        self, part: dict[str, Tensor], weights: Tensor, beta: float, sums: Sums
    ) -> None:
        mask = part["mask"]
        with torch.enable_grad():
            now = self._forward(part)
            old = part.get("old_logps", now.logps.detach())
            with torch.no_grad():
                base = self._reference(part, old) if self.uses_reference else None
            losses = self.objective(
                now.logps,
                old,
                part["advantages"],
                mask,
                beta=beta,
                ref_logps=None if base is None else base.logps,
                sampler_logps=part["sampler_logps"],
                logits=now.logits,
                ref_logits=None if base is None else base.logits,
            )
            weights = weights.to(losses.total.dtype)
            loss = (losses.total * weights).sum()
            scaled: Tensor = self.scaler.scale(loss)
            torch.autograd.backward([scaled])
        with torch.no_grad():
            sums.add("loss/policy", (losses.policy * weights).sum())
            sums.add("loss/kl", (losses.kl * weights).sum())
            sums.add("loss/total", loss)
            self._measure(now, old, base, part, losses.metrics, sums)

    def _measure(
        self,
        now: TokenLogps,
        old: Tensor,
        base: TokenLogps | None,
        part: dict[str, Tensor],
        clip_metrics: dict[str, Tensor],
        sums: Sums,
    ) -> None:
        mask = part["mask"]
        count = mask.sum()
        sums.add("tokens", count)
        sums.add("entropy", valid(now.entropy, mask).sum())
        for name, value in clip_metrics.items():
            sums.add(name, value * count)
        ratio = ratio_sums(now.logps, old, mask)
        sums.add("ratio_sum", ratio["sum"])
        sums.add("ratio_squares", ratio["squares"])
        sums.keep_max("policy/ratio_max", ratio["max"])
        sums.add("kl/old_k3", kl_estimates(now.logps, old, mask)["k3"])
        sampler = part["sampler_policy_logps"]
        sums.add("kl/sampler_k3", kl_estimates(old, sampler, mask)["k3"])
        contributing = mask & (part["advantages"] != 0)
        sums.add("contributing", contributing.sum())
        if base is not None:
            for name, value in kl_estimates(now.logps, base.logps, mask).items():
                sums.add(f"kl/ref_{name}", value)

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

    def _metrics(self, sums: Sums, norms: list[float], updates: int) -> dict[str, float]:
        numbers = sums.fetch()
        tokens = max(1.0, numbers.pop("tokens", 0.0))
        mean = numbers.pop("ratio_sum", 0.0) / tokens
        square = numbers.pop("ratio_squares", 0.0) / tokens
        metrics = {
            "policy/entropy": numbers.pop("entropy", 0.0) / tokens,
            "policy/ratio_mean": mean,
            "policy/ratio_std": math.sqrt(max(0.0, square - mean * mean)),
            "policy/ess": mean * mean / square if square else 0.0,
            "tokens/contributing_share": numbers.pop("contributing", 0.0) / tokens,
            "tokens/trained": tokens if numbers else 0.0,
            "optim/lr": self.optimizer.param_groups[0]["lr"],
            "optim/skipped": float(self.skipped),
            "optim/updates": float(updates),
        }
        if norms:
            finite = [n for n in norms if math.isfinite(n)]
            metrics["optim/grad_norm"] = sum(finite) / len(finite) if finite else math.nan
        for name, value in numbers.items():
            if name.startswith("loss/"):  # the mean over the updates that were made
                metrics[name] = value / updates
            else:
                metrics[name] = value if name == "policy/ratio_max" else value / tokens
        return metrics

    # -- forward passes ------------------------------------------------------------------------

    def microbatches(self, rollouts: Rollouts, rows: Tensor) -> Iterator[tuple[Tensor, int]]:
        """(rows, completion width): rows of like length, within the token budget."""
        lengths = rollouts.lengths.cpu()
        total = lengths + rollouts.prompt_lengths.cpu()
        chosen: list[int] = []
        longest = width = 0
        for row in sorted(rows.tolist(), key=lambda r: (int(total[r]), r)):
            size = int(total[row])
            if chosen and (len(chosen) + 1) * max(longest, size) > self._budget:
                yield torch.tensor(chosen), max(1, width)
                chosen, longest, width = [], 0, 0
            chosen.append(row)
            longest, width = max(longest, size), max(width, int(lengths[row]))
        if chosen:
            yield torch.tensor(chosen), max(1, width)

    @property
    def _budget(self) -> int:
        return self.run.hardware.tokens_per_microbatch

    def _part(self, rollouts: Rollouts, rows: Tensor, width: int) -> dict[str, Tensor]:
        """The tensors of some rows, completions cut to `width`."""
        rows = rows.to(rollouts.mask.device)
        prompt_lengths = rollouts.prompt_lengths[rows]
        part = {
            "prompt_ids": rollouts.prompt_ids[rows][:, : int(prompt_lengths.max())],
            "prompt_lengths": prompt_lengths,
        }
        for name in ("completion_ids", "mask", "sampler_logps", "sampler_policy_logps"):
            part[name] = getattr(rollouts, name)[rows, :width]
        for name in ("old_logps", "ref_logps"):
            if getattr(rollouts, name) is not None:
                part[name] = getattr(rollouts, name)[rows, :width]
        if rollouts.advantages is not None:
            advantages = rollouts.advantage_rows()[rows]
            part["advantages"] = advantages if advantages.shape[1] == 1 else advantages[:, :width]
        return part

    def _forward(self, part: dict[str, Tensor], model: Any = None) -> TokenLogps:
        return self.policy.token_logps(
            part["prompt_ids"],
            part["prompt_lengths"],
            part["completion_ids"],
            part["mask"],
            model=model,
            keep_logits=self.run.kl.needs_logits,
        )

    def _reference(self, part: dict[str, Tensor], old_logps: Tensor) -> TokenLogps:
        if not self.run.reference.needs_model:
            return TokenLogps(old_logps.detach(), old_logps.detach())
        if "ref_logps" in part and not self.run.kl.needs_logits:
            return TokenLogps(part["ref_logps"], part["ref_logps"])
        if self.reference is not None:
            return self._forward(part, self.reference)
        with self.policy.base_weights() as model:
            return self._forward(part, model)


def merge(into: Sums, other: Sums) -> None:
    """Adds one record of sums to another."""
    for name, value in other.totals.items():
        into.add(name, value)
    for name, value in other.maxima.items():
        into.keep_max(name, value)


def make_optimizer(settings: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW, fused where the device has it."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    return torch.optim.AdamW(
        parameters,
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
