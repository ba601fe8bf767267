"""Rewards that read the completion's text: against the gold answer, a pattern, or the task."""

from __future__ import annotations

import re
from abc import abstractmethod
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.rewards.base import VERIFY_SECONDS, Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard
from grpolab.tasks.base import Example
from grpolab.tasks.numbers import first_number, last_number

# A user's pattern can backtrack for hours on one completion; past this it is unscorable.
PATTERN_SECONDS = 2.0


@dataclass(frozen=True)
class TextReward(Reward):
    """Base: one completion at a time, each behind the guard."""

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        together = zip(inputs.completions, inputs.examples, strict=True)
        return Scores([self._guard.score(partial(self.score, c, e)) for c, e in together])

    @abstractmethod
    def score(self, completion: str, example: Example) -> float:
        """The score of one completion. What raises here makes the sample unscorable."""

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.name, PATTERN_SECONDS)


@dataclass(frozen=True)
class ExactMatch(TextReward):
    """1.0 where the completion equals the gold answer, else 0.0.

    With `pattern`, what the pattern's group 1 holds at its last match in the completion is compared
    instead; no match scores 0.0.
    """

    name: ClassVar[str] = "exact_match"

    strip: bool = setting(True, "Leave out space around the completion and the answer.")
    casefold: bool = setting(False, "Take upper and lower case as equal.")
    pattern: str | None = setting(
        None, "Regular expression whose group 1 is the answer; null: the whole completion."
    )

    def __post_init__(self) -> None:
        check_pattern(self.pattern, groups=1)

    def score(self, completion: str, example: Example) -> float:
        """1.0 or 0.0."""
        given = completion if self.pattern is None else extract(self.pattern, completion)
        return float(given is not None and self._plain(given) == self._plain(example.answer))

    def _plain(self, text: str) -> str:
        text = text.strip() if self.strip else text
        return text.casefold() if self.casefold else text


@dataclass(frozen=True)
class Numeric(TextReward):
    """1.0 where |x − g| ≤ max(absolute, relative·|g|), else 0.0.

    x is the completion's number and g the gold number. Numbers are parsed by
    `grpolab.tasks.numbers`, never evaluated. A completion without a number scores 0.0; a gold
    answer without one is unscorable (NaN).
    """

    name: ClassVar[str] = "numeric"

    absolute: float = setting(0.0, "Largest allowed distance to the gold number.", ge=0)
    relative: float = setting(1e-6, "The same as a share of the gold number.", ge=0)
    take: Literal["last", "first", "pattern"] = setting(
        "last", "Which number of the completion counts."
    )
    pattern: str | None = setting(
        None, "take=pattern: regular expression whose group 1 holds the number."
    )

    def __post_init__(self) -> None:
        check_pattern(self.pattern, groups=1)
        if (self.take == "pattern") != (self.pattern is not None):
            raise ValueError(
                f"pattern: {self.pattern!r} does not go with take={self.take}; allowed: a "
                "pattern with take=pattern, null with last and first"
            )

    def score(self, completion: str, example: Example) -> float:
        """1.0 or 0.0; ValueError for a gold answer that holds no number."""
        gold = last_number(example.answer)
        if gold is None:
            raise ValueError(f"the gold answer {example.answer!r} holds no number")
        given = self._number(completion)
        if given is None:
            return 0.0
        return float(abs(given - gold) <= max(self.absolute, self.relative * abs(gold)))

    def _number(self, completion: str) -> float | None:
        if self.take == "first":
            return first_number(completion)
        text = completion if self.pattern is None else extract(self.pattern, completion)
        return None if text is None else last_number(text)


@dataclass(frozen=True)
class Format(TextReward):
    """`matched` where the completion has the format of `pattern`, else `otherwise`.

    The default is the format of DeepSeek-R1 (arXiv 2501.12948): thoughts, then the answer, each in
    its tags.
    """

    name: ClassVar[str] = "format"

    pattern: str = setting(
        r"(?s)\s*<think>.+?</think>\s*<answer>.+?</answer>\s*", "Regular expression of the format."
    )
    match: Literal["full", "search"] = setting(
        "full", "full: the whole completion; search: anywhere in it."
    )
    matched: float = setting(1.0, "Score of a completion with the format.", ge=0, le=1)
    otherwise: float = setting(0.0, "Score of any other completion.", ge=0, le=1)

    def __post_init__(self) -> None:
        check_pattern(self.pattern, groups=0)

    def score(self, completion: str, example: Example) -> float:
        """`matched` or `otherwise`."""
        find = re.fullmatch if self.match == "full" else re.search
        return self.matched if find(self.pattern, completion) else self.otherwise


@dataclass(frozen=True)
class TaskReward(Reward):
    """The task's own verifier, in [0, 1]: the measure that evaluation uses too."""

    name: ClassVar[str] = "task"

    time_limit: float = setting(10.0, "Seconds for one completion; slower ones are NaN.", gt=0)

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        together = zip(inputs.completions, inputs.examples, strict=True)
        verify = inputs.task.verify
        scores = [self._guard.score(partial(verify, c, e)) for c, e in together]
        return Scores(scores, verified=scores if self.time_limit <= VERIFY_SECONDS else None)

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.name, self.time_limit)


def extract(pattern: str, completion: str) -> str | None:
    """Group 1 at the pattern's last match, None where it does not match."""
    found = None
    for match in re.finditer(pattern, completion):
        found = match[1] if match[1] is not None else found
    return found


def check_pattern(pattern: str | None, groups: int) -> None:
    """ValueError, beginning with the setting's name, for a pattern that cannot be used."""
    if pattern is None:
        return
    try:
        compiled = re.compile(pattern)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(
            f"pattern: {pattern!r} is no regular expression ({error}); allowed: one that "
            "Python's re module reads"
        ) from error
    if compiled.groups < groups:
        raise ValueError(
            f"pattern: {pattern!r} has no group; allowed: one with the answer in parentheses"
        )
