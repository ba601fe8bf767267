"""What a probe knows of an arm, and the frames it gives."""

from __future__ import annotations

from dataclasses import dataclass, field

import pandas as pd
from torch import Tensor

from grpolab.probe.arms import Arm
from grpolab.rollouts import Rollouts

METRICS = {
    "loss": "loss/total",
    "kl": "loss/kl",
    "contributing_tokens": "tokens/contributing_share",
    "clip_share": "clip/share",
    "clip_low": "clip/low",
    "clip_high": "clip/high",
    "clip_dropped": "clip/dropped",
    "entropy": "policy/entropy",
    "ratio_mean": "policy/ratio_mean",
    "ratio_std": "policy/ratio_std",
    "ratio_max": "policy/ratio_max",
}
"""Columns of gradients.csv that training measures, too."""


@dataclass
class Reading:
    """What one arm makes of the rollouts."""

    arm: Arm
    rollouts: Rollouts
    beta: float
    metrics: dict[str, float] = field(default_factory=dict)
    slopes: dict[str, Tensor] = field(default_factory=dict)
    """∂loss/∂output [N, T, …] by output, float64."""


@dataclass(frozen=True)
class Counts:
    """Passes that a probe made, in whole batches: rows that ran over those that there are."""

    backward: float
    forward_mode: float

    def __str__(self) -> str:
        return f"{self.backward:.3g} backward and {self.forward_mode:.3g} forward-mode passes"


@dataclass
class Probe:
    """The frames of a probe."""

    cosine: pd.DataFrame
    """Arms × arms."""
    cosine_error: pd.DataFrame
    """Standard errors over prompts of those cosines."""
    gradients: pd.DataFrame
    """An arm a row."""
    tokens: pd.DataFrame
    """A token a row: arm, row, position, text, weight = −∂loss/∂log p, share of |G|²."""
    parts: pd.DataFrame
    """A part of an arm's gradient a row: arm, kind, part, share."""
    scaling: pd.DataFrame
    """Arm, prompts, repeat_cosine: what batches of other sizes would tell."""
    staleness: pd.DataFrame
    """An arm after some further updates a row; empty unless asked for."""
    step: int
    passes: Counts
    """What it took."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Parameter → [J, numel] the gradients themselves, where asked for."""
    ratios: pd.DataFrame = field(default_factory=pd.DataFrame)
    """A bin of the log-ratios' histogram a row: updates, level, low, high, share; as above."""
    sizes: pd.DataFrame = field(default_factory=pd.DataFrame)
    """What one group of fewer completions is worth, an arm and group size a row; empty unless asked
    for."""
    difficulty: pd.DataFrame = field(default_factory=pd.DataFrame)
    """An arm and number of right answers in a group a row; empty unless the rewards take two
    values."""
