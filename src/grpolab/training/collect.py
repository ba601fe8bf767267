"""From prompts to scored rollouts: sample, score, select, and draw again where groups fell out."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial

import torch
from torch import Tensor

from grpolab.config import Run
from grpolab.policy.policy import Encoder, Policy
from grpolab.rewards.base import VERIFY_SECONDS, Reward, RewardInputs
from grpolab.rewards.guard import TimeLimitExceeded, limited
from grpolab.rng import generator, permutation
from grpolab.rollouts import Rollouts, concatenate
from grpolab.sampling.base import Draw, Finished
from grpolab.tasks.base import Example, Examples, Task
from grpolab.training.clock import Clock
from grpolab.training.draw import Room, sample_part, sample_rollouts
from grpolab.training.ranks import ALONE, Ranks
from grpolab.training.replay import ReplayBuffer, fill, packed, replay_metrics, unpacked

CORRECT = 0.999  # a verifier's score from which an answer counts as right
Noise = Callable[[int], list[float]]
"""Group size → a number in [0, 1) for each of this rank's completions, others at each call."""


@dataclass
class Collected:
    """One step's rollouts, and what was spent on them."""

    rollouts: Rollouts
    everything: Rollouts
    """Before the selection: what the reward metrics describe."""
    rounds: int = 1
    metrics: dict[str, float] = field(default_factory=dict)
    """Of the selection, where it measures something."""
    verified: list[float] = field(default_factory=list)
    """Of `everything`: what the task's verifier gave while scoring, NaN where it did not."""


class Collector:
    """Draws each step's prompts, samples their groups and scores them: each rank its own, and
    then every rank has all."""

    def __init__(
        self,
        run: Run,
        policy: Policy,
        examples: Examples,
        clock: Clock | None = None,
        ranks: Ranks = ALONE,
    ) -> None:
        self.run, self.policy, self.examples, self.ranks = run, policy, examples, ranks
        self.clock = Clock() if clock is None else clock
        self._encoded = encode_examples(policy.encoder, examples.train)
        self.room = Room()
        self.buffer = ReplayBuffer(run.selection) if run.selection.replays else None

    def collect(self, step: int) -> Collected:
        """The rollouts of a step; a function of (seed, step), of the policy's weights and of the
        buffer, where groups are replayed."""
        run = self.run
        kept: list[Rollouts] = []
        everything: list[Rollouts] = []
        verified: list[float] = []
        missing = run.prompts_per_step
        for round_ in range(run.selection.rounds):
            indices = self.prompt_indices(step, round_)[:missing]
            own, verdicts = self._scored(indices, step, round_)
            rollouts, verdicts = self._joined(own, verdicts)
            verified += verdicts
            assert rollouts.rewards is not None
            members = run.selection(rollouts.rewards, noise=self._noise(rollouts, step, round_))
            chosen = rollouts.keep(members)
            if self.buffer is not None:
                chosen = self._refill(self.buffer, rollouts, members.any(dim=1), step)
            everything.append(rollouts)
            kept.append(chosen)
            missing -= chosen.groups
            if missing <= 0:
                break
        found = Collected(concatenate(kept), concatenate(everything), len(everything))
        found.verified = verified
        if self.buffer is not None:
            found.metrics = replay_metrics(found.rollouts, len(self.buffer))
        return found

    def remember(self, rollouts: Rollouts, step: int) -> None:
        """Lets the groups of a step that is over into the buffer, where there is one."""
        if self.buffer is not None and rollouts.groups:
            self.buffer.add(rollouts, step)

    def _refill(
        self, buffer: ReplayBuffer, rollouts: Rollouts, kept: Tensor, step: int
    ) -> Rollouts:
        fresh = int(kept.sum())
        count = buffer.allowed(fresh, len(kept) - fresh)
        return fill(rollouts, kept, buffer.draw(step, count, self._source(step, 0, 3)))

    def _source(self, step: int, *indices: int) -> torch.Generator:
        return generator(self.run.seed, "selection", step, *indices)

    def prompt_indices(self, step: int, round_: int = 0) -> list[int]:
        """Training examples of a step. The first round walks through a fresh permutation each
        epoch; refills come from a stream of their own, so that they never shift the walk."""
        n, count = len(self.examples.train), self.run.prompts_per_step
        if round_:
            source = self._source(step, round_)
            return torch.randint(n, (count,), generator=source).tolist()
        places = range(step * count, (step + 1) * count)
        return [epoch_order(n, self.run.seed, p // n)[p % n] for p in places]

    def _sample(self, indices: Sequence[int], step: int, round_: int) -> Rollouts | None:
        """This rank's groups of a round; None where there are fewer prompts than ranks."""
        group = self.run.sampler.group_size
        draw = Draw(self.run.seed, (step, round_), group, finished=self._finished(indices))
        prompts = [self._encoded[i] for i in indices]
        rollouts = sample_part(self.ranks, self.run.sampler, self.policy, prompts, draw, self.room)
        if rollouts is None:
            return None
        own = list(indices[self.ranks.part(len(indices))])
        rollouts.prompt_index = torch.tensor(own, device=self.policy.device)
        rollouts.prompts = [self.examples.train[i].prompt for i in own]
        return rollouts

    def _finished(self, indices: Sequence[int]) -> Finished | None:
        """Hands completions of these examples to the reward as they end, where it looks ahead."""
        reward, group = self.run.reward, self.run.sampler.group_size
        elsewhere = self.policy.device.type != "cpu"
        if not (isinstance(reward, Reward) and reward.looks_ahead(elsewhere)):
            return None
        told: set[int] = set()  # a call that ran out of memory begins again

        def tell(places: list[int], ids: Tensor, mask: Tensor) -> None:
            texts = self.policy.encoder.decode(ids, mask)
            new = {p: text for p, text in zip(places, texts, strict=True) if p not in told}
            told.update(new)
            examples = [self.examples.train[indices[place // group]] for place in new]
            reward.ahead(list(new.values()), examples, elsewhere)

        reward.ahead([], [], elsewhere)
        return tell

    def _joined(self, own: Rollouts | None, verified: list[float]) -> tuple[Rollouts, list[float]]:
        """All ranks' groups in the order of their prompts, and what verifiers said of them."""
        if self.ranks.alone:
            assert own is not None
            return own, verified
        with self.clock("score"):  # what scoring left open is asked here, so that each asks its own
            tensors = {} if own is None else packed(own) | {VERIFIED: self._verdicts(own, verified)}
        with self.clock("sample"):
            found = [t for t in self.ranks.gather_tensors(tensors) if t]
        verified = torch.cat([t.pop(VERIFIED) for t in found]).tolist()
        group = self.run.sampler.group_size
        rollouts = concatenate([unpacked(t, group) for t in found])
        return rollouts.to(self.policy.device), verified

    def _verdicts(self, own: Rollouts, verified: Sequence[float]) -> Tensor:
        examples = [self.examples.train[i] for i in own.prompt_index.tolist()]
        examples = [e for e in examples for _ in range(own.group_size)]
        judged = verdicts(self.run.task, own.texts, examples, verified)
        return torch.tensor(judged, dtype=torch.float64)

    def _scored(
        self, indices: Sequence[int], step: int, round_: int
    ) -> tuple[Rollouts | None, list[float]]:
        """This rank's groups of a round, and what verifiers said of them. Scoring may sample too:
        the greedy completions."""
        with self.policy.whole():
            try:
                with self.clock("sample"):
                    own = self._sample(indices, step, round_)
                with self.clock("score"):
                    noise = self._reward_noise(len(indices), step, round_)
                    return own, [] if own is None else self._score(own, noise)
            finally:  # what is left over would be waited for at the process's end
                if isinstance(self.run.reward, Reward):
                    self.run.reward.forget()

    def _noise(self, rollouts: Rollouts, step: int, round_: int) -> Tensor:
        """[P, G], a stream of its own, so that no selection shifts another draw."""
        source = self._source(step, round_, 2)
        shape = (rollouts.groups, rollouts.group_size)
        return torch.rand(shape, generator=source).to(rollouts.mask.device)

    def _reward_noise(self, prompts: int, *indices: int) -> Noise:
        """For a reward that is drawn: of all ranks' completions, and of those this rank's [N]."""
        source = generator(self.run.seed, "reward", *indices)
        own = self.ranks.part(prompts)

        def draw(group: int) -> list[float]:
            whole = torch.rand((prompts, group), generator=source, dtype=torch.float64)
            found: list[float] = whole[own].flatten().tolist()
            return found

        return draw

    def _score(self, rollouts: Rollouts, noise: Noise) -> list[float]:
        examples = [self.examples.train[i] for i in rollouts.prompt_index.tolist()]
        verified = score(self.run, rollouts, examples, noise)
        if self.run.advantage.needs_greedy:
            rollouts.greedy_rewards = self._greedy_rewards(rollouts, examples, noise)
        return verified

    def _greedy_rewards(
        self, rollouts: Rollouts, examples: Sequence[Example], noise: Noise
    ) -> Tensor:
        """[P] rewards of the greedy completion of each prompt."""
        prompts = [self._encoded[i] for i in rollouts.prompt_index.tolist()]
        draw = Draw(self.run.seed, (), 1, greedy=True)
        greedy = sample_rollouts(self.run.sampler, self.policy, prompts, draw, self.room)
        score(self.run, greedy, examples, noise)
        assert greedy.rewards is not None
        return greedy.rewards.squeeze(1)


VERIFIED = "verified"


@lru_cache(maxsize=4)
def epoch_order(n: int, seed: int, epoch: int) -> list[int]:
    """The order of n training examples in an epoch."""
    return permutation(n, seed, "prompts", epoch)


def encode_examples(encoder: Encoder, examples: Sequence[Example]) -> list[list[int]]:
    """The tokens of each example's prompt."""
    return encoder.encode([e.prompt for e in examples])


def score(
    run: Run, rollouts: Rollouts, examples: Sequence[Example], noise: Noise | None = None
) -> list[float]:
    """Fills in the rewards [P, G] and their parts; what the task's verifier gave on the way [N],
    NaN where it did not. `noise` is for a reward that is drawn."""
    group = rollouts.group_size
    inputs = RewardInputs(
        completions=rollouts.texts,
        examples=[e for e in examples for _ in range(group)],
        task=run.task,
        lengths=rollouts.lengths.tolist(),
        truncated=rollouts.truncated.tolist(),
        max_length=run.sampler.max_new_tokens,
        tokens=rollouts.completion_tokens,
        noise=None if noise is None else partial(noise, group),
    )
    scores = run.reward(inputs)
    device = rollouts.mask.device
    rollouts.rewards = torch.tensor(scores.total, device=device).reshape(-1, group)
    rollouts.reward_parts = {
        name: torch.tensor(values, device=device).reshape(-1, group)
        for name, values in scores.parts.items()
    }
    return [math.nan] * len(rollouts) if scores.verified is None else scores.verified


def correctness(
    task: Task,
    texts: Sequence[str],
    examples: Sequence[Example],
    verified: Sequence[float] | None = None,
) -> list[bool]:
    """Whether each completion is right by the task's own verifier; what it cannot judge is not.
    It is not asked where scoring has its answer (`verified`, NaN where it has none)."""
    known = [math.nan] * len(texts) if verified is None else verified
    return [found >= CORRECT for found in verdicts(task, texts, examples, known)]


def verdicts(
    task: Task, texts: Sequence[str], examples: Sequence[Example], known: Sequence[float]
) -> list[float]:
    """What the task's verifier says of each completion, asked where `known` is NaN."""
    together = zip(texts, examples, known, strict=True)
    return [_verify(task, t, e, k) for t, e, k in together]


def _verify(task: Task, text: str, example: Example, known: float) -> float:
    if not math.isnan(known):
        return known
    try:
        return limited(lambda: task.verify(text, example), VERIFY_SECONDS)
    # a verifier of the user's must not end the run
    except (Exception, TimeLimitExceeded, SystemExit):
        return 0.0
