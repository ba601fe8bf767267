"""What the analysis knows about a metric: its axis label, its definition, which way is better."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Metric:
    """How one logged metric is drawn and judged."""

    label: str
    definition: str
    higher_is_better: bool = True
    bounded: bool = False
    """True where values lie in [0, 1]: axes need not follow an interval beyond that."""
    every_step: bool = True
    """False for evaluations, which are sparse and never smoothed."""


_KNOWN = {
    "reward/mean": Metric(
        "Mean reward", "mean reward of the completions sampled for training at that step"
    ),
    "eval/accuracy": Metric(
        "Eval accuracy",
        "share of correct answers on the held-out evaluation prompts",
        bounded=True,
        every_step=False,
    ),
}
_LOWER = (
    "time/",
    "memory/",
    "reward/unscorable_share",
    "reward/zero_std_share",
    "length/truncated_share",
    "optim/skipped",
)


def describe(name: str) -> Metric:
    """The metric of that name; one not known is drawn under its name, and higher is better."""
    if name in _KNOWN:
        return _KNOWN[name]
    k = re.fullmatch(r"eval/pass@(\d+)", name)
    if k:
        text = f"share of evaluation prompts solved by at least one of {k[1]} samples (unbiased)"
        return Metric(f"Eval pass@{k[1]}", text, bounded=True, every_step=False)
    return Metric(
        name,
        f"the logged {name}",
        higher_is_better=not name.startswith(_LOWER),
        bounded=name.endswith("_share"),
        every_step=not name.startswith("eval/"),
    )
