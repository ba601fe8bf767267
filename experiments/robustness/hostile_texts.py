"""Hostile answers through every built-in reward and verifier: seconds each costs, beside its limit.

    python experiments/robustness/hostile_texts.py [WORD …]

Words keep the rewards and verifiers with one of them in their name: task cosine_length verifier
reasoning_gym. Prints a line for each with its slowest text (nan is what its time limit ended, or
what it cannot score), and those that took longer than the limit and a second.

The limits are by the clock, which on a crowded machine runs while others compute. So two more times
are read: the processor's of this process, and how long the kernel had it wait for one. What the
clock says without that wait is what the limit could do something about; by it a pair is judged, and
the exit code is 1 if one is over. The helpers of math_verify are processes of their own: their work
and their waits are not among these.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path

from grpolab.component import component
from grpolab.rewards.base import VERIFY_SECONDS, RewardInputs, Scores
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


def tasks() -> dict[str, tuple[Task, Example]]:
    """{name: (task, example)} of those whose verifiers need no data of others."""
    plain: dict[str, Task] = {
        "arithmetic": component("task", "arithmetic"),
        "gsm8k": component("task", "gsm8k"),
        "inline": component("task", "inline"),
        **{
            f"jsonl, {match}": component("task", "jsonl", path="none.jsonl", match=match)
            for match in ("exact", "numeric", "contains")
        },
    }
    example = Example("6*7=", ANSWER)
    return {name: (task, example) for name, task in plain.items()} | puzzles()


def puzzles() -> dict[str, tuple[Task, Example]]:
    """Every generator of Reasoning Gym that is allowed, its verifier given the whole answer."""
    from reasoning_gym.factory import DATASETS

    from grpolab.tasks.reasoning_gym import REFUSED

    found = {}
    for name in sorted(set(DATASETS) - set(REFUSED) - {"composite"}):
        task = component(
            "task", "reasoning_gym", dataset=name, extract="full", train_size=1, held_out_size=0
        )
        try:
            found[f"reasoning_gym, {name}"] = (task, task.load().train[0])
        except Exception as error:  # generators that need settings or data of their own
            print(f"left out: {name} ({type(error).__name__})")
    return found


def inputs(text: str, task: Task, answer: str = ANSWER) -> RewardInputs:
    """One completion."""
    return RewardInputs([text], [Example("6*7=", answer)], task, [1], [False], 8)


@dataclass(frozen=True)
class Found:
    """What one text cost one reward or verifier."""

    name: str
    text: str
    seconds: float
    processor: float
    waited: float
    """Seconds that this process was ready to run and was not let."""
    limit: float
    score: float

    @property
    def over(self) -> bool:
        """Whether it took longer than its limit by the clock, for whatever reason."""
        return self.seconds > self.limit + 1

    @property
    def broken(self) -> bool:
        """Whether its limit did not hold while this process had a processor."""
        return self.seconds - self.waited > self.limit + 1

    def __str__(self) -> str:
        return (
            f"{self.name:36} {self.text:24} {self.seconds:6.2f} s of {self.limit:g} s, own work "
            f"{self.processor:5.2f} s, waited {self.waited:5.2f} s, score {self.score:g}"
        )


def cost(name: str, text: str, limit: float, call: Callable[[], float]) -> Found:
    """Runs it once."""
    began, worked, before = time.perf_counter(), time.process_time(), queued()
    score = call()
    seconds, processor = time.perf_counter() - began, time.process_time() - worked
    return Found(name, text, seconds, processor, queued() - before, limit, score)


def queued() -> float:
    """Seconds that this thread has been ready to run while others ran; 0 where no kernel tells."""
    try:
        return int(Path("/proc/thread-self/schedstat").read_text().split()[1]) / 1e9
    except (OSError, IndexError, ValueError):
        return 0.0


def measure(texts: Mapping[str, str], limit: float, words: Sequence[str] = ()) -> Iterator[Found]:
    """Each pair of a reward or verifier, with one of the words in its name, and a text."""

    def wanted(name: str) -> bool:
        return not words or any(word in name for word in words)

    gsm8k = component("task", "gsm8k")
    for name, (reward, allowed) in rewards(limit).items():
        if not wanted(name):
            continue
        assert callable(reward)
        reward(inputs("\\boxed{1}", gsm8k))  # helper processes start
        for label, text in texts.items():
            pool = getattr(reward, "_pool", None)
            if pool is not None:
                pool.start()  # a new helper in the place of a killed one; no limit counts that
            given = inputs(text, gsm8k, "B" if name == "choice" else ANSWER)
            yield cost(name, label, allowed, partial(scored, reward, given))
    named = {f"verifier of {name}": found for name, found in tasks().items()}
    for name, (task, example) in named.items():
        for label, text in texts.items() if wanted(name) else ():
            yield cost(name, label, VERIFY_SECONDS, partial(judged, task, text, example))


def scored(reward: Callable[[RewardInputs], Scores], given: RewardInputs) -> float:
    """The score of one completion."""
    return reward(given).total[0]


def judged(task: Task, text: str, example: Example) -> float:
    """1 where the verifier calls a text right."""
    return float(correctness(task, [text], [example])[0])


def main(words: Sequence[str] = ()) -> int:
    """Prints each one's slowest text, those over their limit, and a last line for all; 1 if a limit
    did not hold."""
    began = time.perf_counter()
    found: list[Found] = []
    for _, rows in groupby(measure(TEXTS, limit=2.0, words=words), key=lambda row: row.name):
        own = list(rows)
        print(max(own, key=lambda row: row.seconds), flush=True)
        for row in own:
            if row.over:
                print(f"  {'BROKEN' if row.broken else 'KEPT WAITING'}: {row}", flush=True)
        found += own
    over, broken = sum(row.over for row in found), sum(row.broken for row in found)
    slowest = max(found, key=lambda row: row.seconds - row.waited)
    print(
        f"{len(found)} pairs in {time.perf_counter() - began:.0f} s; {over} over by the clock, "
        f"{broken} of them without waiting for a processor; the longest without waiting: "
        f"{slowest.seconds - slowest.waited:.2f} s of {slowest.limit:g} s, the most own work: "
        f"{max(row.processor for row in found):.2f} s"
    )
    return int(broken > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
