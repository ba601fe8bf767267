"""Shares of a gradient by difficulty, length, sign and entropy, against autograd on each part."""

from __future__ import annotations

import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from grpolab.config import Run, bind_run
from grpolab.probe.arms import Arm
from grpolab.probe.parts import difficulty_of
from grpolab.probe.records import Reading
from grpolab.probe.session import probe
from grpolab.rollouts import Rollouts
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.preflight import check
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer

BASE = (
    "hardware.device=cpu", "hardware.threads=1", "tracking=jsonl", "prompts_per_step=6",
    "sampler.group_size=8", "sampler.max_new_tokens=8", "eval.every=0", "eval.prompts=2",
    "eval.samples=0", "steps=3", "clip=none",
)  # fmt: skip


def by_hand(run: Run, folder: Path) -> dict[tuple[str, str], float]:
    """⟨gradient of the part's tokens alone, whole gradient⟩ / |whole|², with r = 1 and the mean
    over tokens written out: −Σ_t A·log p_t / number of tokens."""
    ready = check(run)
    trainer = Trainer(run, ready.encoder, ready.examples, RunFolder(folder))
    rollouts = trainer.collector.collect(0).rollouts
    advantages = trainer.updater.advantages(rollouts, None).reshape(-1, 1)
    part = trainer.updater.forward.part(
        rollouts, torch.arange(len(rollouts)), rollouts.mask.shape[1]
    )
    parameters = list(trainer.policy.trainable().values())

    def gradient(chosen: Tensor) -> Tensor:
        per_token = -advantages * trainer.updater.forward.logps(part).logps / rollouts.mask.sum()
        loss = torch.where(chosen & rollouts.mask, per_token, 0.0).sum()
        grads = torch.autograd.grad(loss, parameters, allow_unused=True)
        return torch.cat([g.flatten() for g in grads if g is not None]).double()

    whole = gradient(rollouts.mask)
    entropy = trainer.updater.forward.logps(part).entropy.detach()
    parts = chosen_by_hand(rollouts, advantages, entropy)
    return {k: float(gradient(c) @ whole / (whole @ whole)) for k, c in parts.items()}


def chosen_by_hand(
    rollouts: Rollouts, advantages: Tensor, entropy: Tensor
) -> dict[tuple[str, str], Tensor]:
    """{(kind, part): [N, T] its tokens}, one completion and one token after the other."""
    assert rollouts.rewards is not None
    rewards, lengths = rollouts.rewards.tolist(), rollouts.lengths.tolist()
    rates = [statistics.mean(own) for own in rewards for _ in own]
    middle_rate, middle_length = statistics.median_low(rates), statistics.median_low(lengths)
    numbers = [float(entropy[n, t]) for n in range(len(lengths)) for t in range(int(lengths[n]))]
    low, high = np.quantile(numbers, [1 / 3, 2 / 3])
    found: dict[tuple[str, str], Tensor] = {}
    for n in range(len(rollouts)):
        a = float(advantages[n])
        sign = "above 0" if a > 0 else "below 0" if a < 0 else "0"
        labels = [
            ("difficulty", "hard" if rates[n] <= middle_rate else "easy"),
            ("length", "short" if lengths[n] <= middle_length else "long"),
            ("advantage", sign),
        ]
        for t in range(int(lengths[n])):
            e = float(entropy[n, t])
            level = "low" if e <= low else "high" if e > high else "middle"
            for key in (*labels, ("entropy", level)):
                empty = torch.zeros_like(rollouts.mask)
                found.setdefault(key, empty)[n, t] = True
    return found


def test_shares_are_those_of_autograd_on_each_part(tmp_path: Path) -> None:
    run = bind_run(expand(parse_command(list(BASE))).jobs[0].raw)
    wanted = by_hand(run, tmp_path)
    parts = probe(["clip=none"], overrides=BASE).parts
    found = {(k, p): s for k, p, s in parts[["kind", "part", "share"]].itertuples(index=False)}
    assert wanted.keys() <= found.keys()
    assert {kind for kind, _ in wanted} == {"difficulty", "length", "advantage", "entropy"}
    for key, share in found.items():
        assert share == pytest.approx(wanted.get(key, 0.0), abs=2e-5), key
    # the parts of a kind are all of it, and no kind is one part alone
    assert sum(s for (kind, _), s in wanted.items() if kind == "entropy") == pytest.approx(1)
    assert sum(abs(s) > 0.02 for (kind, _), s in wanted.items() if kind == "difficulty") == 2


def by_rewards(rewards: list[list[float]], advantages: list[list[float]]) -> Reading:
    """What an arm with these advantages makes of completions of one token."""
    run = bind_run(expand(parse_command(list(BASE))).jobs[0].raw)
    one = torch.ones(sum(map(len, rewards)), 1, dtype=torch.long)
    rollouts = Rollouts(
        one, one[:, 0], one, one.bool(), len(rewards[0]), torch.arange(len(rewards)),
        torch.zeros(len(one), dtype=torch.bool), rewards=torch.tensor(rewards),
        advantages=torch.tensor(advantages),
    )  # fmt: skip
    return Reading(Arm("a", run), rollouts, 0.0)


def test_a_wrong_answer_stays_wrong_where_the_right_ones_are_in_groups_left_out() -> None:
    reading = by_rewards([[0.0, 0.0], [1.0, math.nan]], [[-1.0, -3.0], [1.0, 0.0]])
    (row,) = difficulty_of(reading, torch.tensor([[1.0], [1.0], [2.0], [0.0]]))
    assert (row["right"], row["groups"]) == (0, 1)
    assert (row["toward"], row["away"]) == (0, -2)
    assert row["share"] == 0.5


def test_without_a_whole_group_nothing_is_told_by_right_answers() -> None:
    reading = by_rewards([[0.0, math.nan], [1.0, math.nan]], [[-1.0, 0.0], [1.0, 0.0]])
    assert difficulty_of(reading, torch.ones(4, 1)) == []
