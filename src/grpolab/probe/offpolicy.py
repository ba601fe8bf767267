"""The off-policy view: every arm's gradient on a batch that the policy has moved on from."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from grpolab.probe import measures, stale
from grpolab.probe.records import METRICS, Reading
from grpolab.probe.rollouts import Pool, make_pool, make_table
from grpolab.probe.source import State
from grpolab.probe.staleness import Staleness
from grpolab.probe.table import Reader, SharedForward, Table, TableForward
from grpolab.tasks.base import Examples

Gram = Callable[[Sequence[Reading], Pool, Table], measures.Array]
"""[J, J] inner products of the gradients that the next update would have, by a table of log-probs;
fills in what each reading measures on the way."""


@dataclass
class OffPolicy:
    """The frames of the view."""

    staleness: pd.DataFrame
    ratios: pd.DataFrame


def off_policy(
    readings: Sequence[Reading], asked: Staleness, table: Table, places: Sequence[Tensor],
    forward: SharedForward, state: State, examples: Examples, gram: Gram,
) -> OffPolicy:  # fmt: skip
    """Looks again after further updates of the first arm, which change the policy.

    The truth is the first arm's gradient on fresh completions of the same prompts, drawn from the
    policy as it is then, its expectation over completions estimated without bias from several
    batches: ⟨g, E T⟩ from the mean, ‖E T‖² from the inner products between different batches.

    Args:
        table: of the log-probs before any update, by the places [N] of each reading's rows.
        gram: see `Gram`.
    """
    first = readings[0]
    for reading, own in zip(readings, places, strict=True):
        width = reading.rollouts.mask.shape[1]
        reading.rollouts.old_logps = table.now["logps"][own, :width]
    weighted = replace(first, arm=stale.unbiased_of(first.arm), rollouts=replace(first.rollouts))
    learner = _learner(asked, first, state, examples)
    again = stale.Again(first.arm.run, state.policy, examples, {})
    records, ratios = [], {}
    for count in sorted(set(asked.updates)):
        learner.to(count, replace(first.rollouts), state.step, first.beta)
        fresh = [_fresh(again, first, (state.step, 0, count, i)) for i in range(asked.fresh)]
        everyone = [weighted, *readings, *fresh]
        pool = make_pool([r.rollouts for r in everyone])
        now = make_table(
            forward.run, state.policy, state.reference, pool.rows, set(table.now),
            ref=bool(table.ref),
        )  # fmt: skip
        _score_fresh(fresh, now, pool.places[1 + len(readings) :], state)
        inner = gram(everyone, pool, now)
        rollouts = first.rollouts
        assert rollouts.old_logps is not None
        logps = now.logps_of(pool.places[1], rollouts.mask.shape[1])
        ratios[count] = (logps - rollouts.old_logps, rollouts.mask)
        ess = stale.sequence_ess(logps, rollouts.old_logps, rollouts.mask)
        for record in _records(readings, inner, asked.fresh):
            records.append({"updates": count, **record, "sequence_ess": ess})
    return OffPolicy(pd.DataFrame(records), stale.ratio_histogram(ratios))


def _learner(asked: Staleness, first: Reading, state: State, examples: Examples) -> stale.Learner:
    if asked.by == "fresh":
        return stale.FreshLearner(
            first.arm, state.policy, state.reference, examples, state.baseline
        )
    return stale.Learner(first.arm, state.policy, state.reference)


def _fresh(again: stale.Again, first: Reading, key: tuple[int, ...]) -> Reading:
    """The first arm on a batch drawn anew; all of it, whatever the arm selects."""
    rollouts = again.again(first.rollouts.prompt_index.tolist(), key)
    return Reading(stale.unbiased_of(first.arm), rollouts, first.beta)


def _score_fresh(
    fresh: Sequence[Reading], table: Table, places: Sequence[Tensor], state: State
) -> None:
    """Log-probs of the policy as it is, and the advantages of fresh batches."""
    for reading, own in zip(fresh, places, strict=True):
        run = reading.arm.run
        reader = Reader(run, state.policy, TableForward(run, state.policy, table, own))
        reader.score_logps(reading.rollouts, reading.beta)
        reading.rollouts.advantages = reader.advantages(reading.rollouts, state.baseline)


def _records(
    readings: Sequence[Reading], inner: measures.Array, fresh: int
) -> list[dict[str, Any]]:
    """A row for each reading, from inner products in the order weighted, readings, fresh."""
    cosine = measures.cosines(inner)
    after = 1 + len(readings)
    truth = Truth.of(inner[after:, after:]) if fresh else None
    rows = []
    for j, reading in enumerate(readings, start=1):
        size = math.sqrt(max(inner[j, j], 0.0))
        row = {
            "arm": reading.arm.name, "norm": size, "cosine_to_unbiased": cosine[0, j],
            "cosine_to_first": cosine[1, j], "cosine_to_true": math.nan,
            "cosine_to_true_error": math.nan, "length_along_true": math.nan,
            "fresh_cosine": math.nan,
        }  # fmt: skip
        if truth is not None:
            row |= truth.seen_from(size, float(inner[j, after:].mean()))
            row["cosine_to_true_error"] = cosine_error(
                size, inner[j, after:], inner[after:, after:]
            )
        rows.append(row | {k: reading.metrics.get(n, math.nan) for k, n in METRICS.items()})
    return rows


@dataclass(frozen=True)
class Truth:
    """E T of M independent batches' gradients T, by their inner products."""

    square: float
    """‖E T‖²: the mean of ⟨T_i, T_j⟩ over i ≠ j, NaN for a single batch. Where noise dominates it
    may be below 0, and there is no direction to compare with."""
    single: float
    """E‖T‖² of one batch."""

    @classmethod
    def of(cls, inner: measures.Array) -> Truth:
        """From the inner products [M, M]."""
        count, own = len(inner), float(np.trace(inner))
        between = (float(inner.sum()) - own) / (count * (count - 1)) if count > 1 else math.nan
        return cls(between, own / count)

    def seen_from(self, size: float, along: float) -> dict[str, float]:
        """Of a gradient g of norm `size` with ⟨g, E T⟩ = `along`: its cosine to E T, its length
        along E T as a share of ‖E T‖, and the cosine that a fresh batch has to E T."""
        if not self.square > 0:
            return {}
        root = math.sqrt(self.square)
        return {
            "cosine_to_true": along / (size * root) if size else math.nan,
            "length_along_true": along / self.square,
            "fresh_cosine": root / math.sqrt(self.single),
        }


def cosine_error(size: float, along: measures.Array, inner: measures.Array) -> float:
    """Jackknife standard error of `cosine_to_true` over the fresh batches; NaN where one left out
    takes the signal with it.

    Args:
        size: ‖g‖.
        along: [M] ⟨g, T_i⟩.
        inner: [M, M] ⟨T_i, T_j⟩.
    """
    found = []
    for i in range(len(along)):
        rest = np.delete(np.delete(inner, i, 0), i, 1)
        seen = Truth.of(rest).seen_from(size, float(np.delete(along, i).mean()))
        found.append(seen.get("cosine_to_true", math.nan))
    values = np.array(found)
    count = len(values)
    return float(np.sqrt((count - 1) / count * ((values - values.mean()) ** 2).sum()))
