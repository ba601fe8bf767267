"""Where each running row stands among those of its prompt."""

from __future__ import annotations

import torch
from torch import Tensor


class Groups:
    """Rows of completions as a table of prompts × C, C the most that one prompt still has.

    Args:
        prompt_of: [R] prompt of each running row.
        prompts: P.
    """

    def __init__(self, prompt_of: Tensor, prompts: int) -> None:
        counts = torch.bincount(prompt_of, minlength=prompts)
        self.columns = int(counts.max())
        self.cell, self.row = places(prompt_of, counts, self.columns)
        """[R] cell of each row, and [P·C] a row of each cell."""
        here = torch.arange(len(prompt_of), device=prompt_of.device)
        self.in_order = len(here) == prompts * self.columns and bool((self.cell == here).all())

    def to_prompts(self, rows: Tensor) -> Tensor:
        """[R, Hkv, h, x] → [P, Hkv, C·h, x]; a cell without a row repeats some row."""
        _, heads, each, width = rows.shape
        table = rows if self.in_order else rows[self.row]
        table = table.view(-1, self.columns, heads, each, width).transpose(1, 2)
        return table.reshape(-1, heads, self.columns * each, width)

    def to_rows(self, table: Tensor) -> Tensor:
        """The way back."""
        prompts, heads, all_, width = table.shape
        each = all_ // self.columns
        rows = table.view(prompts, heads, self.columns, each, width).transpose(1, 2)
        rows = rows.reshape(-1, heads, each, width)
        return rows if self.in_order else rows[self.cell]


class FixedGroups(Groups):
    """The same at fixed addresses and sizes, for a recorded step: C stays what it was, and rows
    that are gone point anywhere."""

    def __init__(self, prompt_of: Tensor, prompts: int, columns: int) -> None:
        self.columns, self.in_order = columns, False
        self.cell = torch.zeros_like(prompt_of)
        self.row = prompt_of.new_zeros(prompts * columns)
        self.update(prompt_of)

    def update(self, prompt_of: Tensor) -> None:
        """For fewer rows."""
        counts = torch.bincount(prompt_of, minlength=len(self.row) // self.columns)
        cell, row = places(prompt_of, counts, self.columns)
        self.cell[: len(cell)] = cell
        self.row.copy_(row)

    def first(self, rows: int) -> Groups:
        """A view for a step over the first rows alone."""
        found = object.__new__(Groups)
        found.columns, found.in_order = self.columns, False
        found.cell, found.row = self.cell[:rows], self.row
        return found


def places(prompt_of: Tensor, counts: Tensor, columns: int) -> tuple[Tensor, Tensor]:
    """([R] cell of each row, [P·C] row of each cell, 0 where it has none), of rows [R] with
    prompts `prompt_of` and `counts` [P] rows a prompt."""
    order = prompt_of.argsort(stable=True)
    first = (counts.cumsum(0) - counts)[prompt_of[order]]
    rows = torch.arange(len(order), device=order.device)
    column = torch.empty_like(order)
    column[order] = rows - first
    cell = prompt_of * columns + column
    row = torch.zeros(len(counts) * columns, dtype=torch.long, device=order.device)
    row[cell] = rows
    return cell, row
