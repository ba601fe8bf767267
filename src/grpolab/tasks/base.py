"""What a task is: prompts with answers, split once into train and held-out, and a verifier."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar


class TaskError(ValueError):
    """A task's data cannot be used; the message names file, row and column."""


@dataclass(frozen=True)
class Example:
    """One prompt with its answer.

    `prompt` is the user's text (the model's chat template, if any, is put around it later),
    `answer` the gold answer as text, `meta` whatever the task's verifier needs (and the source
    row, for error messages).
    """

    prompt: str
    answer: str
    meta: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Examples:
    """The two disjoint halves of a task."""

    train: Sequence[Example]
    held_out: Sequence[Example]
    source: str
    """Where they come from, for provenance: a generator with its settings, a file, a hub id."""


@dataclass(frozen=True)
class Task(ABC):
    """Base of every task: its fields are its settings.

    The split never depends on the run's seed: all runs of a sweep share prompts, so arms and seeds
    can be compared prompt by prompt. The run's seed only orders the training prompts.
    """

    group: ClassVar[str] = "task"
    name: ClassVar[str]

    @abstractmethod
    def load(self) -> Examples:
        """Make or read the examples; raises TaskError with file, row and column."""

    @abstractmethod
    def verify(self, completion: str, example: Example) -> float:
        """The task's own score of one completion, in [0, 1]. NaN: unscorable."""
