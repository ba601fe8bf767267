"""Hyperband as a pure function of what trials have reported.

Optuna's own HyperbandPruner writes into the study that a trial has passed a rung before it says
whether the trial is to end; a kill in between would let the trial go on. This one writes nothing:
asked again it says the same. On trials that run one after the other the two agree (tested).
"""

from __future__ import annotations

import binascii
import math
from collections.abc import Mapping, Sequence

Reports = Mapping[int, float]
"""{resource: value} of one trial; the resource counts the steps of its seeds together."""


class Hyperband:
    """Brackets of asynchronous successive halving (arXiv 1603.06560, 1810.05934).

    A trial belongs to bracket b by a hash of study and number, and meets its rung i at the first
    report from `least` · `reduction`^(b + i) on; it ends unless its value there is among the best
    1/`reduction` of those that the bracket's trials have had there.
    """

    def __init__(self, study: str, least: int, most: int, reduction: int, maximize: bool) -> None:
        self.study, self.least, self.reduction = study, least, reduction
        self.maximize = maximize
        self.brackets = math.floor(math.log(most / least, reduction)) + 1
        depths = [self.brackets - 1 - b for b in range(self.brackets)]
        self.budgets = [math.ceil(self.brackets * reduction**s / (s + 1)) for s in depths]

    def bracket(self, number: int) -> int:
        """The bracket of a trial."""
        n = binascii.crc32(f"{self.study}_{number}".encode()) % sum(self.budgets)
        for bracket, budget in enumerate(self.budgets):
            n -= budget
            if n < 0:
                return bracket
        raise AssertionError("the budgets add up")

    def ends(self, number: int, trials: Mapping[int, Reports]) -> bool:
        """Whether trial `number` ends at its last report.

        Args:
            number: of the trial.
            trials: what each trial has reported, itself included.
        """
        own, bracket = trials[number], self.bracket(number)
        before = max((r for r in own if r < max(own)), default=0)
        rivals = [r for n, r in trials.items() if n != number and self.bracket(n) == bracket]
        rung = 0
        while (step := self.least * self.reduction ** (bracket + rung)) <= max(own):
            if before < step and not self._goes_on(own[max(own)], _values_at(rivals, step)):
                return True
            rung += 1
        return False

    def _goes_on(self, value: float, others: Sequence[float]) -> bool:
        if math.isnan(value):
            return False
        ordered = sorted([*others, value], reverse=self.maximize)
        last = ordered[max(len(ordered) // self.reduction, 1) - 1]
        return value >= last if self.maximize else value <= last


def _values_at(trials: Sequence[Reports], step: int) -> list[float]:
    """What trials reported first from a rung on; those that never came so far are left out."""
    met = [min((r for r in reports if r >= step), default=None) for reports in trials]
    values = [reports[r] for reports, r in zip(trials, met, strict=True) if r is not None]
    return [v for v in values if not math.isnan(v)]
