r"""Multiple choice: the letter that a completion settles on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar

from grpolab.objective.settings import setting
from grpolab.rewards.text import TextReward, check_pattern, extract
from grpolab.tasks.base import Example

_OPENED = r"(?:\$|\\\(|\\[a-z]+\s*\{|[(*\"'])*"
_LETTER = r"([@])(?![A-Za-z0-9])"
_IS = r"\b(?:is|be)\b(?:\s+(?:therefore|thus|then))?"
# In this order: the first kind that is found decides, by its last match. @: the letters.
_STATED = (
    # \boxed{B}, \boxed{\text{(B)}}, <answer> B </answer>
    rf"(?:\\boxed\s*\{{|<answer>)\s*{_OPENED}{_LETTER}",
    # The answer is (B); Answer: **B**; the answer to this is option B
    rf"(?i:\banswer\b(?:[^.\n:=]{{0,60}}?{_IS})?)\s*(?:[:=]\s*)?(?:(?i:option|choice)\s+)?"
    rf"{_OPENED}{_LETTER}",
    # I take option B; my choice: (B)
    rf"(?i:\b(?:option|choice)\b(?:\s+{_IS})?)\s*(?:[:=]\s*)?{_OPENED}{_LETTER}",
    # (B); **B**; B) Paris; B. Paris; a line with nothing but B
    r"\(([@])\)|\*\*([@])\*\*|(?<![A-Za-z0-9])([@])[).:](?!\w)|(?m:^[^\w\n]*([@])[^\w\n]*$)",
)


@dataclass(frozen=True)
class Choice(TextReward):
    r"""1.0 where the last choice that the completion states is the gold letter, else 0.0.

    A choice is stated, in this order of precedence: in \boxed{} or <answer> tags; after the word
    answer; after option or choice; in parentheses, in bold, before a closing parenthesis, full stop
    or colon, or alone on its line. Among several of one kind the last counts. Only capitals count,
    so that "a" stays a word; a `pattern` of one's own (group 1 at its last match) may hold either
    case.

    The gold answer is a letter, alone or before its text: "B", "(B)", "B) Paris". Any other is
    unscorable (NaN). The published graders use one pattern each: `answer is \(?([A-J])\)?`
    (lm-evaluation-harness, MMLU-Pro), `(?i)Answer[ \t]*:[ \t]*\$?([A-D])\$?` (simple-evals).
    """

    name: ClassVar[str] = "choice"

    letters: str = setting("ABCDE", "The letters to choose from.")
    pattern: str | None = setting(
        None, "Regular expression whose group 1 is the letter; null: as described."
    )

    def __post_init__(self) -> None:
        check_pattern(self.pattern, groups=1)
        capitals = all("A" <= letter <= "Z" for letter in self.letters)
        if len(set(self.letters)) < max(2, len(self.letters)) or not capitals:
            raise ValueError(
                f"letters: {self.letters!r} given; allowed: two or more different capitals."
            )

    def score(self, completion: str, example: Example) -> float:
        """1.0 or 0.0; ValueError for a gold answer that is no letter."""
        gold = re.fullmatch(rf"\W*([{self.letters}])(?:\W*|[).:]+\s.*)", example.answer, re.DOTALL)
        if gold is None:
            raise ValueError(f"the gold answer {example.answer!r} is none of {self.letters}")
        return float(self.stated(completion) == gold[1])

    def stated(self, completion: str) -> str | None:
        """The letter that a completion settles on, None where it states none."""
        if self.pattern is not None:
            found = extract(self.pattern, completion)
            return None if found is None else found.strip().upper()
        for kind in self._kinds:
            matches = list(kind.finditer(completion))
            if matches:
                return str(matches[-1][matches[-1].lastindex or 0])
        return None

    @cached_property
    def _kinds(self) -> list[re.Pattern[str]]:
        return [re.compile(kind.replace("@", self.letters)) for kind in _STATED]
