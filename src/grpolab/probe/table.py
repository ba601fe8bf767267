"""Training's own objective over a table of log-probs instead of a model.

A loss depends on the weights through the completions' log-probs (and, for a few, the logits)
alone. An arm's update therefore runs here as training runs it, micro-batch, advantages, plan,
clip, KL and aggregation included, with the model's forward pass replaced by a table; what arrives
at the table's cells is ∂loss/∂log p of every token. A gradient is then one product with the
model's Jacobian, which all arms share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.objective.loss import Objective
from grpolab.policy.policy import Policy, TokenLogps
from grpolab.rollouts import Rollouts
from grpolab.training.clock import Clock
from grpolab.training.forward import Forward
from grpolab.training.memory import token_budget
from grpolab.training.optimizer import make_optimizer
from grpolab.training.ranks import ALONE
from grpolab.training.update import Updater

NO_LIMIT = 1 << 60


class SharedForward(Forward):
    """A forward pass with a reference that others use too."""

    def __init__(self, run: Run, policy: Policy, reference: Any) -> None:
        self.run, self.policy = run, policy
        self.uses_reference = run.kl.needs_reference
        keeps = self.uses_reference and run.reference.needs_model
        self.reference: Any = reference if keeps else None
        self.budget = token_budget(run.hardware, policy)


OUTPUTS = ("logps", "whole", "logits")
"""What a gradient can flow into."""


@dataclass
class Table:
    """What forward passes yield for the unique rows of a pool; [U, T], logits [U, T, V]."""

    now: dict[str, Tensor]
    """logps, entropy, collision; whole and logits where an arm needs them."""
    ref: dict[str, Tensor] = field(default_factory=dict)

    def outputs(self) -> list[str]:
        return [name for name in OUTPUTS if name in self.now]

    def logps_of(self, places: Tensor, width: int) -> Tensor:
        """[N, width] log-probs of some rows."""
        return self.now["logps"][places, :width]


class TableForward(SharedForward):
    """A forward pass that looks up its rows; leaves gather the gradient."""

    def __init__(self, run: Run, policy: Policy, table: Table, places: Tensor) -> None:
        super().__init__(run, policy, None)
        self.table, self.places, self.budget = table, places, NO_LIMIT
        self.leaves: list[tuple[Tensor, int, dict[str, Tensor]]] = []

    def part(self, rollouts: Rollouts, rows: Tensor, width: int) -> dict[str, Tensor]:
        return super().part(rollouts, rows, width) | {"rows": rows}

    def logps(
        self, part: dict[str, Tensor], model: Any = None, *, collision: bool = False
    ) -> TokenLogps:
        width = part["mask"].shape[1]
        found = {k: v[self.places[part["rows"]], :width] for k, v in self.table.now.items()}
        if torch.is_grad_enabled():
            leaves = {k: v.clone().requires_grad_() for k, v in found.items() if k in OUTPUTS}
            self.leaves.append((part["rows"], width, leaves))
            found |= leaves
        return TokenLogps(
            found["logps"],
            found["entropy"],
            found.get("logits"),
            found.get("collision") if collision else None,
            found.get("whole"),
        )

    def reference_logps(self, part: dict[str, Tensor], old_logps: Tensor) -> TokenLogps:
        if not self.run.reference.needs_model:
            return TokenLogps(old_logps.detach(), old_logps.detach())
        width = part["mask"].shape[1]
        found = {k: v[self.places[part["rows"]], :width] for k, v in self.table.ref.items()}
        return TokenLogps(found["logps"], found["logps"], found.get("logits"))


class Reader(Updater):
    """Training's updater over a table: the first update of a batch, without its step."""

    def __init__(self, run: Run, policy: Policy, forward: TableForward) -> None:
        self.run, self.policy, self.ranks = run, policy, ALONE
        self.clock = Clock()
        self.objective = Objective(run.clip, run.kl, run.correction)
        self.forward: TableForward = forward
        nothing = torch.nn.Parameter(torch.zeros(1))
        self.parameters = {"": nothing}
        self.optimizer = make_optimizer(run.optimizer, [nothing])
        self.scaler = torch.amp.GradScaler("cpu", enabled=False)
        self.skipped = 0

    def minibatches(self, groups: int) -> Iterator[Tensor]:
        yield next(super().minibatches(groups))

    def _step(self) -> float:
        return 0.0

    def read(
        self, rollouts: Rollouts, step: int, beta: float
    ) -> tuple[dict[str, Tensor], dict[str, float]]:
        """(∂loss/∂output of the first update, float64, by output that has one; the step's
        metrics)."""
        metrics = self.update(rollouts, step, beta)
        n, width = rollouts.mask.shape
        found: dict[str, Tensor] = {}
        for name in self.forward.table.outputs():
            tail = self.forward.table.now[name].shape[2:]
            slopes = [(r, w, leaves[name].grad) for r, w, leaves in self.forward.leaves]
            if name != "logps" and all(s is None or not bool(s.any()) for _, _, s in slopes):
                continue
            total = torch.zeros(n, width, *tail, dtype=torch.float64)
            for rows, own, slope in slopes:
                if slope is not None:
                    total[rows, :own] = slope.double().cpu()
            found[name] = total
        self.forward.leaves.clear()
        return found, metrics
