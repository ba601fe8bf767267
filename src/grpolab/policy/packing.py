"""Which token stands where when rows are packed: no padding, and each prompt once for its group."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

SLACK = 1.3  # cells of an attention block / its tokens, above which a block of shorter rows begins


@dataclass(frozen=True)
class Block:
    """Rows that attend together, padded to the longest of them.

    A query attends to the row's context (its prompt), then causally to the row's own tokens. The
    prompts themselves are rows without a context.
    """

    queries: Tensor
    """[R, L] places of the rows' own tokens in the packed sequence; repeats where padded."""
    valid: Tensor
    """[R, L] bool."""
    keys: Tensor
    """[R, S + L] places of the context's tokens and of the rows' own; repeats where padded."""
    mask: Tensor | None
    """[R, 1, L, S + L] bool, which keys each query sees; None: causal, and nothing is padded."""

    @property
    def scores(self) -> int:
        """Of a row and a head: queries times keys."""
        return self.queries.shape[1] * self.keys.shape[1]

    def split(self, rows: int) -> list[Block]:
        """The same rows, so many at a time."""
        if len(self.queries) <= rows:
            return [self]
        masks: list[Tensor | None] = [None] * len(self.queries)
        if self.mask is not None:
            masks = list(torch.split(self.mask, rows))
        parts = zip(
            torch.split(self.queries, rows),
            torch.split(self.valid, rows),
            torch.split(self.keys, rows),
            masks,
            strict=self.mask is not None,
        )
        return [Block(*part) for part in parts]


@dataclass(frozen=True)
class Packing:
    """N rows, prompt + completion, as n packed tokens: all prompts, then all completions.

    The last token of a completion predicts nothing that counts, so it is left out.
    """

    tokens: Tensor
    """[n]"""
    positions: Tensor
    """[n] places in the row, from 0: what rotary positions are of."""
    blocks: list[Block]
    predicting: Tensor
    """[M] packed place of the token whose hidden state predicts each valid completion token, row by
    row."""
    targets: Tensor
    """[M] those completion tokens."""

    def __len__(self) -> int:
        return len(self.tokens)


def pack(
    prompt_ids: Tensor,
    prompt_lengths: Tensor,
    completion_ids: Tensor,
    mask: Tensor,
    groups: Tensor | None = None,
) -> Packing:
    """Packs rows; the shapes are those of `Policy.token_logps`.

    Args:
        groups: [N] the same number for rows of one prompt, contiguous; None: each row its own.
    """
    lengths = mask.sum(dim=1)
    first = _first_of_group(len(mask), groups, mask.device)  # [P] a row of each group
    group = torch.zeros(len(mask), dtype=torch.long, device=mask.device)
    group[first[1:]] = 1
    group = group.cumsum(0)  # [N]
    sizes = prompt_lengths[first]
    prompt_valid = _columns(prompt_ids.shape[1], mask.device) < sizes.unsqueeze(1)
    inputs = (lengths - 1).clamp(min=0)  # tokens of each completion that are run
    own_valid = _columns(mask.shape[1], mask.device) < inputs.unsqueeze(1)
    prompt_places = _places(prompt_valid, 0)
    own_places = _places(own_valid, int(prompt_valid.sum()))
    own_positions = prompt_lengths.unsqueeze(1) + _columns(mask.shape[1], mask.device)
    last = prompt_places.gather(1, (sizes - 1).unsqueeze(1))[group]  # [N, 1]
    predicting = torch.cat([last, own_places], dim=1)[:, : mask.shape[1]]
    prompt_positions = _columns(prompt_ids.shape[1], mask.device).expand_as(prompt_valid)
    return Packing(
        torch.cat([prompt_ids[first][prompt_valid], completion_ids[own_valid]]),
        torch.cat([prompt_positions[prompt_valid], own_positions[own_valid]]),
        _blocks(prompt_places, prompt_valid, None, None)
        + _blocks(own_places, own_valid, prompt_places[group], prompt_valid[group]),
        predicting[mask],
        completion_ids[mask],
    )


def _first_of_group(rows: int, groups: Tensor | None, device: torch.device) -> Tensor:
    if groups is None:
        return torch.arange(rows, device=device)
    new = torch.ones(rows, dtype=torch.bool, device=device)
    new[1:] = groups[1:] != groups[:-1]
    return new.nonzero().squeeze(1)


def _columns(width: int, device: torch.device) -> Tensor:
    return torch.arange(width, device=device)


def _places(valid: Tensor, start: int) -> Tensor:
    """[R, L] running numbers of the valid cells; the others repeat some valid one."""
    return (valid.flatten().cumsum(0) - 1).clamp(min=0).view(valid.shape) + start


def _blocks(
    places: Tensor, valid: Tensor, context: Tensor | None, context_valid: Tensor | None
) -> list[Block]:
    """Rows by length, cut where the padding of the shorter ones would exceed `SLACK`."""
    lengths = valid.sum(dim=1).tolist()
    order = sorted((i for i, n in enumerate(lengths) if n), key=lambda i: -lengths[i])
    found: list[Block] = []
    while order:
        longest, total, count = lengths[order[0]], 0, 0
        for row in order:
            total += lengths[row]
            if (count + 1) * longest > SLACK * total:
                break
            count += 1
        rows = torch.tensor(sorted(order[:count]), device=valid.device)
        order = order[count:]
        found.append(
            _block(
                places[rows, :longest],
                valid[rows, :longest],
                None if context is None else context[rows],
                None if context_valid is None else context_valid[rows],
            )
        )
    return found


def _block(
    queries: Tensor, valid: Tensor, context: Tensor | None, context_valid: Tensor | None
) -> Block:
    length = queries.shape[1]
    if context is None or context_valid is None:
        return Block(queries, valid, queries, None)  # causal, so the padding behind is never seen
    widest = int(context_valid.sum(dim=1).max())
    context, context_valid = context[:, :widest], context_valid[:, :widest]
    causal = torch.ones(length, length, dtype=torch.bool, device=valid.device).tril()
    seen = context_valid[:, None, None].expand(-1, 1, length, -1)
    mask = torch.cat([seen, causal.expand(len(queries), 1, -1, -1)], dim=-1)
    return Block(queries, valid, torch.cat([context, queries], dim=1), mask)


def join_rows(
    prompt_ids: Tensor, prompt_lengths: Tensor, completion_ids: Tensor, mask: Tensor, pad_id: int
) -> tuple[Tensor, Tensor]:
    """(ids [n, W] with each completion right behind its prompt, positions [n, T] of its tokens).

    W is the longest row's prompt and completion together, so a long prompt with a short answer
    beside a short prompt with a long one is not padded to the sum of both. Masked positions hold
    the pad token, and those beyond W point right behind it.
    """
    n, width = completion_ids.shape
    ids = torch.nn.functional.pad(prompt_ids, (0, width), value=pad_id)
    steps = torch.arange(width, device=ids.device)
    positions = prompt_lengths.unsqueeze(1) + steps  # [n, T]
    columns = torch.arange(ids.shape[1], device=ids.device).expand(n, -1)
    ids = torch.where(columns < prompt_lengths.unsqueeze(1), ids, pad_id)
    ids = ids.scatter(1, positions, torch.where(mask, completion_ids, pad_id))
    longest = int((prompt_lengths + mask.sum(dim=1)).max())
    return ids[:, :longest], positions.clamp(max=longest)
