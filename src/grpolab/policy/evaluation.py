"""Which distribution the trainer evaluates given tokens under."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

Evaluate = Callable[["Tensor", "Tensor"], "tuple[Tensor, Tensor]"]
"""(logits [n, T, V], tokens [n, T]) → (logits of the distribution evaluated, the same over the
whole vocabulary): one tensor where nothing is left out."""


@dataclass(frozen=True)
class Evaluation:
    """softmax(scale · logits), or what `evaluate` makes of the logits."""

    scale: float = 1.0
    """1 / temperature, where the support is the whole vocabulary."""
    evaluate: Evaluate | None = None
    scales: bool = True
    """Whether the kernels that know a scale alone may serve; `evaluate` does the same then."""
