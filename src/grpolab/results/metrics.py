"""What the analysis knows about a metric: its axis label, its definition, which way is better."""

from __future__ import annotations

import math
from dataclasses import replace

from grpolab.metrics import Metric, find

# Axis labels of what the run only names: short, with the unit where there is one.
LABELS = {
    "policy/entropy": "Entropy (nats)",
    "policy/ratio_mean": "Mean r",
    "policy/ratio_std": "Standard deviation of r",
    "policy/ratio_max": "Largest r",
    "policy/ess": "Effective sample size",
    "clip/low": "Clipped below (share)",
    "clip/high": "Clipped above (share)",
    "clip/share": "Clipped (share)",
    "kl/ref_k1": "KL to reference, k1 (nats)",
    "kl/ref_k2": "KL to reference, k2 (nats)",
    "kl/ref_k3": "KL to reference, k3 (nats)",
    "length/mean": "Length (tokens)",
    "length/correct": "Length if correct (tokens)",
    "length/wrong": "Length if wrong (tokens)",
    "length/truncated_share": "Truncated (share)",
}


def describe(name: str) -> Metric:
    """The metric of that name; one not known is drawn under its name, and higher is better."""
    metric = find(name) or Metric(
        name, f"the logged {name}", bounded=name.endswith("_share"),
        every_step=not name.startswith("eval/"),
    )  # fmt: skip
    return metric if metric.label else replace(metric, label=LABELS.get(name, name))


NEUTRAL = {"better": "higher", "worse": "lower"}


def spoken(verdict: str, metric: str) -> str:
    """A verdict as people read it: of a metric without a better side, such as an entropy or a
    length, `better` says that it is higher, `worse` that it is lower."""
    return NEUTRAL.get(verdict, verdict) if describe(metric).better == "neither" else verdict


def decimals(value: object, digits: int = 3, signed: bool = False) -> str:
    """A number as tables and figures show it; a dash for none. What rounds to 0 has no minus."""
    number = math.nan if value is None else float(str(value))
    if not math.isfinite(number):
        return "–"
    rounded = round(number, digits) + 0.0  # of −0.0 this makes 0.0
    return f"{rounded:+.{digits}f}" if signed else f"{rounded:.{digits}f}"
