"""A reward that knows nothing: the control for every other one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from grpolab.objective.settings import setting
from grpolab.rewards.base import Reward, RewardInputs, Scores


@dataclass(frozen=True)
class RandomReward(Reward):
    """1.0 with probability `share`, else 0.0, whatever the completion says.

    The expected policy gradient is zero, and so is what a run with it shows of the reward: what
    moves is noise, or a bias of the method, such as the clip's with several updates on a batch.
    After the random reward of "Spurious Rewards", arXiv 2506.10947 (share 0.5), which raised the
    accuracy of some models. `share` 0 and 1 give every completion the same score: no signal at all.

    Drawn by the run's seed, the step and the completion's place in the batch, so that it is
    the same after a resume and on any number of ranks, and that two equal texts may score
    differently. (A hash of the text, say, would be a reward that can be learnt.)
    """

    name: ClassVar[str] = "random"

    share: float = setting(0.5, "Expected share of completions that score 1.", ge=0, le=1)

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions; ValueError without the noise it needs."""
        if inputs.noise is None:
            raise ValueError(
                "reward: random given, and the inputs hold no noise; allowed: inputs of a run."
            )
        return Scores([float(noise < self.share) for noise in inputs.noise()])
