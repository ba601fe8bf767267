"""The buffer of past groups that `selection=replay` draws from."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

import torch
from torch import Tensor

from grpolab.rollouts import Rollouts, concatenate
from grpolab.training.selection import Replay, informative

TEXTS = ("prompts", "texts")
PART = "part:"


@dataclass(frozen=True)
class Entry:
    """One past group, on the CPU, without padding; and the step that generated it."""

    step: int
    group: Rollouts


class ReplayBuffer:
    """A bounded record of informative groups, oldest first."""

    def __init__(self, settings: Replay) -> None:
        self.settings = settings
        self.entries: list[Entry] = []

    def __len__(self) -> int:
        return len(self.entries)

    def forget(self, step: int) -> None:
        """Drops the groups that are too old for a step."""
        oldest = step - self.settings.max_staleness
        self.entries = [e for e in self.entries if e.step >= oldest]

    def add(self, rollouts: Rollouts, step: int) -> None:
        """Takes in the fresh informative groups of a step that is over, with their `old_logps`."""
        assert rollouts.rewards is not None
        assert rollouts.old_logps is not None
        wanted = informative(rollouts.rewards) & (rollouts.ages == 0)
        kept = rollouts.keep_groups(wanted).to("cpu")
        # What follows from the step that replays a group is left behind.
        kept = replace(kept, ref_logps=None, kl_penalty=None, advantages=None)
        self.entries += [Entry(step, trimmed(g)) for g in single_groups(kept)]
        self.entries = self.entries[-self.settings.size :]

    def draw(self, step: int, count: int, generator: torch.Generator) -> list[Rollouts]:
        """Up to `count` different groups that are not too old, with their ages; one after the
        other, each time in proportion to the priorities of those that are left."""
        self.forget(step)
        uniforms = torch.rand(len(self), generator=generator, dtype=torch.float64).tolist()
        # The smallest −log(u)/w is entry i's with probability w_i/Σw, and so on for the rest.
        keys = [
            -math.log(max(u, 1e-300)) / self._priority(e.group)
            for u, e in zip(uniforms, self.entries, strict=True)
        ]
        chosen = sorted(range(len(self)), key=keys.__getitem__)[:count]
        return [self._aged(self.entries[i], step) for i in chosen]

    def _priority(self, group: Rollouts) -> float:
        if self.settings.priority == "uniform":
            return 1.0
        assert group.rewards is not None
        scored = group.rewards[torch.isfinite(group.rewards)].double()
        return float(scored.std(correction=0))

    @staticmethod
    def _aged(entry: Entry, step: int) -> Rollouts:
        return replace(entry.group, ages=torch.tensor([step - entry.step]))

    def allowed(self, fresh: int, places: int) -> int:
        """Groups that may fill `places` beside so many fresh ones, by `max_share`."""
        share = self.settings.max_share
        fits = [n for n in range(places + 1) if n <= share * (fresh + n) + 1e-9]
        return max(fits)

    # -- checkpoint ----------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything as named tensors; texts as bytes."""
        found = {"steps": torch.tensor([e.step for e in self.entries], dtype=torch.long)}
        for place, entry in enumerate(self.entries):
            for name, value in packed(entry.group).items():
                found[f"{place}.{name}"] = value
        return found

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes the place of the content with what `tensors` returned."""
        groups: list[dict[str, Tensor]] = [{} for _ in tensors["steps"]]
        for key, value in tensors.items():
            place, dot, name = key.partition(".")
            if dot:
                groups[int(place)][name] = value.cpu()
        steps = tensors["steps"].tolist()
        self.entries = [Entry(s, unpacked(g)) for s, g in zip(steps, groups, strict=True)]


def fill(fresh: Rollouts, kept: Tensor, past: Sequence[Rollouts]) -> Rollouts:
    """The groups of `fresh` where `kept` [P] is true; past groups in the places of the others, in
    order, as long as there are any."""
    if not past:
        return fresh.keep_groups(kept)
    waiting = iter(past)
    pieces = []
    for stays, group in zip(kept.tolist(), single_groups(fresh), strict=True):
        found = group if stays else next(waiting, None)
        if found is not None:
            pieces.append(found.to(fresh.mask.device))
    return concatenate(pieces)


def replay_metrics(rollouts: Rollouts, size: int) -> dict[str, float]:
    """Of a batch that the buffer filled up."""
    ages = rollouts.ages.cpu().double()
    past = ages[ages > 0]
    return {
        "replay/size": float(size),
        "replay/used_share": len(past) / max(1, len(ages)),
        "replay/age": float(past.mean()) if len(past) else math.nan,
    }


def single_groups(rollouts: Rollouts) -> list[Rollouts]:
    """Each group as a record of its own."""
    places = torch.arange(rollouts.groups, device=rollouts.mask.device)
    return [rollouts.keep_groups(places == p) for p in places]


def trimmed(group: Rollouts) -> Rollouts:
    """A group without the columns that are padding in all its rows."""
    prompt = max(1, int(group.prompt_lengths.max()))
    width = max(1, int(group.lengths.max()))
    changed: dict[str, Any] = {
        item.name: value[:, : prompt if item.name == "prompt_ids" else width].clone()
        for item in fields(group)
        if isinstance(value := getattr(group, item.name), Tensor) and per_token(item.name, value)
    }
    return replace(group, **changed)


def per_token(name: str, value: Tensor) -> bool:
    """Whether a field's second dimension counts tokens."""
    return value.dim() == 2 and name != "rewards"


def packed(group: Rollouts) -> dict[str, Tensor]:
    """A group, or several, as named tensors."""
    found = {f.name: getattr(group, f.name) for f in fields(group)}
    tensors = {k: v.contiguous() for k, v in found.items() if isinstance(v, Tensor)}
    parts = {PART + name: value.contiguous() for name, value in group.reward_parts.items()}
    return tensors | parts | {name: encoded(found[name]) for name in TEXTS}


def unpacked(tensors: Mapping[str, Tensor], group_size: int | None = None) -> Rollouts:
    """What `packed` was given: one group, unless its size is given."""
    values: dict[str, Any] = {
        k: decoded(v) if k in TEXTS else v for k, v in tensors.items() if not k.startswith(PART)
    }
    parts = {k.removeprefix(PART): v for k, v in tensors.items() if k.startswith(PART)}
    size = group_size or tensors["mask"].shape[0]
    return Rollouts(**values, group_size=size, reward_parts=parts)


def encoded(texts: list[str]) -> Tensor:
    """Texts as bytes."""
    return torch.frombuffer(bytearray(json.dumps(texts).encode()), dtype=torch.uint8)


def decoded(data: Tensor) -> list[str]:
    """Texts from bytes."""
    texts: list[str] = json.loads(data.numpy().tobytes())
    return texts
