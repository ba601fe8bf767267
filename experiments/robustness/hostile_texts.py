"""Hostile answers through every built-in reward and verifier: seconds each costs, beside its limit.

    python experiments/robustness/hostile_texts.py

Prints reward, text, seconds and the score; nan is what its time limit ended, or what it cannot
score. A reward is over its limit where it took longer than the limit and a second.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping

from grpolab.component import component
from grpolab.rewards.base import VERIFY_SECONDS, RewardInputs
from grpolab.tasks.base import Example, Task
from grpolab.training.collect import correctness

MIB = 2**20
TEXTS: dict[str, str] = {
    "10 MB of words": "the answer is 42 " * (10 * MIB // 17),
    "10 MB of one letter": "a" * (10 * MIB),
    "10 MB of numbers": "1 " * (5 * MIB),
    "control characters": "".join(map(chr, range(32))) * 3000 + "\x7f\u202e\u2028" * 1000,
    "a…a!": "a" * 50_000 + "!",
    "spaces": " " * 100_000 + "!",
    "a million digits": "9" * 10**6,
    "a million digits, boxed": "\\boxed{" + "9" * 10**6 + "}",
    "a chain of slashes": "1/" * 100_000,
    "a chain of commas": "1," * 100_000,
    "nested braces": "\\boxed{" + "{" * 50_000 + "}" * 50_000 + "}",
    "open braces": "\\boxed{" * 20_000,
    "open tags": "<think>" * 20_000 + "<answer>" * 20_000,
    "the word answer": "answer is " * 50_000,
    "\\frac, 5,000 deep": "\\boxed{" + "\\frac{1}{" * 5000 + "2" + "}" * 5001,
    "\\sqrt, 5,000 deep": "$" + "\\sqrt{" * 5000 + "2" + "}" * 5000 + "$",
    "9^{9^{9^9}}": "\\boxed{9^{9^{9^9}}}",
    "(9^9)^(9^9)": "\\boxed{(9^{99999})^{99999}}",
    "a factorial": "\\boxed{9999999!}",
    "a long sum": "\\boxed{" + "x+" * 20_000 + "1}",
    "a long product": "\\boxed{(x+1)^{99999}}",
}
ANSWER = "42"


def rewards(limit: float) -> dict[str, tuple[object, float]]:
    """{name: (reward, seconds it may take for one completion)} of all that read text."""
    from grpolab.rewards.repetition import COUNT_SECONDS
    from grpolab.rewards.text import PATTERN_SECONDS

    timed = {"time_limit": limit}
    return {
        "exact_match": (component("reward", "exact_match"), PATTERN_SECONDS),
        "numeric": (component("reward", "numeric"), PATTERN_SECONDS),
        "format": (component("reward", "format"), PATTERN_SECONDS),
        "format, (a+)+b": (component("reward", "format", pattern="(a+)+b"), PATTERN_SECONDS),
        "choice": (component("reward", "choice"), PATTERN_SECONDS),
        "repetition": (component("reward", "repetition"), COUNT_SECONDS),
        "math_verify": (component("reward", "math_verify", workers=1, **timed), limit),
        "math_verify, plain": (
            component(
                "reward", "math_verify", workers=1, plain=True, anchored=False, candidates="any",
                repair=True, **timed,
            ),
            limit,
        ),
        "task": (component("reward", "task", **timed), limit),
        "cosine_length": (component("reward", "cosine_length", **timed), limit),
    }  # fmt: skip


def tasks() -> dict[str, Task]:
    """The tasks whose verifiers need no data of others."""
    return {
        "arithmetic": component("task", "arithmetic"),
        "gsm8k": component("task", "gsm8k"),
        "inline": component("task", "inline"),
        **{
            f"jsonl, {match}": component("task", "jsonl", path="none.jsonl", match=match)
            for match in ("exact", "numeric", "contains")
        },
    }


def inputs(text: str, task: Task, answer: str = ANSWER) -> RewardInputs:
    """One completion."""
    return RewardInputs([text], [Example("6*7=", answer)], task, [1], [False], 8)


Found = tuple[str, str, float, float, float]


def measure(texts: Mapping[str, str], limit: float) -> Iterator[Found]:
    """(reward or task, text, seconds, limit, score) of each pair."""
    gsm8k = component("task", "gsm8k")
    for name, (reward, allowed) in rewards(limit).items():
        assert callable(reward)
        reward(inputs("\\boxed{1}", gsm8k))  # helper processes start
        for label, text in texts.items():
            pool = getattr(reward, "_pool", None)
            if pool is not None:
                pool.start()  # a new helper in the place of a killed one; no limit counts that
            began = time.perf_counter()
            score = reward(inputs(text, gsm8k, "B" if name == "choice" else ANSWER)).total[0]
            yield name, label, time.perf_counter() - began, allowed, score
    for name, task in tasks().items():
        for label, text in texts.items():
            began = time.perf_counter()
            right = correctness(task, [text], [Example("6*7=", ANSWER)])[0]
            seconds = time.perf_counter() - began
            yield f"verifier of {name}", label, seconds, VERIFY_SECONDS, float(right)


def main() -> None:
    """Prints the table's rows that took over half a second, and a last line for all."""
    found = []
    for row in measure(TEXTS, limit=2.0):
        found.append(row)
        name, label, seconds, allowed, score = row
        if seconds > 0.5:
            over = "  OVER" if seconds > allowed + 1 else ""
            line = f"{name:24} {label:26} {seconds:6.2f} s of {allowed:g} s  {score:g}{over}"
            print(line, flush=True)
    over_all = sum(s > a + 1 for _, _, s, a, _ in found)
    print(f"{len(found)} pairs, slowest {max(f[2] for f in found):.2f} s, {over_all} over")


if __name__ == "__main__":
    main()
