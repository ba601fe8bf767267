"""Parts of an arm's gradient, and what it does to single tokens."""

from __future__ import annotations

import math
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from grpolab.probe.records import Reading
from grpolab.probe.source import State
from grpolab.probe.table import Table


def pieces_of(
    reading: Reading, flat: Tensor, places: Tensor, table: Table
) -> list[tuple[tuple[str, str, str], Tensor, Tensor]]:
    """((arm, kind, part), places, outputs' weights [N, D]): an arm's slopes cut by the difficulty
    of the prompt, the length of the completion, the sign of the advantage, the token's entropy."""
    rollouts = reading.rollouts
    width = flat.shape[1] // sum(
        math.prod(v.shape[2:]) for v in reading.slopes.values()
    )  # completion tokens, padded
    entropy = table.now["entropy"][places][:, :width].double().cpu()
    mask = torch.zeros(len(rollouts), width, dtype=torch.bool)
    mask[:, : rollouts.mask.shape[1]] = rollouts.mask.cpu()
    assert rollouts.rewards is not None
    rewards = rollouts.rewards.double().cpu()
    ease = rewards.nanmean(dim=1).repeat_interleave(rollouts.group_size)
    lengths = rollouts.lengths.double().cpu()
    sign = torch.zeros(len(rollouts), width)
    advantages = rollouts.advantage_rows().float().cpu()
    sign[:, : rollouts.mask.shape[1]] = advantages.expand(-1, rollouts.mask.shape[1]).sign()
    low, high = torch.quantile(entropy[mask], torch.tensor([1 / 3, 2 / 3], dtype=torch.float64))
    hard, short = ease <= ease.median(), lengths <= lengths.median()
    cuts = {
        ("difficulty", "hard"): hard.unsqueeze(1), ("difficulty", "easy"): ~hard.unsqueeze(1),
        ("length", "short"): short.unsqueeze(1), ("length", "long"): ~short.unsqueeze(1),
        ("advantage", "above 0"): sign > 0, ("advantage", "below 0"): sign < 0,
        ("advantage", "0"): sign == 0,
        ("entropy", "low"): entropy <= low, ("entropy", "high"): entropy > high,
        ("entropy", "middle"): (entropy > low) & (entropy <= high),
    }  # fmt: skip
    found = []
    for (kind, part), chosen in cuts.items():
        shape = chosen.expand(-1, width)
        parts = [
            shape.repeat_interleave(math.prod(v.shape[2:]), dim=1) for v in reading.slopes.values()
        ]
        found.append(((reading.arm.name, kind, part), places, flat * torch.cat(parts, dim=1)))
    return found


def scaled(row: dict[str, Any]) -> list[dict[str, Any]]:
    """The cosine expected between two independent batches of P prompts, S/(S + N/P) with the
    signal and noise of one group; NaN where this batch shows no signal."""
    groups, noise = row["groups"], row["noise"] / row["groups"]
    kept = row["signal"] / row["groups"] ** 2
    return [
        {"arm": row["arm"], "prompts": 2**i,
         "repeat_cosine": kept / (kept + noise / 2**i) if kept > 0 else math.nan}
        for i in range(max(11, int(math.log2(groups)) + 3))
    ]  # fmt: skip


def token_weights(readings: list[Reading], state: State, rows: int = 4) -> pd.DataFrame:
    """−∂loss/∂log p of each token of a few completions: what the arm reinforces (> 0) there.

    The completions of the first group in which the first arm learns, else of the first.
    """
    first = readings[0]
    size = first.rollouts.group_size
    learns = first.slopes["logps"].abs().sum(dim=1).reshape(-1, size).sum(dim=1) > 0
    start = int(learns.int().argmax()) * size
    tokenizer = state.policy.encoder.tokenizer
    found = []
    for reading in readings:
        if reading.rollouts.mask.shape != first.rollouts.mask.shape:
            continue
        for row in range(start, min(start + rows, start + size)):
            for t in range(int(reading.rollouts.lengths[row])):
                token = int(reading.rollouts.completion_ids[row, t])
                weight = -float(reading.slopes["logps"][row, t])
                found.append(
                    {
                        "arm": reading.arm.name, "row": row, "position": t,
                        "text": tokenizer.decode([token]), "weight": weight,
                    }
                )  # fmt: skip
    return pd.DataFrame(found)
