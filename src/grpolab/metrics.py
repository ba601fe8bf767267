"""Every metric a run logs: its name, its definition, and how it is read. The one list of them.

The run refuses to log a name that is not here, and the analysis takes labels, captions and
directions from here. `<part>` and the like stand for one path segment.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Literal

Better = Literal["higher", "lower", "neither"]


@dataclass(frozen=True)
class Metric:
    """One logged number per step."""

    name: str
    definition: str
    label: str = ""
    """Axis label; the name where empty."""
    better: Better = "neither"
    bounded: bool = False
    """Values lie in [0, 1]."""
    every_step: bool = True
    """False for evaluations, which are sparse and never smoothed."""

    @property
    def in_a_sentence(self) -> str:
        """The label within a sentence: KL stays KL."""
        capitals = self.label[:2].isupper()
        return self.label if capitals else self.label[:1].lower() + self.label[1:]

    @property
    def higher_is_better(self) -> bool:
        return self.better != "lower"


def _share(name: str, definition: str, better: Better = "neither") -> Metric:
    return Metric(name, definition, better=better, bounded=True)


METRICS: tuple[Metric, ...] = (
    # reward: scores before any KL, NaN (unscorable) left out, all groups that were sampled
    Metric(
        "reward/mean",
        "mean reward of the completions sampled for training at that step",
        "Mean reward",
        better="higher",
    ),
    Metric("reward/std", "standard deviation of the rewards over the batch"),
    Metric("reward/<part>", "mean of one part of a mixture, before its weight", better="higher"),
    _share("reward/zero_std_share", "share of groups whose scored rewards are all equal", "lower"),
    _share("reward/unscorable_share", "share of completions that could not be scored", "lower"),
    # held-out evaluation
    Metric(
        "eval/accuracy",
        "share of correct answers on the held-out evaluation prompts",
        "Eval accuracy",
        better="higher",
        bounded=True,
        every_step=False,
    ),
    Metric(
        "eval/pass@<k>",
        "share of evaluation prompts solved by at least one of <k> samples (unbiased)",
        "Eval pass@<k>",
        better="higher",
        bounded=True,
        every_step=False,
    ),
    Metric("eval/length", "mean tokens of a greedy evaluation completion", every_step=False),
    # policy: over the valid tokens of all updates of the batch
    Metric("policy/entropy", "mean entropy of the policy at the sampled positions, nats"),
    Metric("policy/ratio_mean", "mean of r = π/π_old (d clamped to ±20)"),
    Metric("policy/ratio_std", "standard deviation of r"),
    Metric("policy/ratio_max", "largest r"),
    _share("policy/ess", "effective sample size of r as a share: mean(r)² / mean(r²)"),
    # clip: shares of valid tokens, measured before any clamp
    _share("clip/low", "share of tokens at which the lower bound changes the gradient"),
    _share("clip/high", "share of tokens at which the upper bound changes the gradient"),
    _share("clip/share", "share of tokens at which either bound does"),
    _share("clip/positive", "share of tokens that are clipped and have A > 0"),
    _share("clip/negative", "share of tokens that are clipped and have A < 0"),
    _share("clip/clamped", "share of tokens whose |log-ratio| exceeds 20, where exp is clamped"),
    _share("clip/dropped", "share of tokens that a token mask drops from the policy loss"),
    Metric("clip/<name>", "what a policy loss measures besides"),
    # KL per token, over the valid tokens of all updates
    Metric("kl/ref_k1", "mean of D = log π − log π_ref"),
    Metric("kl/ref_k2", "mean of D²/2"),
    Metric("kl/ref_k3", "mean of exp(−D) + D − 1"),
    Metric("kl/old_k3", "the same against the policy that generated the batch"),
    Metric("kl/sampler_k3", "the same between the trainer's log-probs and the sampler's own"),
    Metric("kl/beta", "weight of the KL at that step"),
    # correction
    Metric("correction/mean", "mean of the importance weight trainer/sampler before any bound"),
    Metric("correction/std", "its standard deviation"),
    Metric("correction/min", "the smallest"),
    Metric("correction/max", "the largest"),
    _share("correction/clipped_share", "share of tokens whose weight a bound changed"),
    # advantage
    Metric("advantage/std", "standard deviation of the advantages"),
    Metric("advantage/abs_max", "largest |A|"),
    Metric(
        "advantage/abs_at_<k>_of_<g>",
        "mean |A| in the groups with <k> of <g> right answers, where rewards take two values",
    ),
    # length in tokens, the end token included
    Metric("length/mean", "mean tokens of a completion"),
    Metric("length/max", "tokens of the longest completion"),
    Metric("length/correct", "mean tokens of the correct completions"),
    Metric("length/wrong", "mean tokens of the wrong ones"),
    _share("length/truncated_share", "share of completions that hit the token limit", "lower"),
    # loss: the mean over the updates of the batch
    Metric("loss/policy", "aggregated policy loss"),
    Metric("loss/kl", "aggregated KL in the loss, before β"),
    Metric("loss/total", "policy + β·KL"),
    # optimizer
    Metric("optim/grad_norm", "gradient norm before clipping, mean over the updates"),
    Metric("optim/lr", "learning rate"),
    Metric("optim/skipped", "updates skipped so far for a non-finite gradient", better="lower"),
    Metric("optim/updates", "optimizer updates made on the batch"),
    # replay
    Metric("replay/size", "groups in the buffer"),
    _share("replay/used_share", "share of the batch's groups that came from the buffer"),
    Metric("replay/age", "mean age in steps of the replayed groups"),
    # cost
    Metric("tokens/generated", "tokens sampled for training so far"),
    Metric("tokens/trained", "valid tokens in the updates of the step"),
    _share("tokens/contributing_share", "share of them with an advantage other than 0", "higher"),
    Metric("time/sample", "seconds of the step spent sampling", better="lower"),
    Metric("time/score", "seconds spent on rewards", better="lower"),
    Metric("time/update", "seconds spent on log-probs and updates", better="lower"),
    Metric("time/step", "seconds of the step", better="lower"),
    Metric("time/eval", "seconds of the evaluation", better="lower", every_step=False),
    Metric("time/wall", "seconds of the run so far", better="lower"),
    Metric(
        "speed/tokens_per_second",
        "tokens sampled per second of the step, by all ranks",
        better="higher",
    ),
    Metric("memory/peak_gib", "peak memory so far, of the rank with most", better="lower"),
    Metric(
        "memory/microbatch_tokens",
        "tokens that a micro-batch may hold; running out of memory halves it",
    ),
)


@cache
def find(name: str) -> Metric | None:
    """The metric of a logged name, exact names first; None where there is none."""
    for metric in METRICS:
        if metric.name == name:
            return metric
    for metric in METRICS:
        pattern, n = re.subn(r"<(\w+)>", r"(?P<\1>.+)", re.escape(metric.name))
        matched = re.fullmatch(pattern, name) if n else None
        if matched:
            return _filled(metric, name, matched.groupdict())
    return None


def _filled(metric: Metric, name: str, holes: Mapping[str, str]) -> Metric:
    def fill(text: str) -> str:
        for hole, value in holes.items():
            text = text.replace(f"<{hole}>", value)
        return text

    return Metric(
        name,
        fill(metric.definition),
        fill(metric.label),
        metric.better,
        metric.bounded,
        metric.every_step,
    )


def checked(metrics: Mapping[str, float]) -> dict[str, float]:
    """The metrics of a step, every name one of this list.

    Raises:
        KeyError: a name that is not.
    """
    unknown = sorted(n for n in metrics if find(n) is None)
    if unknown:
        raise KeyError(f"metrics without a definition in grpolab.metrics: {', '.join(unknown)}")
    return dict(metrics)
