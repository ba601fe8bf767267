"""From the arms' slopes to the frames of a probe."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from grpolab.probe import measures
from grpolab.probe.gradients import Products, Slopes, products
from grpolab.probe.parts import difficulty_of, scaled, shares_of, token_weights
from grpolab.probe.passes import Passes
from grpolab.probe.records import METRICS, Counts, Probe, Reading
from grpolab.probe.request import Request
from grpolab.probe.rollouts import Pool
from grpolab.probe.source import State
from grpolab.probe.table import SharedForward, Table


def slopes_of(readings: Sequence[Reading], pool: Pool, state: State) -> list[Slopes]:
    """What the gradients are made of, with the forward pass that each arm trains through."""
    return [
        Slopes(places, r.slopes, SharedForward(r.arm.run, state.policy, state.reference))
        for r, places in zip(readings, pool.places, strict=True)
    ]


def summary(
    readings: Sequence[Reading], pool: Pool, table: Table, state: State, asked: Request, *,
    keep: bool,
) -> Probe:  # fmt: skip
    """The frames of arms that have been read."""
    passes = Passes(pool.rows)
    signal = "signal" in asked.parts
    found = products(passes, slopes_of(readings, pool, state), signal=signal, keep=keep)
    terms = found.terms.numpy()
    cosine = measures.cosines(found.gram.numpy())
    errors = measures.cosine_errors(terms, found.own.numpy())
    names = [r.arm.name for r in readings]
    rows = [_row(reading, found, j) for j, reading in enumerate(readings)]
    for j, row in enumerate(rows):
        row["cosine_to_first"], row["cosine_error"] = cosine[0, j], errors[0, j]
    parted, by_right = [], []
    if "shares" in asked.parts:
        for reading, places, added in zip(readings, pool.places, found.tokens, strict=True):
            parted += shares_of(reading, places, table, added)
            by_right += difficulty_of(reading, added)
    tokens = pd.DataFrame()
    if "tokens" in asked.parts:
        tokens = token_weights(list(readings), state, found.tokens)
    whole = len(pool.rows)
    return Probe(
        cosine=pd.DataFrame(cosine, index=pd.Index(names, name="arm"), columns=names),
        cosine_error=pd.DataFrame(errors, index=pd.Index(names, name="arm"), columns=names),
        gradients=pd.DataFrame(rows),
        tokens=tokens,
        parts=pd.DataFrame(parted),
        difficulty=pd.DataFrame(by_right),
        scaling=pd.DataFrame([p for row in rows for p in scaled(row)] if signal else []),
        staleness=pd.DataFrame(),
        step=state.step,
        passes=Counts(passes.backward_rows / whole, passes.forward_rows / whole),
        kept=found.kept,
    )


def _row(reading: Reading, products: Products, j: int) -> dict[str, Any]:
    """One arm's line of gradients.csv."""
    total = float(products.squares[j])
    terms, own = products.terms[j, :, j].numpy(), products.own[j, j].numpy()
    kept, noise = measures.signal(total, own)
    found: dict[str, Any] = {"arm": reading.arm.name, "norm": math.sqrt(total)}
    found |= {k: reading.metrics.get(name, math.nan) for k, name in METRICS.items()}
    found["contributing_groups"] = float(np.mean(terms != 0))
    found["groups"] = len(own)
    found["signal"] = kept
    found["noise"] = noise
    found["snr"] = kept / noise if noise and noise > 0 else math.nan
    found["repeat_cosine"] = kept / total if total else math.nan
    inner = float(terms[::2].sum())
    found["half_cosine"] = measures.half_cosine(total, float(products.even[j]), inner)
    return found
