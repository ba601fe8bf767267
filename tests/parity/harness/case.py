"""What a case consists of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from grpolab.training.update import Updater

LR = 1e-3
"""Large: in the second iteration on a batch, about a fifth of the tokens is clipped."""
Overrides = Mapping[str, object]


@dataclass(frozen=True)
class Case:
    """Settings of both trainers under which the same record must lead to the same weights."""

    name: str
    trl: Mapping[str, Any]
    """Of GRPOConfig, besides learning_rate and num_iterations."""
    ours: Overrides
    off: Overrides
    """On top of `ours`, None to drop one: takes away what the case is about. The result must then
    differ, or the case would prove nothing."""
    iterations: int = 2
    note: str = ""
    """A difference that is meant, and what it takes to remove it."""
    adjust: Callable[[Updater], None] | None = None
    """Where TRL does what no setting of ours does: done to our side here, but not when off."""
    first_step: int = 0
    """What our side counts steps from; 0 when off."""
    model: str = "Llama"
    one_prompt_length: bool = False
    shuffles: bool = True
    """TRL shuffles a batch's rows before it splits them into micro-batches."""
    unscorable: bool = False
    parts: bool = False
    """Two rewards instead of one."""
    corrects: bool = False
    """TRL is told the sampler's log-probs, as by vLLM."""
    metrics: Mapping[str, str] = field(default_factory=dict)
    """Our metric → TRL's: above 0 and equal."""
    apart: bool = False
    """The results differ, for the reason noted; the case without that reason stands beside it."""
