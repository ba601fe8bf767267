"""Tabular policies whose completions can all be written down, so that expectations are sums.

A policy is a table of logits [S, V]: one row for each prefix that can be continued, for each
prompt. M completions in all; a completion's probability is given its prompt.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

F64 = torch.float64


@dataclass(frozen=True)
class Tree:
    """All M completions of one prompt, or of several: [M, T] each, padded on the right."""

    ids: Tensor
    place: Tensor
    """The row of the table that each token is drawn from."""
    mask: Tensor
    prompt: Tensor
    """[M]"""
    states: int
    vocabulary: int

    @property
    def prompts(self) -> int:
        """P"""
        return int(self.prompt.max()) + 1

    @property
    def limit(self) -> int:
        """T, the tokens of the longest completion."""
        return self.ids.shape[1]

    def table(self, seed: int, spread: float = 1.0) -> Tensor:
        """Random logits [S, V], normal with standard deviation `spread`."""
        source = torch.Generator().manual_seed(seed)
        return spread * torch.randn(self.states, self.vocabulary, dtype=F64, generator=source)

    def logps(self, table: Tensor) -> Tensor:
        """[M, T] of the tokens; masked positions hold those of an unrelated token."""
        return table.log_softmax(-1)[self.place, self.ids]

    def logits(self, table: Tensor) -> Tensor:
        """[M, T, V]"""
        return table[self.place]

    def probability(self, table: Tensor) -> Tensor:
        """[M] of each completion, given its prompt."""
        return torch.where(self.mask, self.logps(table), 0.0).sum(dim=1).exp()

    def rewards(self, seed: int) -> Tensor:
        """[M] random ones, standard normal."""
        return torch.randn(len(self.ids), dtype=F64, generator=torch.Generator().manual_seed(seed))

    def visits(self, table: Tensor) -> Tensor:
        """[S] probability that a completion of its prompt passes through each state."""
        share = self.probability(table).unsqueeze(1).expand_as(self.ids)[self.mask]
        empty = torch.zeros(self.states, self.vocabulary, dtype=F64)
        index = (self.place[self.mask], self.ids[self.mask])
        return empty.index_put(index, share, accumulate=True).sum(dim=1)

    def pull(self, weights: Tensor, table: Tensor) -> Tensor:
        """Σ weights·∇lp over the tokens, flat: ∇ log softmax = one-hot − π, written out."""
        weights = torch.where(self.mask, weights, 0.0)
        index = (self.place.flatten(), self.ids.flatten())
        empty = torch.zeros_like(table)
        hit = empty.index_put(index, weights.flatten(), accumulate=True)
        total = hit.sum(dim=1, keepdim=True)
        return (hit - total * table.softmax(-1)).flatten()

    def greedy(self, table: Tensor) -> Tensor:
        """[P] the completion of each prompt that takes the likeliest token at every state."""
        best = table.argmax(dim=-1)  # [S]
        follows = (best[self.place] == self.ids) | ~self.mask
        return follows.all(dim=1).nonzero().flatten()


def tree(vocabulary: int, limit: int, ends: bool = True) -> Tree:
    """One prompt: completions of at most `limit` tokens."""
    return forest(vocabulary, [limit], ends)


def forest(vocabulary: int, limits: Sequence[int], ends: bool = True) -> Tree:
    """Several prompts with a table of their own each, one below the other.

    Args:
        vocabulary: V.
        limits: tokens at most, for each prompt.
        ends: token 0 ends a completion, so that lengths differ; without it all V^T completions of
            a prompt have T tokens.
    """
    states: dict[tuple[int, ...], int] = {}
    done: list[tuple[int, list[tuple[int, ...]], list[int]]] = []

    def grow(prompt: int, limit: int, prefix: tuple[int, ...], path: list[tuple[int, ...]]) -> None:
        here = (prompt, *prefix)
        states.setdefault(here, len(states))
        for token in range(vocabulary):
            if (ends and token == 0) or len(prefix) + 1 == limit:
                done.append((prompt, [*path, here], [*prefix, token]))
            else:
                grow(prompt, limit, (*prefix, token), [*path, here])

    for prompt, limit in enumerate(limits):
        grow(prompt, limit, (), [])
    width = max(limits)

    def padded(values: list[int]) -> list[int]:
        return values + [0] * (width - len(values))

    lengths = torch.tensor([len(ids) for _, _, ids in done])
    return Tree(
        ids=torch.tensor([padded(ids) for _, _, ids in done]),
        place=torch.tensor([padded([states[s] for s in path]) for _, path, _ in done]),
        mask=torch.arange(width) < lengths.unsqueeze(1),
        prompt=torch.tensor([prompt for prompt, _, _ in done]),
        states=len(states),
        vocabulary=vocabulary,
    )
