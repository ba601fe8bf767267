"""A penalty for completions that say the same thing again and again."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.rewards.base import Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard

COUNT_SECONDS = 10.0
"""For one completion; a text of hundreds of megabytes is unscorable (NaN)."""


@dataclass(frozen=True)
class Repetition(Reward):
    """penalty·(1 − distinct n-grams / all n-grams), and 0 with fewer than n words.

    With n = 1, "a b a" has 2 distinct words of 3 and scores −1/3 at the default penalty. After
    arXiv 2502.03373 (appendix C.2), whose own runs take 0.05 off the reward of every single token
    that lies in a repeated 40-gram.

    The n-grams are of words (`of` words: split at white space, lower-cased), as in open-r1 and
    ms-swift, or of token ids (`of` tokens, the end token included), as in TRL. Words need white
    space, which not every language writes; tokens depend on the tokenizer.
    """

    name: ClassVar[str] = "repetition"

    n: int = setting(3, "Length of an n-gram.", ge=1)
    penalty: float = setting(-1.0, "Score that a completion of one n-gram tends to.", le=0)
    of: Literal["words", "tokens"] = setting("words", "What an n-gram is made of.")

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions; ValueError without the tokens it needs."""
        if self.of == "words":
            calls = [partial(self._of_words, text) for text in inputs.completions]
        elif inputs.tokens is None:
            raise ValueError("reward.of: tokens given, and the inputs hold none; allowed: words.")
        else:
            calls = [partial(self._penalty, tokens) for tokens in inputs.tokens()]
        return Scores([self._guard.score(call) for call in calls])

    def _of_words(self, text: str) -> float:
        return self._penalty(text.lower().split())

    def _penalty(self, items: Sequence[Hashable]) -> float:
        count = len(items) - self.n + 1
        if count < 1:
            return 0.0
        distinct = len({tuple(items[start : start + self.n]) for start in range(count)})
        # Not −0.0 for a completion without a repetition.
        return self.penalty * (1 - distinct / count) if distinct < count else 0.0

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.name, COUNT_SECONDS)
