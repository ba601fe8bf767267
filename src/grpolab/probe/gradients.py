"""Inner products of all arms' gradients from as few backward passes as there are directions.

The gradient of arm j is Σ_u J_uᵀ c_{j,u}: over the unique rows u, the transposed Jacobian of the
row's log-probs times the arm's ∂loss/∂log p there. In each row the arms' c span few dimensions
(one, where a row's tokens share an advantage and r = 1). An orthonormal basis of that span is
found first; only its vectors are propagated through the model, and every arm's gradient is a
combination of theirs, to `TOLERANCE` of the row's own c.

Memory: the basis gradients where they fit `LIMIT`, else the arms', some parameters at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from grpolab.probe.table import OUTPUTS, SharedForward
from grpolab.rollouts import Rollouts

TOLERANCE = 3e-7
LIMIT = 2**30
"""Bytes of gradients at once."""


@dataclass
class Basis:
    """Directions in the outputs of each unique row, and combinations of them."""

    vectors: list[Tensor]
    """[r_u, D] of each row; D: its outputs, one after the other."""
    weights: Tensor
    """[Q, Σ r_u] of the Q combinations asked for, float64."""

    @property
    def size(self) -> int:
        return int(self.weights.shape[1])


def span(rows: Tensor, tolerance: float = TOLERANCE) -> tuple[Tensor, Tensor]:
    """(orthonormal vectors [r, D], coefficients [K, r]) with rows [K, D] ≈ coefficients @ vectors,
    each row to `tolerance` of its own norm. Gram-Schmidt, the row least explained first."""
    rows = rows.double()
    norms = rows.norm(dim=1, keepdim=True)
    left = torch.where(norms > 0, rows / norms.clamp(min=1e-300), torch.zeros_like(rows))
    vectors = rows.new_zeros(0, rows.shape[1])
    while len(vectors) < min(rows.shape):
        sizes = left.norm(dim=1)
        place = int(sizes.argmax())
        if float(sizes[place]) <= tolerance:
            break
        new = left[place]
        for _ in range(2):  # twice is enough
            new = new - vectors.T @ (vectors @ new)
            new = new / new.norm()
        vectors = torch.cat([vectors, new.unsqueeze(0)])
        left = left - (left @ new).unsqueeze(1) * new
    return vectors, rows @ vectors.T


def make_basis(combinations: Sequence[tuple[Tensor, Tensor]], unique: int) -> Basis:
    """The basis of some combinations.

    Args:
        combinations: of each (places [n] among the unique rows, outputs' weights [n, D]).
        unique: U.
    """
    own: list[list[tuple[int, Tensor]]] = [[] for _ in range(unique)]
    for index, (places, weights) in enumerate(combinations):
        for place, row in zip(places.tolist(), weights, strict=True):
            if bool(row.any()):
                own[place].append((index, row))
    vectors, columns = [], []
    width = combinations[0][1].shape[1]
    for found in own:
        if not found:
            vectors.append(torch.zeros(0, width, dtype=torch.float64))
            continue
        basis, coefficients = span(torch.stack([row for _, row in found]))
        block = torch.zeros(len(combinations), len(basis), dtype=torch.float64)
        block.index_add_(0, torch.tensor([i for i, _ in found]), coefficients)
        vectors.append(basis)
        columns.append(block)
    empty = torch.zeros(len(combinations), 0, dtype=torch.float64)
    return Basis(vectors, torch.cat([empty, *columns], dim=1))


@dataclass
class Products:
    """What is known of the gradients."""

    gram: Tensor
    """[Q, Q] inner products of the combinations, float64."""
    passes: int
    """Backward passes over single rows."""
    kept: dict[str, Tensor]
    """Name → [k, numel] the gradients that were to be kept."""


def products(
    forward: SharedForward, pool: Rollouts, basis: Basis, outputs: Sequence[str],
    keep: Tensor | None = None, limit: int = LIMIT,
) -> Products:  # fmt: skip
    """The Gram matrix of a basis' combinations.

    Args:
        keep: [k, Q] float64, sums of the combinations whose gradients are kept.
    """
    parameters = forward.policy.trainable()
    direct = basis.size <= len(basis.weights)
    rows = basis.size if direct else len(basis.weights)
    size = len(basis.weights)
    gram = torch.zeros(size, size, dtype=torch.float64)
    kept: dict[str, Tensor] = {}
    passes = 0
    for names in blocks({n: p.numel() for n, p in parameters.items()}, rows, limit):
        chosen = {n: parameters[n] for n in names}
        found, count = _rows(forward, pool, basis, outputs, chosen, direct=direct)
        passes += count
        inner = torch.zeros(len(found), len(found), dtype=torch.float64)
        for part in torch.split(found, max(1, 2**22 // max(1, len(found))), dim=1):
            wide = part.double()
            inner += wide @ wide.T
        gram += basis.weights @ inner @ basis.weights.T if direct else inner
        if keep is not None:
            wanted = (keep @ basis.weights if direct else keep).to(found) @ found
            sizes = [chosen[n].numel() for n in names]
            kept |= dict(zip(names, torch.split(wanted, sizes, dim=1), strict=True))
    return Products((gram + gram.T) / 2, passes, kept)


def blocks(sizes: dict[str, int], rows: int, limit: int) -> list[list[str]]:
    """The parameters in parts whose `rows` gradients each fit a limit in bytes; one at least."""
    found: list[list[str]] = []
    total = 0
    for name, size in sizes.items():
        own = 4 * rows * size
        if not found or total + own > limit:
            found.append([])
            total = 0
        found[-1].append(name)
        total += own
    return found


def _rows(
    forward: SharedForward, pool: Rollouts, basis: Basis, outputs: Sequence[str],
    parameters: dict[str, torch.nn.Parameter], *, direct: bool,
) -> tuple[Tensor, int]:  # fmt: skip
    """([rows, numel] gradients of the basis, or summed to those of the combinations; backward
    passes)."""
    total = sum(p.numel() for p in parameters.values())
    count = basis.size if direct else len(basis.weights)
    device = forward.policy.device
    found = torch.zeros(count, total, device=device)
    place = 0
    for row, vectors in enumerate(basis.vectors):
        for vector in vectors:
            gradient = _backward(forward, pool, row, vector, outputs, parameters)
            if direct:
                found = found.to(gradient.dtype) if found.dtype != gradient.dtype else found
                found[place] = gradient
            else:
                found += basis.weights[:, place].to(found).unsqueeze(1) * gradient
            place += 1
    return found, place


def _backward(
    forward: SharedForward, pool: Rollouts, row: int, vector: Tensor, outputs: Sequence[str],
    parameters: dict[str, torch.nn.Parameter],
) -> Tensor:  # fmt: skip
    """[numel] Jᵀ of one row times a vector over its outputs."""
    width = max(1, int(pool.lengths[row]))
    part = forward.part(pool, torch.tensor([row]), width)
    now = forward.logps(part)
    values = [getattr(now, name) for name in OUTPUTS if name in outputs]
    full = pool.mask.shape[1]
    pieces = torch.split(vector, [full * v[0, 0].numel() for v in values])
    slopes = [
        piece.view(1, full, *v.shape[2:])[:, :width].to(v)
        for piece, v in zip(pieces, values, strict=True)
    ]
    grads = torch.autograd.grad(values, list(parameters.values()), slopes, allow_unused=True)
    flat = [
        torch.zeros_like(p).flatten() if g is None else g.flatten()
        for g, p in zip(grads, parameters.values(), strict=True)
    ]
    return torch.cat(flat)
