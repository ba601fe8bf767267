"""Held-out evaluation: greedy accuracy and unbiased pass@k."""

from __future__ import annotations

from math import comb

from grpolab.config import Run
from grpolab.policy.policy import Policy
from grpolab.sampling.base import Draw
from grpolab.tasks.base import Example, Examples
from grpolab.training.collect import correctness, encode_examples
from grpolab.training.draw import Room, sample_part
from grpolab.training.ranks import ALONE, Ranks

MAX_ROWS = 512  # completions decoded at once
EVALUATION = -1  # index of the sampling stream that no training round uses


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Unbiased estimate of the chance that one of k samples is right, from `correct` of n.

    1 − C(n−c, k)/C(n, k); source: arXiv 2107.03374.
    """
    if not 0 <= correct <= n or not 1 <= k <= n:
        raise ValueError(f"pass@{k} of {correct} right among {n} samples is undefined")
    return 1 - comb(n - correct, k) / comb(n, k)


class Evaluator:
    """The same held-out prompts, and the same noise, at every evaluation."""

    def __init__(self, run: Run, policy: Policy, examples: Examples, ranks: Ranks = ALONE) -> None:
        self.run, self.policy, self.ranks = run, policy, ranks
        self.room = Room()
        self.examples = list(examples.held_out)[: run.eval.prompts]
        self._encoded = encode_examples(policy.encoder, self.examples)

    def evaluate(self, step: int) -> dict[str, float]:
        """eval/accuracy (greedy), eval/pass@k for k = 1, 2, 4 … samples, eval/length."""
        correct, lengths = self._run(samples=1, greedy=True, step=step)
        metrics = {
            "eval/accuracy": sum(map(sum, correct)) / len(correct),
            "eval/length": sum(lengths) / len(lengths),
        }
        n = self.run.eval.samples
        if n:
            correct, _ = self._run(samples=n, greedy=False, step=step)
            for k in powers_of_two(n):
                values = [pass_at_k(n, sum(row), k) for row in correct]
                metrics[f"eval/pass@{k}"] = sum(values) / len(values)
        return metrics

    def _run(self, *, samples: int, greedy: bool, step: int) -> tuple[list[list[bool]], list[int]]:
        per_call = max(1, MAX_ROWS // samples)
        correct: list[list[bool]] = []
        lengths: list[int] = []
        for start in range(0, len(self.examples), per_call):
            chunk = slice(start, start + per_call)
            draw = Draw(self.run.seed, (EVALUATION, start), samples, greedy=greedy)
            with self.policy.whole():
                own = self._part(chunk, draw)
            for rows, sizes in self.ranks.gather(own):
                correct += [rows[i : i + samples] for i in range(0, len(rows), samples)]
                lengths += sizes
        return correct, lengths

    def _part(self, chunk: slice, draw: Draw) -> tuple[list[bool], list[int]]:
        """(right or not, length) of the completions of this rank's prompts of a chunk."""
        prompts, examples = self._encoded[chunk], self.examples[chunk]
        rollouts = sample_part(self.ranks, self.run.sampler, self.policy, prompts, draw, self.room)
        if rollouts is None:
            return [], []
        own = examples[self.ranks.part(len(examples))]
        right = self._judge(rollouts.texts, own, draw.samples)
        return right, rollouts.lengths.tolist()

    def _judge(self, texts: list[str], examples: list[Example], samples: int) -> list[bool]:
        return correctness(self.run.task, texts, [e for e in examples for _ in range(samples)])


def powers_of_two(n: int) -> list[int]:
    """1, 2, 4 … up to n, and n itself."""
    found = [1]
    while found[-1] * 2 <= n:
        found.append(found[-1] * 2)
    return found if found[-1] == n else [*found, n]
