"""Policy losses per token. A variant is a `Clip`; see `base` for what one implements."""

from grpolab.objective.clip.base import Clip, Surrogate
from grpolab.objective.clip.tokens import Plan, Tokens

__all__ = ["Clip", "Plan", "Surrogate", "Tokens"]
