"""KL(π‖π_ref) per token. An estimator is a `ReferenceKL`; see `base` for what one implements."""

from grpolab.objective.kl.base import KL, NoKL, Placement, ReferenceKL, Schedule, k3

__all__ = ["KL", "NoKL", "Placement", "ReferenceKL", "Schedule", "k3"]
