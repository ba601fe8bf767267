"""Batches of P groups of G completions: all of them with their probabilities, or a sample."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from grpolab.probe.exact.tree import F64, Tree


@dataclass(frozen=True)
class Batches:
    """B batches; those that differ only in the order inside a group count as one where `exact`."""

    rows: Tensor
    """[B, N] completions, prompt-major, N = P·G."""
    weights: Tensor
    """[B] probabilities, or 1/B each where sampled."""
    group_size: int
    exact: bool

    @property
    def flat(self) -> Tensor:
        """[B·N] the rows of every batch, one batch after the other."""
        return self.rows.flatten()


def members(tree: Tree) -> list[list[int]]:
    """The completions of each prompt."""
    return [(tree.prompt == p).nonzero().flatten().tolist() for p in range(tree.prompts)]


def count_batches(tree: Tree, group_size: int) -> int:
    """How many there are: Π over prompts of the multisets of G out of its completions."""
    return math.prod(math.comb(len(m) + group_size - 1, group_size) for m in members(tree))


def all_batches(tree: Tree, drawn_from: Tensor, group_size: int) -> Batches:
    """Every batch with its multinomial probability under the table `drawn_from` [S, V]."""
    log_p = tree.probability(drawn_from).log().tolist()
    groups: list[list[tuple[tuple[int, ...], float]]] = []
    for own in members(tree):
        found = []
        for group in itertools.combinations_with_replacement(own, group_size):
            counts = [group.count(i) for i in set(group)]
            ways = math.lgamma(group_size + 1) - sum(math.lgamma(c + 1) for c in counts)
            found.append((group, ways + sum(log_p[i] for i in group)))
        groups.append(found)
    rows, logs = [], []
    for batch in itertools.product(*groups):
        rows.append(sum((group for group, _ in batch), ()))
        logs.append(sum(log for _, log in batch))
    weights = torch.tensor(logs, dtype=F64).exp()
    return Batches(torch.tensor(rows), weights, group_size, exact=True)


def count_orders(tree: Tree, group_size: int) -> int:
    """How many batches of one prompt there are if the order in the group counts."""
    return math.prod([len(members(tree)[0])] * group_size)


def all_orders(tree: Tree, drawn_from: Tensor, group_size: int) -> Batches:
    """Every group of one prompt in every order, with its probability under `drawn_from` [S, V].

    Completions are drawn independently, so that a lot drawn among them falls on each as often
    whichever they are: over all orders, one fixed draw stands for all draws.
    """
    (own,) = members(tree)
    p = tree.probability(drawn_from)
    rows = torch.cartesian_prod(*[torch.tensor(own)] * group_size).reshape(-1, group_size)
    return Batches(rows, p[rows].prod(dim=1), group_size, exact=True)


def sample_batches(
    tree: Tree, drawn_from: Tensor, group_size: int, count: int, source: torch.Generator
) -> Batches:
    """`count` batches drawn from the table `drawn_from` [S, V]."""
    p = tree.probability(drawn_from)
    groups = []
    for own in members(tree):
        index = torch.tensor(own)
        picks = torch.multinomial(p[index], count * group_size, replacement=True, generator=source)
        groups.append(index[picks].reshape(count, group_size))
    rows = torch.cat(groups, dim=1)
    return Batches(rows, torch.full((count,), 1 / count, dtype=F64), group_size, exact=False)
