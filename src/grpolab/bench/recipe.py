"""From a benchmark's work to a run's configuration, its prompts and its rewards: the one
description that both sides read."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from grpolab.bench.cases import Work
from grpolab.bench.shapes import shaped_model
from grpolab.component import ConfigError
from grpolab.config import COMPONENTS, SETTINGS, Run, bind_run
from grpolab.policy.policy import Encoder
from grpolab.tasks.base import Example, Examples
from grpolab.training.collect import epoch_order

DEFAULTS = {
    "task": "arithmetic", "sampler": "static", "selection": "all", "reward": "task",
    "advantage": "group_zscore", "reference": "frozen", "kl": "none", "clip": "ppo",
    "aggregation": "token_mean", "correction": "none", "design": "product",
    "search": "none",
}  # fmt: skip
ADDITION = {
    "template": "What is {a} {op} {b}? Answer with the number.",
    "digits_min": 1, "digits_max": 1, "train_size": 80, "held_out_size": 20,
}  # fmt: skip
"""The task of experiment=smollm2_addition."""
FILLER_PROMPTS = 64
WORDS = "one two three four five six seven eight"


def bind(work: Work, overrides: Mapping[str, Any], folder: Path) -> Run:
    """The run that does this work.

    Args:
        overrides: config key → value. A group's name alone (`sampler`) picks its component. Those
            of model, task, optimizer.lr and sampler.temperature hold for TRL as well.
        folder: where a model made of shapes is written.

    Raises:
        ConfigError: a key or a value that the configuration does not have.
    """
    raw: dict[str, Any] = {group: {"name": DEFAULTS[group]} for group in COMPONENTS}
    raw |= {group: {} for group in SETTINGS}
    raw |= {"seed": work.seed, "steps": work.steps + 1, "prompts_per_step": work.prompts}
    raw["sampler"] |= {"group_size": work.group_size, "max_new_tokens": work.max_new_tokens}
    raw["optimizer"] |= {"lr": work.lr}
    raw["hardware"] |= {"device": work.device, "dtype": work.dtype, "threads": work.threads}
    raw["tracking"] |= {"mlflow": work.mlflow}
    raw["model"], raw["task"] = model(work, folder), raw["task"] | task(work)
    if work.rewards == "synthetic":
        function = f"{__name__}:synthetic"
        raw["reward"] = {"name": "python", "function": function, "batched": True}
    for key, value in overrides.items():
        place(raw, key, value)
    return bind_run(raw)


def model(work: Work, folder: Path) -> dict[str, Any]:
    """The settings of `model`."""
    if work.model.startswith("qwen2_"):
        made = folder / work.model
        name = shaped_model(made, work.model.removeprefix("qwen2_"), work.shrink)
        return {"name": name, "random_weights": True}
    plain = {"template": "plain"} if work.prompt_tokens else {}
    return {"name": work.model, **plain}


def task(work: Work) -> dict[str, Any]:
    """The settings of the arithmetic task that makes the prompts."""
    return dict(ADDITION) if work.model.startswith("smollm2") else {}


def place(raw: dict[str, Any], key: str, value: Any) -> None:
    """Puts one override where its key says."""
    group, _, rest = key.partition(".")
    if not rest:
        raw[group] = {"name": value} | {
            k: v for k, v in raw[group].items() if k != "name" and group == "sampler"
        }
        return
    node = raw[group]
    *parents, last = rest.split(".")
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise ConfigError(f"{key}: {parent} holds no settings; allowed: a setting's key.")
    node[last] = value


def synthetic(completions: Sequence[str], examples: Sequence[Example]) -> list[float]:
    """Rewards in [0, 1) that hold for any text and are never all alike within a group: a hash of
    the text and of its place in the batch."""
    digests = [
        hashlib.sha256(f"{place}:{text}".encode(errors="replace")).digest()
        for place, text in enumerate(completions)
    ]
    return [int.from_bytes(d[:6], "big") / 2**48 for d in digests]


def load_examples(run: Run, work: Work, encoder: Encoder) -> Examples:
    """The task's prompts, or filler of exactly `prompt_tokens` tokens."""
    if work.prompt_tokens is None:
        found: Examples = run.task.load()
        return found
    texts = [filler(encoder, work.prompt_tokens, i) for i in range(FILLER_PROMPTS)]
    meta = {"a": 0, "b": 0, "operation": "add"}
    return Examples([Example(t, "0", meta) for t in texts], [], f"filler {asdict(work)}")


def filler(encoder: Encoder, tokens: int, index: int) -> str:
    """A text of so many tokens, another for each index."""
    words = WORDS.split()
    separator = " " if len(encoder.encode([WORDS])[0]) == len(words) else ""
    if not separator:  # a vocabulary of characters
        words = list("12345678")
    places = (index // len(words) ** (place % 3) + place for place in range(tokens))
    text = separator.join(words[place % len(words)] for place in places)
    found = len(encoder.encode([text])[0])
    if found != tokens:
        raise ConfigError(
            f"prompt_tokens: {tokens} given, but the tokenizer of {encoder.settings.name} makes "
            f"{found} tokens of as many words; allowed: null with this model."
        )
    return text


def step_examples(run: Run, examples: Examples, steps: int) -> list[Example]:
    """The prompts of `steps` steps in the order in which our collector draws them."""
    n = len(examples.train)
    places = range(steps * run.prompts_per_step)
    return [examples.train[epoch_order(n, run.seed, p // n)[p % n]] for p in places]
