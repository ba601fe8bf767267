"""How a run ends before its last step."""

from __future__ import annotations


class TrainingFailed(RuntimeError):
    """The run cannot go on; the message is the reason in STATUS."""


class RankFailed(RuntimeError):
    """Another rank met an error, so that this one ends too; the message names both."""


class RankLost(RuntimeError):
    """Another rank is gone or no longer answers; what was saved is whole."""
