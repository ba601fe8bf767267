"""Mathematical equality with the gold answer, by the package math-verify."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.rewards.ahead import Ahead
from grpolab.rewards.base import Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard, TimeLimitExceeded
from grpolab.rewards.isolated import Pool, processors
from grpolab.tasks.base import Example

JUDGE = "grpolab.rewards.math_judge"
MOST_HELPERS = 8  # each holds some 100 MB


@dataclass(frozen=True)
class MathVerify(Reward):
    r"""1.0 where the completion's answer equals the gold answer as mathematics, else 0.0.

    `example.answer` and the completion are parsed from LaTeX by math-verify (numbers, expressions,
    equations, intervals, sets, matrices) and compared: 1/2 is 0.5, \frac{2}{4} and 50\%. A
    completion without an answer scores 0.0; a gold answer that cannot be parsed makes the sample
    unscorable (NaN), as in TRL. verl scores such a sample 0.

    Parsing and comparing run in helper processes, several at a time (`workers`, on which no score
    depends), that are killed when `time_limit` is over, since nothing else stops 9^{9^9}: in TRL a
    time limit exists in the main thread only, and scores 0. Beside a sampler on a GPU they judge a
    completion as soon as it has ended (sampler static). No text is ever evaluated as code, digits
    included.

    Who reads what (`gold`, `anchored`, `boxed_first`, `plain`, `candidates`, `repair`):
        TRL accuracy_reward, open-r1: text, true, true, false, first, false.
        TRL reasoning_accuracy_reward: the same, with after="</think>".
        verl math_verify: whole, false, false, true, any, true; and timed_out 0.
        Here: TRL's, but the gold answer is read whole. Searched as text, which TRL does, 11\sqrt2
        is 11, 6 - 5i is 5, and \sqrt{3} is unscorable.

    math-verify compares six decimal places, takes a percentage for equal to the number with and
    without the percent sign, and reads several \boxed{} that stand close together as one list.

    Raises:
        ConfigError: the package is missing.
    """

    name: ClassVar[str] = "math_verify"

    gold: Literal["whole", "text"] = setting(
        "whole", "whole: the gold answer is one expression; text: search it for one."
    )
    anchored: bool = setting(
        True, "Read only \\boxed{} and LaTeX after the word answer; false: any LaTeX."
    )
    boxed_first: bool = setting(True, "\\boxed{} goes before 'final answer is'; false: they tie.")
    plain: bool = setting(False, "Read numbers and sums outside LaTeX too.")
    candidates: Literal["first", "any"] = setting(
        "first", "first: the best candidate must parse; any: go on to one that does."
    )
    repair: bool = setting(False, "Repair malformed LaTeX in completions, such as \\frac12.")
    after: str | None = setting(
        None, "Read only what follows the last of this text; a completion without it scores 0."
    )
    time_limit: float = setting(10.0, "Seconds for one completion.", gt=0)
    timed_out: float | None = setting(
        None, "Score of what exceeds the time limit; null: unscorable.", ge=0, le=1
    )
    workers: int | None = setting(
        None, "Helper processes that score at the same time; null: one per CPU, up to 8.", ge=1
    )

    def __post_init__(self) -> None:
        if importlib.util.find_spec("math_verify") is None:
            raise ValueError(
                "name: math_verify needs the package math-verify, which is not installed; "
                "allowed: math_verify after pip install 'grpolab[math]'."
            )
        if self.after == "":
            raise ValueError("after: '' given; allowed: a text, or null.")

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        self._pool.start()  # outside the guard: a helper that cannot start ends the run
        pairs = list(zip(inputs.completions, inputs.examples, strict=True))
        threads = ThreadPoolExecutor(self._helpers)
        try:
            futures = [self._ahead.begun(threads, c, e, self._call(c, e)) for c, e in pairs]
            calls = [
                partial(self._score, future, example)
                for future, (_, example) in zip(futures, pairs, strict=True)
            ]
            return Scores([self._guard.score(call) for call in calls])
        finally:
            threads.shutdown(cancel_futures=True)

    def looks_ahead(self, elsewhere: bool) -> bool:
        """Where the helpers have processors that the sampler does not use."""
        return elsewhere

    def ahead(
        self, completions: Sequence[str], examples: Sequence[Example], elsewhere: bool
    ) -> None:
        """Sends them to the helpers."""
        for completion, example in zip(completions, examples, strict=True):
            self._ahead.begin(completion, example, self._call(completion, example))

    def forget(self) -> None:
        self._ahead.forget()

    def _call(self, completion: str, example: Example) -> Callable[[], float | None]:
        return partial(self._pool, self._request(completion, example))

    def _request(self, completion: str, example: Example) -> dict[str, Any]:
        return {
            "gold": example.answer,
            "completion": completion,
            "read_gold": self.gold,
            "anchored": self.anchored,
            "boxed_first": self.boxed_first,
            "plain": self.plain,
            "candidates": self.candidates,
            "repair": self.repair,
            "after": self.after,
        }

    def _score(self, future: Future[float | None], example: Example) -> float:
        try:
            score = future.result()
        except TimeLimitExceeded:
            if self.timed_out is None:
                raise
            return self.timed_out
        if score is None:
            raise ValueError(f"the gold answer {example.answer!r} holds no mathematics")
        return score

    @cached_property
    def _ahead(self) -> Ahead[float | None]:
        return Ahead(self._helpers)

    @cached_property
    def _pool(self) -> Pool:
        return Pool(JUDGE, self._helpers, self.time_limit)

    @property
    def _helpers(self) -> int:
        """Never more than there are processors: an answer's time limit would count its waiting."""
        return self.workers or min(MOST_HELPERS, processors())

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.name)
