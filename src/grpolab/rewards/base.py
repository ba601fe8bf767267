"""What a reward is: completions with their examples in, one score each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

from grpolab.tasks.base import Example, Task

VERIFY_SECONDS = 10.0
"""For one completion's correctness; what takes the task's verifier longer counts as wrong."""


@dataclass(frozen=True)
class RewardInputs:
    """N completions, prompt-major (the G completions of one prompt stand together)."""

    completions: Sequence[str]
    examples: Sequence[Example]
    task: Task
    lengths: Sequence[int]
    """Tokens of each completion, the end token included."""
    truncated: Sequence[bool]
    """True where the completion hit the token limit without an end token."""
    max_length: int
    """The sampler's token limit."""
    tokens: Callable[[], Sequence[Sequence[int]]] | None = None
    """Makes the N lists of token ids, for the reward that needs them."""
    noise: Callable[[], Sequence[float]] | None = None
    """Draws N numbers, uniform in [0, 1), by seed, step and place in the batch; others at each
    call, so that two parts of a mixture do not share them."""

    def __len__(self) -> int:
        return len(self.completions)


@dataclass(frozen=True)
class Scores:
    """One score per completion (NaN: unscorable), and each part of a mixture on its own.

    The parts of a mixture are named by their labels, as its `weights` are; a part that is a mixture
    too adds its own as outer/inner, which have no weight and are there to be logged.
    """

    total: list[float]
    parts: dict[str, list[float]] = field(default_factory=dict)
    verified: list[float] | None = None
    """What the task's own verifier gave (NaN where it failed), if scoring asked it under a time
    limit of at most `VERIFY_SECONDS`: whoever needs it too need not ask again."""


@dataclass(frozen=True)
class Reward(ABC):
    """Base of every reward: its fields are its settings."""

    group: ClassVar[str] = "reward"
    name: ClassVar[str]

    @abstractmethod
    def __call__(self, inputs: RewardInputs) -> Scores:
        """Score N completions. What raises or exceeds its time limit is NaN for that sample."""

    def looks_ahead(self, elsewhere: bool) -> bool:
        """Whether it takes completions as they end, by `ahead`, while others are still sampled.

        Args:
            elsewhere: the sampler runs on a device of its own and leaves processors idle.
        """
        return False

    def ahead(
        self, completions: Sequence[str], examples: Sequence[Example], elsewhere: bool
    ) -> None:
        """Begins to score completions beside the sampler's work, where `looks_ahead`. `__call__` is
        asked for them afterwards all the same, and gives what it would have given. Without any, it
        loads what scoring needs."""
        return

    def forget(self) -> None:
        """Drops what was begun ahead; whoever called `ahead` does, when all is scored or when
        something went wrong."""
        return

    @property
    def first_error(self) -> str | None:
        """What made the first sample unscorable that failed; None where none did."""
        found: str | None = getattr(vars(self).get("_guard"), "first_error", None)
        return found

    def check_limit(self, max_new_tokens: int) -> None:
        """ValueError, beginning with the setting's name, where a setting does not go with the
        sampler's token limit."""
        return
