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
from grpolab.training.metrics import absolute_advantages, right_answers, right_mask

KINDS = ("difficulty", "length", "advantage", "entropy")
"""Ways of cutting a gradient."""


def shares_of(
    reading: Reading, places: Tensor, table: Table, tokens: Tensor
) -> list[dict[str, Any]]:  # fmt: skip
    """An arm's gradient cut by the difficulty of the prompt, the length of the completion, the sign
    of the advantage, the token's entropy: arm, kind, part and the part's share of |G|².

    Args:
        tokens: [N, T] what each token adds to |G|².
    """
    rollouts = reading.rollouts
    mask = rollouts.mask.cpu()
    entropy = table.now["entropy"][places][:, : mask.shape[1]].double().cpu()
    assert rollouts.rewards is not None
    ease = rollouts.rewards.double().cpu().nanmean(dim=1).repeat_interleave(rollouts.group_size)
    lengths = rollouts.lengths.double().cpu()
    sign = rollouts.advantage_rows().float().cpu().expand(-1, mask.shape[1]).sign()
    thirds = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    low, high = torch.quantile(entropy[mask], thirds)
    hard, short = ease <= ease.median(), lengths <= lengths.median()
    cuts = {
        ("difficulty", "hard"): hard.unsqueeze(1), ("difficulty", "easy"): ~hard.unsqueeze(1),
        ("length", "short"): short.unsqueeze(1), ("length", "long"): ~short.unsqueeze(1),
        ("advantage", "above 0"): sign > 0, ("advantage", "below 0"): sign < 0,
        ("advantage", "0"): sign == 0,
        ("entropy", "low"): entropy <= low, ("entropy", "high"): entropy > high,
        ("entropy", "middle"): (entropy > low) & (entropy <= high),
    }  # fmt: skip
    whole = float(tokens.sum())
    return [
        {"arm": reading.arm.name, "kind": kind, "part": part,
         "share": float((tokens * chosen).sum()) / whole if whole else math.nan}
        for (kind, part), chosen in cuts.items()
    ]  # fmt: skip


def difficulty_of(reading: Reading, tokens: Tensor) -> list[dict[str, Any]]:
    """An arm's gradient by the number of right answers in a group; nothing unless the rewards take
    two values, of which the larger is a right answer's. Groups with an unscorable member are left
    out.

    Of each number k that occurs: arm, group_size, right = k, groups; means over those groups of
    weight = mean |A|, toward and away = ΣA over the right and over the wrong answers by G, square =
    ΣA²; and share of |G|².

    Args:
        tokens: [N, T] what each token adds to |G|².
    """
    rollouts, size = reading.rollouts, reading.rollouts.group_size
    assert rollouts.rewards is not None
    assert rollouts.advantages is not None
    right, good = right_answers(rollouts.rewards), right_mask(rollouts.rewards)
    if right is None or good is None:
        return []
    mask = rollouts.mask.cpu()
    weights = absolute_advantages(rollouts.advantages, rollouts.mask).reshape(-1, size)
    rows = rollouts.advantage_rows().double().cpu()
    if rows.shape[1] > 1:
        rows = (rows * mask).sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    a = rows.reshape(-1, size)
    by_group = {
        "weight": weights.mean(dim=1),
        "toward": (a * good).sum(dim=1) / size,
        "away": (a * ~good).sum(dim=1) / size,
        "square": a.square().sum(dim=1),
    }
    added, whole = tokens.sum(dim=1).reshape(-1, size).sum(dim=1), float(tokens.sum())
    return [
        {
            "arm": reading.arm.name, "group_size": size, "right": k,
            "groups": int((right == k).sum()),
            **{name: float(value[right == k].mean()) for name, value in by_group.items()},
            "share": float(added[right == k].sum()) / whole if whole else math.nan,
        }
        for k in sorted(set(right[right >= 0].tolist()))
    ]  # fmt: skip


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


def token_weights(
    readings: list[Reading], state: State, added: list[Tensor], rows: int = 4
) -> pd.DataFrame:
    """−∂loss/∂log p of each token of a few completions: what the arm reinforces (> 0) there; and
    its share of |G|²: how far the whole gradient does what this token alone asks for.

    The completions of the first group in which the first arm learns, else of the first.
    """
    first = readings[0]
    size = first.rollouts.group_size
    learns = first.slopes["logps"].abs().sum(dim=1).reshape(-1, size).sum(dim=1) > 0
    start = int(learns.int().argmax()) * size
    tokenizer = state.policy.encoder.tokenizer
    found = []
    for reading, own in zip(readings, added, strict=True):
        whole = float(own.sum())
        if reading.rollouts.mask.shape != first.rollouts.mask.shape:
            continue
        for row in range(start, min(start + rows, start + size)):
            for t in range(int(reading.rollouts.lengths[row])):
                token = int(reading.rollouts.completion_ids[row, t])
                weight = -float(reading.slopes["logps"][row, t])
                share = float(own[row, t]) / whole if whole else math.nan
                found.append(
                    {
                        "arm": reading.arm.name, "row": row, "position": t,
                        "text": tokenizer.decode([token]), "weight": weight,
                        "share": share,
                    }
                )  # fmt: skip
    return pd.DataFrame(found)
