"""Inner products of all arms' gradients, with one gradient in memory at a time.

The gradient of arm j is G_j = Jᵀ c_j: the transposed derivative of the pool's log-probs times the
arm's ∂loss/∂log p. So ⟨G_i, G_j⟩ = c_i · (J G_j): a backward pass gives G_j, a forward-mode pass
along it gives its inner product with every other arm, with each prompt's term of it and with each
token's, and G_j can be forgotten. Arms whose c are proportional share both passes. The noise asks
for the products of the arms' terms of the same prompt, too.

Where several gradients fit `LIMIT`, their backward passes share the forward pass of a prompt, and
are as many as there are directions among the arms there (one, where its tokens share an advantage
and r = 1), to `TOLERANCE` of each arm's own c; and where all fit, the products of terms come from
them. Otherwise these take a second forward-mode pass, along each term over its own prompt's rows.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from grpolab.probe.passes import Outputs, Passes
from grpolab.probe.table import SharedForward

TOLERANCE = 3e-7
LIMIT = 2**30
"""Bytes of gradients at once; one arm's where even that is more."""


@dataclass
class Slopes:
    """∂loss/∂output of an arm, and the forward pass that its training runs."""

    places: Tensor
    """[N] among the pool's unique rows."""
    by_output: Outputs
    """[N, T, …] each, float64."""
    forward: SharedForward

    def pooled(self, rows: int, width: int) -> Outputs:
        """[U, T, …] by output: of each unique row, its completions' together."""
        found = {}
        for name, value in self.by_output.items():
            total = value.new_zeros(rows, width, *value.shape[2:])
            own = min(width, value.shape[1])
            total[:, :own].index_add_(0, self.places, value[:, :own])
            found[name] = total
        return found


@dataclass
class Products:
    """What is known of the J arms' gradients over the pool's P prompts."""

    squares: Tensor
    """[J] |G|², float64."""
    terms: Tensor
    """[J, P, J] ⟨arm i's term of prompt p, G_j⟩."""
    own: Tensor
    """[J, J, P] ⟨arm i's term of prompt p, arm j's of the same⟩; NaN where not asked for."""
    even: Tensor
    """[J] |sum of the terms of even prompts|²; NaN likewise."""
    tokens: list[Tensor]
    """[N, T] of each arm: what every token adds to |G|²."""
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Parameter → [J, numel] the gradients, where they were to be kept."""

    @property
    def gram(self) -> Tensor:
        """[J, J] inner products."""
        found = self.terms.sum(dim=1)
        return (found + found.T) / 2


def products(
    passes: Passes, arms: Sequence[Slopes], *, signal: bool = False, keep: bool = False,
    limit: int = LIMIT,
) -> Products:  # fmt: skip
    """The arms' inner products.

    Args:
        signal: whether `own` and `even` are wanted, too.
        keep: whether the gradients are.
        limit: bytes of gradients at once.
    """
    count, width = passes.pool.mask.shape
    pooled = [arm.pooled(count, width) for arm in arms]
    owner, scale, firsts = alike(pooled)
    found = _Found(passes, arms, pooled, owner, scale, signal=signal)
    sizes = [p.numel() for p in arms[0].forward.policy.trainable().values()]
    chunks = list(_chunks(firsts, arms, pooled, max(1, limit // (8 * sum(sizes)))))
    for chunk in chunks:
        found.add(chunk, keep=keep, alone=len(chunks) == 1)
    return found.done(list(arms[0].forward.policy.trainable()), sizes)


def alike(pooled: Sequence[Outputs]) -> tuple[list[int], list[float], list[int]]:
    """(of each arm the first one with proportional slopes, its factor, all such first ones): an
    arm without a gradient has itself and the factor 0."""
    owner: list[int] = []
    scale: list[float] = []
    firsts: list[int] = []
    norms = [sum(float(v.square().sum()) for v in one.values()) ** 0.5 for one in pooled]
    for j, one in enumerate(pooled):
        own, factor = j, float(norms[j] > 0)
        for i in firsts if norms[j] else []:
            other = pooled[i]
            if other.keys() != one.keys():
                continue
            share = sum(float((other[n] * one[n]).sum()) for n in one) / norms[i] ** 2
            away = sum(float((one[n] - share * other[n]).square().sum()) for n in one) ** 0.5
            if away <= TOLERANCE * norms[j]:
                own, factor = i, share
                break
        owner.append(own)
        scale.append(factor)
        if own == j and factor:
            firsts.append(j)
    return owner, scale, firsts


def _chunks(
    firsts: Sequence[int], arms: Sequence[Slopes], pooled: Sequence[Outputs], size: int
) -> Iterator[list[int]]:
    """Arms whose backward passes run together: those of one kind of forward pass and of slopes."""
    kinds: dict[tuple[bool, tuple[str, ...]], list[int]] = {}
    for j in firsts:
        kind = (arms[j].forward.run.kl.needs_logits, tuple(pooled[j]))
        kinds.setdefault(kind, []).append(j)
    for own in kinds.values():
        for start in range(0, len(own), size):
            yield own[start : start + size]


class _Found:
    """The inner products as they come in."""

    def __init__(
        self, passes: Passes, arms: Sequence[Slopes], pooled: Sequence[Outputs],
        owner: Sequence[int], scale: Sequence[float], *, signal: bool,
    ) -> None:  # fmt: skip
        self.passes, self.arms, self.pooled, self.signal = passes, arms, pooled, signal
        self.owner, self.scale = torch.tensor(owner), torch.tensor(scale, dtype=torch.float64)
        count = len(arms)
        unknown = 0.0 if signal else math.nan
        self.squares = torch.zeros(count, dtype=torch.float64)
        self.even = torch.full((count,), unknown, dtype=torch.float64)
        self.own = torch.full((count, count, passes.prompts), unknown, dtype=torch.float64)
        self.terms = torch.zeros(count, passes.prompts, count, dtype=torch.float64)
        self.tokens = [
            torch.zeros(arm.by_output["logps"].shape, dtype=torch.float64) for arm in arms
        ]
        self.gradients: dict[int, Tensor] = {}
        kinds = [arm.forward for arm in arms if arm.forward.run.kl.needs_logits]
        self.everything = kinds[0] if kinds else arms[0].forward
        """A forward pass with all outputs that any arm reads."""
        learns = [v.flatten(1).any(dim=1) for one in pooled for v in one.values()]
        self.live = torch.stack(learns).any(dim=0).nonzero()[:, 0]
        """Rows in which some arm learns."""

    def add(self, chunk: list[int], *, keep: bool, alone: bool) -> None:
        """The gradients of some arms, and their products with all; `alone`: there are no others."""
        sums = self._sums(chunk, alone=alone)
        self.squares[chunk] = squares_of(sums)
        for place, j in enumerate(chunk):
            self._along(j, sums[place])
            if keep:
                self.gradients[j] = sums[place].cpu()

    def _sums(self, chunk: list[int], *, alone: bool) -> Tensor:
        """[m, numel] the arms' gradients; fills in the products of their prompts' terms."""
        passes, forward, signal = self.passes, self.arms[chunk[0]].forward, self.signal
        flat = torch.stack([_flat(self.pooled[j]) for j in chunk])  # [m, U, D]
        learns = flat.abs().sum(dim=2).sum(dim=0) > 0  # [U]
        terms = _prompt_terms(passes.prompt, learns) if signal else [(0, learns.nonzero()[:, 0])]
        sums = torch.zeros(len(chunk), 0)
        half = False
        for prompt, rows in terms:
            if signal and prompt % 2 and not half:
                self.even[chunk] = squares_of(sums)
                half = True
            vectors, coefficients = span(flat[:, rows].flatten(1))
            shaped = vectors.view(len(vectors), len(rows), -1)
            found = passes.vjps(forward, rows, [self._outputs(v, chunk[0]) for v in shaped])
            if signal and alone:
                inner = coefficients @ gram_of(found) @ coefficients.T
                self.own[torch.tensor(chunk)[:, None], torch.tensor(chunk), prompt] = inner
            if signal and not alone:
                for j, own in zip(chunk, coefficients, strict=True):
                    self._along_term(j, prompt, own.to(found) @ found)
            if len(chunk) == 1:
                added = found.mul_(float(coefficients[0, 0]))
            else:
                added = coefficients.to(found) @ found
            sums = sums.add_(added) if sums.numel() else added
        if signal and not half:
            self.even[chunk] = squares_of(sums)
        return sums

    def _along_term(self, j: int, prompt: int, term: Tensor) -> None:
        """The products of every arm's term of a prompt with that of arm j."""
        rows = self.live[self.passes.prompt[self.live] == prompt]
        for places, found in self.passes.jvp(self.everything, rows, term):
            self.own[:, j, prompt] += self._products(rows[places], found).sum(dim=1)

    def _products(self, rows: Tensor, along: Outputs) -> Tensor:
        """[J, n] c_i · (J v) of some rows [n]."""
        width = along["logps"].shape[1]
        found = torch.zeros(len(self.pooled), len(rows), dtype=torch.float64)
        for i, arm in enumerate(self.pooled):
            for name, value in arm.items():
                found[i] += (value[rows, :width] * along[name]).flatten(1).sum(dim=1)
        return found

    def _outputs(self, vector: Tensor, arm: int) -> Outputs:
        """[n, D] as the outputs [n, T, …] that it was laid out from."""
        like = self.pooled[arm]
        parts = torch.split(vector, [v[0].numel() for v in like.values()], dim=1)
        return {
            name: part.reshape(len(vector), *v.shape[1:])
            for (name, v), part in zip(like.items(), parts, strict=True)
        }

    def _along(self, j: int, gradient: Tensor) -> None:
        """The products of every arm's terms with the gradient of arm j."""
        shared = (self.owner == j).nonzero()[:, 0].tolist()
        for places, found in self.passes.jvp(self.everything, self.live, gradient):
            rows = self.live[places]
            prompts = self.passes.prompt[rows]
            self.terms[:, :, j].index_add_(1, prompts, self._products(rows, found))
            place = torch.full((len(self.passes.pool),), -1)
            place[rows] = torch.arange(len(rows))
            for i in shared:
                self._attribute(i, place, found)

    def _attribute(self, i: int, place: Tensor, along: Outputs) -> None:
        """What the tokens of arm i add to its square, where its rows are among those at hand."""
        arm = self.arms[i]
        rows = (place[arm.places] >= 0).nonzero()[:, 0]
        at = place[arm.places[rows]]
        for name, value in arm.by_output.items():
            own = min(along[name].shape[1], value.shape[1])
            added = value[rows, :own] * along[name][at, :own]
            added = added.reshape(len(rows), own, -1).sum(dim=2)
            self.tokens[i][rows, :own] += self.scale[i] * added

    def done(self, names: Sequence[str], sizes: Sequence[int]) -> Products:
        """With the arms that share another's passes filled in."""
        scale, owner = self.scale, self.owner
        kept: dict[str, Tensor] = {}
        if self.gradients:
            some = next(iter(self.gradients.values()))
            whole = torch.stack([
                float(s) * self.gradients.get(int(o), torch.zeros_like(some))
                for s, o in zip(scale, owner, strict=True)
            ])  # fmt: skip
            kept = dict(zip(names, torch.split(whole, list(sizes), dim=1), strict=True))
        own = self.own[owner][:, owner] * torch.outer(scale, scale).unsqueeze(2)
        return Products(
            self.squares[owner] * scale.square(),
            self.terms[:, :, owner] * scale,
            (own + own.transpose(0, 1)) / 2,
            self.even[owner] * scale.square(),
            self.tokens,
            kept,
        )


def _flat(outputs: Outputs) -> Tensor:
    """[U, D] all outputs of each row, one after the other."""
    return torch.cat([v.flatten(1) for v in outputs.values()], dim=1)


def _prompt_terms(prompt: Tensor, learns: Tensor) -> list[tuple[int, Tensor]]:
    """(prompt, its rows that learn), those of even number first."""
    numbers = sorted(range(int(prompt.max()) + 1), key=lambda p: (p % 2, p))
    found = [(p, ((prompt == p) & learns).nonzero()[:, 0]) for p in numbers]
    return [(p, rows) for p, rows in found if len(rows)]


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


def gram_of(rows: Tensor) -> Tensor:
    """[R, R] inner products of rows [R, numel], summed in float64 on the CPU."""
    total = torch.zeros(len(rows), len(rows), dtype=torch.float64)
    for part in torch.split(rows, 2**20, dim=1):
        wide = part.double()
        total += (wide @ wide.T).cpu()
    return total


def squares_of(rows: Tensor) -> Tensor:
    """[R] of rows [R, numel], summed in float64 on the CPU."""
    parts = torch.split(rows, 2**20, dim=1)
    return sum((p.double().square().sum(dim=1).cpu() for p in parts), torch.zeros(len(rows)))
