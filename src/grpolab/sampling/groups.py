"""Where each running row stands among those of its prompt."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor


@dataclass
class Groups:
    """Rows of completions as a table of prompts × C, C the most that one prompt still has."""

    columns: int
    """C."""
    cell: Tensor
    """[R] of each row."""
    row: Tensor
    """[P·C] of each cell; 0 where it has none."""
    in_order: bool
    """Whether the rows are the cells, one after the other."""

    @staticmethod
    def of(prompt_of: Tensor, prompts: int) -> Groups:
        """Of running rows [R] by their prompts."""
        counts = torch.bincount(prompt_of, minlength=prompts)
        columns = int(counts.max())
        cell, row = places(prompt_of, counts, columns)
        here = torch.arange(len(cell), device=cell.device)
        in_order = len(cell) == prompts * columns and bool((cell == here).all())
        return Groups(columns, cell, row, in_order)

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

    # -- at fixed addresses and sizes, for recorded steps --------------------------------------

    def fixed(self) -> Groups:
        """A copy whose tensors are written over and whose C stays."""
        return replace(self, cell=self.cell.clone(), row=self.row.clone(), in_order=False)

    def refill(self, prompt_of: Tensor) -> None:
        """Writes fewer rows [R'] into the tensors; the cells of those beyond stay what they
        were."""
        counts = torch.bincount(prompt_of, minlength=len(self.row) // self.columns)
        cell, row = places(prompt_of, counts, self.columns)
        self.cell[: len(cell)] = cell
        self.row.copy_(row)

    def first(self, rows: int) -> Groups:
        """A view for a step over the first rows alone."""
        return replace(self, cell=self.cell[:rows])


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
