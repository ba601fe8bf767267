"""The hardware's limit: a lower bound on the seconds of a step, from rates measured on the spot.

    sampling  Σ over forward passes of max(weight bytes / bandwidth, FLOPs / matmul rate):
              one pass over each prompt once (2·body·ΣS + 2·head·P FLOPs), then one pass for each
              further token of the longest completion, over the n rows that are still running
              (2·(body + head)·n FLOPs at the rate measured at N rows).
    update    6·body·(ΣS + Σ(L − 1)) + 6·head·ΣL FLOPs: forward and twice that backward, prompts
              once for each group, no padding, the head at completion positions alone; then the
              optimizer: weights, gradients and two moments read, weights and moments written,
              7 float32 numbers for each parameter, over the bandwidth.
    step      both.

S are the tokens of each of P prompts, L those of each of N completions; body and head are numbers
of parameters in matrix multiplications. Attention itself, norms, softmax, noise and the reading of
the KV cache are left out: what is left is work that no dense model can avoid, so a share of 1 is
out of reach. Weights count as read anew in every pass, as they are where they exceed the cache; the
embedded model's do not, and stay bound by their FLOPs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

ADAMW_NUMBERS = 7  # read w, g, m, v; write w, m, v
MASTER_BYTES = 4


@dataclass(frozen=True)
class Sizes:
    """Numbers of parameters."""

    body: int
    """In matrices other than the embeddings and the head."""
    head: int
    """In the language-model head, tied or not."""
    total: int
    """All that are trained, tied ones once."""


@dataclass(frozen=True)
class Rates:
    """What the machine does: bytes per second, and FLOP per second in the dtype."""

    bandwidth: float
    decode_body: float
    """At one token for each of the N rows."""
    decode_head: float
    update_body: float
    """At the update's tokens, unpadded."""
    update_head: float
    weight_bytes: int
    """Of a weight in the dtype that is sampled in."""


def sampling_seconds(
    sizes: Sizes, rates: Rates, prompts: Sequence[int], lengths: Sequence[int]
) -> float:
    """Of prompts [P] and completions [N], tokens each."""
    reading = (sizes.body + sizes.head) * rates.weight_bytes / rates.bandwidth
    prefill = 2 * sizes.body * sum(prompts) / rates.update_body
    prefill += 2 * sizes.head * len(prompts) / rates.decode_head
    row = 2 * sizes.body / rates.decode_body + 2 * sizes.head / rates.decode_head
    seconds = max(reading, prefill)
    for done in range(1, max(lengths, default=0)):
        running = sum(length > done for length in lengths)
        seconds += max(reading, running * row)
    return seconds


def update_seconds(
    sizes: Sizes, rates: Rates, prompts: Sequence[int], lengths: Sequence[int]
) -> float:
    """Of one update on the same."""
    body = 6 * sizes.body * update_tokens(prompts, lengths) / rates.update_body
    head = 6 * sizes.head * sum(lengths) / rates.update_head
    return body + head + sizes.total * ADAMW_NUMBERS * MASTER_BYTES / rates.bandwidth


def update_tokens(prompts: Sequence[int], lengths: Sequence[int]) -> int:
    """Tokens that an update has to run: a completion's last is predicted, not read."""
    return sum(prompts) + sum(max(0, length - 1) for length in lengths)


def bounds(
    sizes: Sizes, rates: Rates, steps: Sequence[Mapping[str, Any]]
) -> list[dict[str, float]]:
    """{sample, update, step} seconds of each raw step."""
    found = []
    for step in steps:
        tokens = step["prompt_lengths"], step["lengths"]
        sample = sampling_seconds(sizes, rates, *tokens)
        update = update_seconds(sizes, rates, *tokens)
        found.append({"sample": sample, "update": update, "step": sample + update})
    return found
