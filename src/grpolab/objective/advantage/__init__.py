"""Advantages. An estimator is an `Advantage`; see `base` for what one implements."""

from grpolab.objective.advantage.base import Advantage, Scored

__all__ = ["Advantage", "Scored"]
