"""β over a run: the schedules of `kl.schedule`."""

from __future__ import annotations

import math

from grpolab.objective.kl import KL, ReferenceKL

DEFAULT_TARGET = 0.1  # KL per token; verl's default
DEFAULT_HORIZON = 10_000  # completions; Ziegler et al., 1909.08593


class Beta:
    """The weight of the KL at each step; the adaptive schedule keeps its state here.

    constant: β. linear, cosine: from β to `beta_final` over the run. adaptive (Ziegler et al.,
    arXiv 1909.08593): β ← β · (1 + clip(KL/target − 1, ±0.2) · n/horizon) after each step of n
    completions, wherever the KL stands; its number is k1's, k2's or k3's where that is the
    estimator, and k3's for all others. `warmup_steps` multiplies any of them by a ramp from 0.

    verl has the adaptive one for a KL in the reward (target 0.1, horizon 10000), OpenRLHF for
    either; TRL's β is constant.
    """

    def __init__(self, kl: KL, steps: int) -> None:
        self.kl = kl if isinstance(kl, ReferenceKL) else None
        self.steps = steps
        self.adaptive = self.kl.beta if self.kl else 0.0

    def at(self, step: int) -> float:
        """β at a step, counted from 0."""
        if self.kl is None:
            return 0.0
        ramp = min(1.0, (step + 1) / (self.kl.warmup_steps + 1))
        return ramp * self._scheduled(self.kl, step)

    def _scheduled(self, kl: ReferenceKL, step: int) -> float:
        if kl.schedule == "adaptive":
            return self.adaptive
        if kl.schedule == "constant":
            return kl.beta
        done = min(1.0, step / max(1, self.steps - 1))
        share = 1 - done if kl.schedule == "linear" else 0.5 * (1 + math.cos(math.pi * done))
        final = kl.beta_final or 0.0
        return final + (kl.beta - final) * share

    def observe(self, measured: float, completions: int) -> None:
        """Tells the adaptive schedule the KL per token of a step of so many completions."""
        if self.kl is None or self.kl.schedule != "adaptive" or not math.isfinite(measured):
            return
        target = self.kl.target or DEFAULT_TARGET
        horizon = self.kl.horizon or DEFAULT_HORIZON
        error = min(0.2, max(-0.2, measured / target - 1))
        # A batch beyond the horizon counts as one horizon: β would turn negative otherwise
        self.adaptive *= 1 + error * min(1.0, completions / horizon)
