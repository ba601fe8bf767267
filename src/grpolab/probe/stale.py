"""The same rollouts after further updates: who makes them, and what is measured of the ratios.

The first arm makes the updates: on the batch itself, as `updates_per_batch` has it, or on fresh
batches, as in asynchronous training. One gradient to compare with is that of the same objective
with whole-sequence importance weights and no clip, −sg(Π_t r_t)·A·log p: unbiased for completions
drawn by the old policy, as long as its effective sample size says that there is anything left to
average. The other is that of completions drawn anew (`Again`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.objective.beta import Beta
from grpolab.objective.clip.base import Clip, never
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import safe_exp, valid
from grpolab.policy.policy import Policy
from grpolab.probe.arms import Arm
from grpolab.probe.rollouts import SharedCollector
from grpolab.probe.table import SharedForward
from grpolab.rollouts import Rollouts
from grpolab.sampling.base import Draw
from grpolab.tasks.base import Examples
from grpolab.training.collect import Collector
from grpolab.training.draw import sample_rollouts
from grpolab.training.update import Updater


@dataclass(frozen=True)
class Unbiased(Clip):
    """−sg(exp(Σ_t d_t))·A·log p."""

    name: ClassVar[str] = "unbiased"
    needs_advantage: ClassVar[bool] = True

    def formula(self, x: Tokens, plan: Plan) -> tuple[Tensor, Tensor, Tensor]:
        weight = safe_exp(x.d.detach().sum(dim=1, keepdim=True))
        return -weight * x.advantages * x.logps, never(x.logps), never(x.logps)


UNBIASED = "unbiased"


def unbiased_of(arm: Arm) -> Arm:
    """The arm with whole-sequence weights in place of its policy loss."""
    return Arm(UNBIASED, replace(arm.run, clip=Unbiased(), raw=arm.run.raw))


class Learner:
    """The first arm's updates on the batch itself."""

    def __init__(self, arm: Arm, policy: Policy, reference: Any) -> None:
        self.run = arm.run
        self.updater = Updater(_without_reference(arm.run), policy)
        self.updater.run = arm.run
        self.updater.objective = replace(self.updater.objective, kl=arm.run.kl)
        self.updater.forward = SharedForward(arm.run, policy, reference)
        self.done = 0

    def to(self, updates: int, rollouts: Rollouts, step: int, beta: float) -> None:
        """Learns on until so many updates are made."""
        left = updates - self.done
        if left > 0:
            self.updater.run = replace(self.run, updates_per_batch=left, minibatches=1)
            self.updater.update(rollouts, self.within(step), beta)
            self.done = updates

    def within(self, step: int) -> int:
        """A step that the schedule of the learning rate knows: of a run that is over, the last."""
        return min(step, self.run.steps - 1)


class FreshLearner(Learner):
    """The first arm's training steps on fresh prompts and completions, each on-policy at its
    beginning: the batch that is looked at then lags behind, as an asynchronous sampler's does."""

    def __init__(
        self, arm: Arm, policy: Policy, reference: Any, examples: Examples, baseline: float | None
    ) -> None:
        super().__init__(arm, policy, reference)
        self.collector = Collector(arm.run, policy, examples)
        self.beta, self.baseline = Beta(arm.run.kl, arm.run.steps), baseline

    def to(self, updates: int, rollouts: Rollouts, step: int, beta: float) -> None:
        while self.done < updates:
            self.done += 1
            now = step + self.done
            fresh = self.collector.collect(now).rollouts
            if fresh.groups:  # a step that a selection leaves empty moves nothing
                weight = self.beta.at(self.within(now))
                self.updater.score_logps(fresh, weight)
                fresh.advantages = self.updater.advantages(fresh, self.baseline)
                self.updater.update(fresh, self.within(now), weight)


class Again(SharedCollector):
    """Other completions of the same prompts, scored."""

    def again(self, indices: Sequence[int], key: tuple[int, ...]) -> Rollouts:
        """One batch: a group for each of some training examples, of a random stream of its own."""
        draw = Draw(self.run.seed, key, self.run.sampler.group_size)
        prompts = [self._encoded[i] for i in indices]
        rollouts = sample_rollouts(self.run.sampler, self.policy, prompts, draw)
        rollouts.prompt_index = torch.tensor(list(indices), device=self.policy.device)
        self._score(rollouts, self._reward_noise(len(indices), *key))
        return rollouts


def _without_reference(run: Run) -> Run:
    """The run as one that keeps no second copy of the weights."""
    from grpolab.component import component

    return replace(run, kl=component("kl", "none"))


def sequence_ess(logps: Tensor, old_logps: Tensor, mask: Tensor) -> float:
    """Effective sample size of the whole-sequence weights, as a share of the completions."""
    d = valid(logps - old_logps, mask).double().sum(dim=1)
    w = torch.exp(d - d.max())
    return float(w.sum().square() / w.square().sum() / len(w))


BINS = 60


def ratio_histogram(found: dict[int, tuple[Tensor, Tensor]]) -> pd.DataFrame:
    """ratios.csv: how log-ratios are distributed after some updates.

    Args:
        found: updates → (log-ratios d [N, T] of the tokens, mask [N, T]).

    Returns:
        columns updates, level (token: d; sequence: Σ_t d), low, high, share (of the tokens or
        completions with low ≤ log-ratio < high; the outermost bins take what lies beyond them).
    """
    frames = []
    for level in ("token", "sequence"):
        values = {k: _at_level(d, mask, level) for k, (d, mask) in found.items()}
        whole = torch.cat(list(values.values()))
        low, high = torch.quantile(whole, torch.tensor([0.005, 0.995], dtype=torch.float64))
        room = max(float(high - low), 1e-3) / BINS
        edges = torch.linspace(float(low) - room, float(high) + room, BINS + 1, dtype=torch.float64)
        for updates, own in values.items():
            inside = own.clamp(float(edges[0]), float(edges[-1]))
            counts = torch.histogram(inside, bins=edges).hist
            frames.append(
                pd.DataFrame(
                    {"updates": updates, "level": level, "low": edges[:-1].numpy(),
                     "high": edges[1:].numpy(), "share": (counts / len(own)).numpy()}
                )
            )  # fmt: skip
    return pd.concat(frames, ignore_index=True)


def _at_level(d: Tensor, mask: Tensor, level: str) -> Tensor:
    """[n] log-ratios, float64 on the CPU."""
    d, mask = d.double().cpu(), mask.cpu()
    return d[mask] if level == "token" else valid(d, mask).sum(dim=1)
