"""What is measured while a batch is learnt from: sums over tokens on the device, then metrics."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpolab.objective.loss import kl_estimates, ratio_sums
from grpolab.objective.masked import precise, valid
from grpolab.training.ranks import Ranks


@dataclass
class Sums:
    """Sums over valid tokens, on the device, until one transfer at the end of the step; as precise
    as what is added, and float32 at least."""

    totals: dict[str, Tensor] = field(default_factory=dict)
    maxima: dict[str, Tensor] = field(default_factory=dict)
    minima: dict[str, Tensor] = field(default_factory=dict)

    def add(self, name: str, value: Tensor) -> None:
        """Adds a 0-d tensor to a sum."""
        value = precise(value.detach())
        self.totals[name] = self.totals[name] + value if name in self.totals else value

    def keep_max(self, name: str, value: Tensor) -> None:
        """Keeps the larger of a 0-d tensor and the maximum so far."""
        value = precise(value.detach())
        known = self.maxima.get(name)
        self.maxima[name] = value if known is None else torch.maximum(known, value)

    def keep_min(self, name: str, value: Tensor) -> None:
        """Keeps the smaller of a 0-d tensor and the minimum so far."""
        value = precise(value.detach())
        known = self.minima.get(name)
        self.minima[name] = value if known is None else torch.minimum(known, value)

    def merge(self, other: Sums) -> None:
        """Adds another record of sums to this one."""
        for name, value in other.totals.items():
            self.add(name, value)
        for name, value in other.maxima.items():
            self.keep_max(name, value)
        for name, value in other.minima.items():
            self.keep_min(name, value)

    def over(self, ranks: Ranks) -> Sums:
        """Of all ranks together."""
        if ranks.alone:
            return self
        kinds = [{k: (float(v), v.dtype.itemsize) for k, v in d.items()} for d in self._kinds()]
        whole = Sums()
        for found in ranks.gather(kinds):
            whole.merge(Sums(*({k: as_sent(*v) for k, v in kind.items()} for kind in found)))
        return whole

    def _kinds(self) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
        return self.totals, self.maxima, self.minima

    def fetch(self) -> dict[str, float]:
        """All of them as numbers, in one transfer."""
        named = {**self.totals, **self.maxima, **self.minima}
        if not named:
            return {}
        numbers = torch.stack(list(named.values())).tolist()
        return dict(zip(named, numbers, strict=True))


def as_sent(value: float, size: int) -> Tensor:
    """Another rank's 0-d tensor of so many bytes."""
    return torch.tensor(value, dtype=torch.float64 if size == 8 else torch.float32)


def measure(
    sums: Sums,
    *,
    logps: Tensor,
    old_logps: Tensor,
    entropy: Tensor,
    advantages: Tensor,
    mask: Tensor,
    sampler_policy_logps: Tensor,
    ref: tuple[Tensor, Tensor] | None,
    clip_metrics: dict[str, Tensor],
) -> None:
    """Adds a micro-batch to the sums; all [n, T], detached here.

    Args:
        ref: the (trained, reference) log-probs whose KL is logged, where there is a reference.
        clip_metrics: of clip and correction: extremes where the name ends in min or max, else
            means over the valid tokens.
    """
    count = mask.sum()
    sums.add("tokens", count)
    sums.add("entropy", valid(entropy, mask).sum())
    for name, value in clip_metrics.items():
        if name.endswith(("/max", "_max")):
            sums.keep_max(name, value)
        elif name.endswith(("/min", "_min")):
            sums.keep_min(name, value)
        else:
            sums.add(name, value * count)
    ratio = ratio_sums(logps, old_logps, mask)  # float64 inside a micro-batch, whatever comes in
    wide = torch.promote_types(logps.dtype, torch.float32)
    sums.add("ratio_excess", ratio["excess"].to(wide))
    sums.add("ratio_squares", ratio["squares"].to(wide))
    sums.keep_max("policy/ratio_max", ratio["max"])
    sums.add("kl/old_k3", kl_estimates(logps, old_logps, mask)["k3"])
    sums.add("kl/sampler_k3", kl_estimates(old_logps, sampler_policy_logps, mask)["k3"])
    sums.add("contributing", (mask & (advantages != 0)).sum())
    if ref is not None:
        for name, value in kl_estimates(*ref, mask).items():
            sums.add(f"kl/ref_{name}", value)


def step_metrics(sums: Sums, norms: list[float], updates: int) -> dict[str, float]:
    """The metrics of a batch from its sums, the gradients' norms and the number of updates."""
    numbers = sums.fetch()
    trained = numbers.pop("tokens", 0.0)
    tokens = max(1.0, trained)
    excess = numbers.pop("ratio_excess", 0.0) / tokens  # of r over 1
    square = numbers.pop("ratio_squares", 0.0) / tokens
    metrics = {
        "policy/entropy": numbers.pop("entropy", 0.0) / tokens,
        "policy/ratio_mean": 1 + excess if trained else 0.0,
        "policy/ratio_std": math.sqrt(max(0.0, square - excess * excess)),
        "policy/ess": (1 + excess) ** 2 / (1 + 2 * excess + square) if trained else 0.0,
        "tokens/contributing_share": numbers.pop("contributing", 0.0) / tokens,
        "tokens/trained": trained,
        "optim/updates": float(updates),
    }
    if norms:
        finite = [n for n in norms if math.isfinite(n)]
        metrics["optim/grad_norm"] = sum(finite) / len(finite) if finite else math.nan
    for name, value in numbers.items():
        if name.startswith("loss/"):  # the mean over the updates that were made
            metrics[name] = value / updates
        elif name in sums.maxima or name in sums.minima:
            metrics[name] = value if math.isfinite(value) else math.nan  # ±inf: of no token
        else:
            metrics[name] = value / tokens
    if "correction/square" in metrics:
        square = metrics.pop("correction/square")
        bias = metrics["correction/mean"] - 1
        metrics["correction/std"] = math.sqrt(max(0.0, square - bias * bias))
    return metrics
