"""A handful of prompts, written in the config itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.settings import setting
from grpolab.tasks.base import Example, Examples, Task, TaskError
from grpolab.tasks.numbers import last_number, parse_number


@dataclass(frozen=True)
class Inline(Task):
    """Prompts with numeric answers from the config; right if the last number of the completion is
    nearer to the answer than `tolerance`.

    Nothing is held out: the evaluation asks the training prompts, so its accuracy says what was
    learnt by heart. For a first look, not for a study.
    """

    name: ClassVar[str] = "inline"

    prompts: list[str] = setting(["1+1="], "the prompts")
    answers: list[str] = setting(["2"], "their answers, numbers as text")
    tolerance: float = setting(0.5, "right below this distance", gt=0)

    def load(self) -> Examples:
        """The prompts as both halves."""
        if len(self.prompts) != len(self.answers) or not self.prompts:
            raise TaskError(
                f"task.answers: {len(self.answers)} given for {len(self.prompts)} prompts; "
                "allowed: one answer for each, and at least one."
            )
        for row, answer in enumerate(self.answers, start=1):
            if parse_number(answer) is None:
                raise TaskError(f"task.answers: row {row} is {answer!r}; allowed: a number.")
        pairs = zip(self.prompts, self.answers, strict=True)
        examples = [Example(p, a, {"row": i}) for i, (p, a) in enumerate(pairs, start=1)]
        return Examples(examples, examples, f"inline({len(examples)} prompts)")

    def verify(self, completion: str, example: Example) -> float:
        """1 if the completion's last number is within the tolerance."""
        found, gold = last_number(completion), parse_number(example.answer)
        if found is None or gold is None:
            return 0.0
        return float(abs(found - gold) < self.tolerance)
