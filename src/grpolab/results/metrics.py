"""What the analysis knows about a metric: its axis label, its definition, which way is better."""

from __future__ import annotations

from dataclasses import replace

from grpolab.metrics import Metric, find


def describe(name: str) -> Metric:
    """The metric of that name; one not known is drawn under its name, and higher is better."""
    metric = find(name) or Metric(
        name, f"the logged {name}", bounded=name.endswith("_share"),
        every_step=not name.startswith("eval/"),
    )  # fmt: skip
    return metric if metric.label else replace(metric, label=name)
