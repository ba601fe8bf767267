"""Rewards that read a completion's length, in tokens with the end token included."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property, partial
from typing import ClassVar

from grpolab.objective.settings import setting
from grpolab.rewards.base import VERIFY_SECONDS, Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard

CORRECT = 0.999  # a verifier's score from which an answer counts as right


@dataclass(frozen=True)
class SoftOverlong(Reward):
    """0 up to Lmax − Lc tokens, factor·(Lmax − Lc − len)/Lc above, −factor beyond Lmax.

    The soft overlong punishment of DAPO (arXiv 2503.14476, eq. 13), a part to add to a reward of
    correctness. Lmax is `max_length`, Lc is `cache`. With Lmax 20480 and Lc 4096, lengths 16384,
    18432, 19456, 20480 and more score 0, −0.5, −0.75, −1 and −1. A cache of 0 is a step: 0 up to
    Lmax, −factor beyond.

    Differences, which show only where Lmax is less than the sampler's token limit: TRL and
    OpenRLHF stop at −factor, as DAPO's formula does (`floor` true); verl, NeMo-RL and AReaL let the
    line go on beyond Lmax (`floor` false). verl calls the factor `penalty_factor`.
    """

    name: ClassVar[str] = "soft_overlong"

    max_length: int | None = setting(None, "Lmax in tokens; null: the sampler's limit.", ge=1)
    cache: int | None = setting(
        None, "Lc in tokens; null: a fifth of Lmax, DAPO's 4096 of 20480.", ge=0
    )
    floor: bool = setting(True, "Stop at −factor; false: go on below it beyond Lmax.")
    factor: float = setting(1.0, "Penalty at Lmax.", gt=0)

    def __post_init__(self) -> None:
        if self.cache is None:
            return
        if self.cache == 0 and not self.floor:
            raise ValueError(
                "floor: false given with cache=0, a line without an end; allowed: true, or a "
                "cache of at least 1."
            )
        if self.max_length is not None and self.cache > self.max_length:
            raise ValueError(
                f"cache: {self.cache} given with max_length={self.max_length}; allowed: at most "
                "max_length."
            )

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuses a penalty that no completion of that many tokens can get."""
        longest, cache = self._bounds(max_new_tokens)
        if cache > longest:
            raise ValueError(
                f"cache: {cache:g} given with sampler.max_new_tokens={max_new_tokens}; allowed: at "
                "most that many."
            )
        if self.max_length is not None and longest - cache >= max_new_tokens:
            raise ValueError(
                f"max_length: {longest} given with sampler.max_new_tokens={max_new_tokens} and a "
                f"cache of {cache:g}, so that no completion is ever penalised; allowed: less than "
                f"{max_new_tokens + cache:g}."
            )

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        longest, cache = self._bounds(inputs.max_length)
        return Scores([self._penalty(length, longest, cache) for length in inputs.lengths])

    def _bounds(self, limit: int) -> tuple[int, float]:
        """(Lmax, Lc)"""
        longest = limit if self.max_length is None else self.max_length
        return longest, longest / 5 if self.cache is None else self.cache

    def _penalty(self, length: int, longest: int, cache: float) -> float:
        excess = length - (longest - cache)
        if excess <= 0:
            return 0.0
        share = excess / cache if cache else math.inf
        return -self.factor * (min(1.0, share) if self.floor else share)


@dataclass(frozen=True)
class CosineLength(Reward):
    """v_long + ½·(v_short − v_long)·(1 + cos(π·len/Lmax)), with v by whether it is correct.

    The cosine reward (arXiv 2502.03373): a correct completion scores more the shorter it is, a
    wrong one less, so that thinking longer is worth more where the answer fails. Correct is what
    the task's own verifier gives at least 0.999; what it cannot score is unscorable here (NaN).
    Lmax is `max_length`; a longer completion scores as one of Lmax tokens, or `exceeded`.

    The defaults are TRL's, which decides correctness by math-verify; open-r1 has the same ones,
    counts characters for tokens and lets the cosine rise again beyond Lmax. ms-swift: 1 → .5 and
    −.5 → 0. The paper: 2 → 1, −10 → 0, and −10 for what reaches Lmax (`exceeded`).
    """

    name: ClassVar[str] = "cosine_length"

    correct_short: float = setting(1.0, "Score of a correct completion of length 0.")
    correct_long: float = setting(0.5, "Score of a correct completion of length Lmax.")
    wrong_short: float = setting(-1.0, "Score of a wrong completion of length 0.")
    wrong_long: float = setting(-0.5, "Score of a wrong completion of length Lmax.")
    exceeded: float | None = setting(
        None, "Score of any completion of Lmax tokens or more; null: as of Lmax."
    )
    max_length: int | None = setting(None, "Lmax in tokens; null: the sampler's limit.", ge=1)
    time_limit: float = setting(10.0, "Seconds to verify one completion; slower ones: NaN.", gt=0)

    def check_limit(self, max_new_tokens: int) -> None:
        """Refuses a score for exceeding a length that no completion reaches."""
        if self.exceeded is not None and (self.max_length or 0) > max_new_tokens:
            raise ValueError(
                f"exceeded: {self.exceeded} given with max_length={self.max_length} and "
                f"sampler.max_new_tokens={max_new_tokens}, so that no completion gets it; allowed: "
                "null, or a smaller max_length."
            )

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        longest = inputs.max_length if self.max_length is None else self.max_length
        verify = inputs.task.verify
        together = zip(inputs.completions, inputs.examples, strict=True)
        verified = [self._guard.score(partial(verify, c, e)) for c, e in together]
        return Scores(
            [
                self._score(score, length / longest)
                for score, length in zip(verified, inputs.lengths, strict=True)
            ],
            verified=verified if self.time_limit <= VERIFY_SECONDS else None,
        )

    def _score(self, verified: float, share: float) -> float:
        if math.isnan(verified):
            return math.nan
        if self.exceeded is not None and share >= 1:
            return self.exceeded
        short, long = self.wrong_short, self.wrong_long
        if verified >= CORRECT:
            short, long = self.correct_short, self.correct_long
        return long + 0.5 * (short - long) * (1 + math.cos(math.pi * min(share, 1.0)))

    @cached_property
    def _guard(self) -> Guard:
        return Guard(self.name, self.time_limit)
