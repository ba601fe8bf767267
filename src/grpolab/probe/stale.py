"""The same rollouts after further updates: what each surrogate's gradient is then.

The first arm makes the updates, on the batch itself, as `updates_per_batch` has it. The gradient
that is compared with is that of the same objective with whole-sequence importance weights and no
clip, −sg(Π_t r_t)·A·log p: unbiased for completions drawn by the old policy, as long as its
effective sample size says that there is anything left to average.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd
import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.objective.clip.base import Clip, never
from grpolab.objective.clip.tokens import Plan, Tokens
from grpolab.objective.masked import safe_exp, valid
from grpolab.policy.policy import Policy
from grpolab.probe.arms import Arm
from grpolab.probe.table import SharedForward
from grpolab.rollouts import Rollouts
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
    """The first arm's updates on a batch."""

    def __init__(self, arm: Arm, policy: Policy, reference: Any) -> None:
        self.updater = Updater(_without_reference(arm.run), policy)
        self.updater.run = arm.run
        self.updater.objective = replace(self.updater.objective, kl=arm.run.kl)
        self.updater.forward = SharedForward(arm.run, policy, reference)
        self.done = 0

    def to(self, updates: int, rollouts: Rollouts, step: int, beta: float) -> None:
        """Learns on until so many updates are made."""
        left = updates - self.done
        if left > 0:
            run = replace(self.updater.run, updates_per_batch=left, minibatches=1)
            self.updater.run = run
            self.updater.update(rollouts, step, beta)
            self.done = updates


def _without_reference(run: Run) -> Run:
    """The run as one that keeps no second copy of the weights."""
    from grpolab.component import component

    return replace(run, kl=component("kl", "none"))


def sequence_ess(logps: Tensor, old_logps: Tensor, mask: Tensor) -> float:
    """Effective sample size of the whole-sequence weights, as a share of the completions."""
    d = valid(logps - old_logps, mask).double().sum(dim=1)
    w = torch.exp(d - d.max())
    return float(w.sum().square() / w.square().sum() / len(w))


def frame(records: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """An arm after some updates a row."""
    return pd.DataFrame(list(records))
