"""Who π_ref is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.settings import setting


@dataclass(frozen=True)
class Reference:
    """Base: facts that decide what is loaded and run, and when the reference moves.

    Where no KL reads it (kl=none), no reference is kept, whichever is chosen.
    """

    group: ClassVar[str] = "reference"
    name: ClassVar[str]
    needs_model: ClassVar[bool] = False
    """A second copy of the weights is kept (or, with LoRA, the adapter switched off)."""
    exists: ClassVar[bool] = True

    @property
    def moves(self) -> bool:
        """`mix` is implemented: the second copy is no longer the start weights, and checkpoints
        keep it. LoRA has no second copy, so it is refused there."""
        return type(self).mix is not Reference.mix

    def mix(self, step: int) -> float | None:
        """The share of the policy's weights to blend into the reference's once `step` steps are
        done (counted from 1); None: the reference stays as it is."""
        return None


@dataclass(frozen=True)
class Frozen(Reference):
    """The start weights; with LoRA the adapter is switched off instead of a second model.

    verl, NeMo-RL, AReaL, ROLL; TRL's default.
    """

    name: ClassVar[str] = "frozen"
    needs_model: ClassVar[bool] = True


@dataclass(frozen=True)
class Old(Reference):
    """The policy that generated the batch: a proximal term, and the seed's reading of π_ref.

    With one update per batch the KL to it and its k2 and k3 gradients are zero. In the reward it
    is zero whatever the updates, and refused unless groups of earlier steps are replayed.
    """

    name: ClassVar[str] = "old"


@dataclass(frozen=True)
class Sync(Reference):
    """ref ← θ every so many steps: the reference follows in leaps.

    In between it is frozen; right after a leap the KL to it is 0. A step is a batch of rollouts,
    whatever its updates. slime: ref_update_interval; SkyRL: once an epoch. ProRL, arXiv
    2505.24864, resets it so, and the optimizer with it.
    """

    name: ClassVar[str] = "sync"
    needs_model: ClassVar[bool] = True

    every: int = setting(50, "steps between copies; beyond the run's steps it stays frozen", ge=1)

    def mix(self, step: int) -> float | None:
        return 1.0 if step % self.every == 0 else None


@dataclass(frozen=True)
class EMA(Reference):
    """ref ← α·θ + (1 − α)·ref every so many steps: the reference trails behind.

    Source: TR-DPO, arXiv 2404.09656. TRL: sync_ref_model with ref_model_mixup_alpha (.6) and
    ref_model_sync_steps (512, counted in optimizer updates; here in steps, which are batches of
    rollouts, whatever their updates); open-instruct: alpha .6, ref_policy_update_freq. α = 1 is
    reference=sync. Weights are blended in float32 at least and rounded to the reference's dtype.
    """

    name: ClassVar[str] = "ema"
    needs_model: ClassVar[bool] = True

    alpha: float = setting(0.6, "share of the policy's weights in each blend", gt=0, le=1)
    every: int = setting(512, "steps between blends; beyond the run's steps it stays frozen", ge=1)

    def mix(self, step: int) -> float | None:
        return self.alpha if step % self.every == 0 else None


@dataclass(frozen=True)
class NoReference(Reference):
    """No reference: any KL but none is refused."""

    name: ClassVar[str] = "none"
    exists: ClassVar[bool] = False
