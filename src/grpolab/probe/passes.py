"""Backward and forward-mode passes over the unique rows of a pool: Jᵀc and J·v.

J is the derivative of the rows' outputs (log-probs, and for a few variants logits) by the
parameters. Jᵀc is computed by the very functions that training runs. J·v, how the outputs change
along a direction v of the parameters, is their forward-mode derivative: one pass, and nothing kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from grpolab.policy.policy import TokenLogps
from grpolab.probe.table import OUTPUTS, SharedForward
from grpolab.rollouts import Rollouts

Outputs = dict[str, Tensor]
"""[n, T, …] by output."""


class Passes:
    """The passes, over how many rows they ran, and how many gradients one of them gave at most."""

    def __init__(self, pool: Rollouts) -> None:
        self.pool = pool
        self.prompt = prompt_numbers(pool)
        self.backward_rows = self.forward_rows = self.most_at_once = 0

    @property
    def prompts(self) -> int:
        return int(self.prompt.max()) + 1

    def vjps(
        self, forward: SharedForward, rows: Tensor, cotangents: Sequence[Outputs]
    ) -> Tensor:  # fmt: skip
        """[R, numel] Jᵀc of some rows [n] for each of R cotangents [n, T, …], float32."""
        parameters = list(forward.policy.trainable().values())
        sizes = [p.numel() for p in parameters]
        self.most_at_once = max(self.most_at_once, len(cotangents))
        total = torch.zeros(len(cotangents), sum(sizes), device=forward.policy.device)
        for own, part in self._parts(forward, rows):
            now = forward.logps(part)
            for r, cotangent in enumerate(cotangents):
                values = [getattr(now, name) for name in cotangent]
                width = values[0].shape[1]
                grads = torch.autograd.grad(
                    values,
                    parameters,
                    [c[own, :width].to(v) for c, v in zip(cotangent.values(), values, strict=True)],
                    retain_graph=r + 1 < len(cotangents),
                    allow_unused=True,
                )
                _add(total[r], grads, sizes)
            self.backward_rows += len(own) * len(cotangents)
        return total

    @torch.no_grad()
    def jvp(
        self, forward: SharedForward, rows: Tensor, tangent: Tensor
    ) -> Iterator[tuple[Tensor, Outputs]]:
        """(places among some rows [n], J·v of them, [m, width, …] by output, float64 on the CPU)
        for a direction v [numel]."""
        parameters = forward.policy.trainable()
        parts = torch.split(tangent, [p.numel() for p in parameters.values()])
        model = _Rows(forward)
        for own, part in self._parts(forward, rows):
            with forward_ad.dual_level(), sdpa_kernel([SDPBackend.MATH]):
                duals = {
                    f"model.{name}": _dual(p.detach(), v.view_as(p).to(p))
                    for (name, p), v in zip(parameters.items(), parts, strict=True)
                }
                now = torch.func.functional_call(model, duals, (part,))
                found = {
                    name: _tangent(value)
                    for name in OUTPUTS
                    if (value := getattr(now, name)) is not None
                }
            mask = part["mask"]
            self.forward_rows += len(own)
            yield own, {k: _masked(v, mask).double().cpu() for k, v in found.items()}

    def _parts(
        self, forward: SharedForward, rows: Tensor
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """(places among `rows`, tensors) of each micro-batch; rows of one prompt share it."""
        place = {int(row): i for i, row in enumerate(rows)}
        ordered = rows[torch.argsort(self.prompt[rows], stable=True)]
        for chosen, width in forward.microbatches(self.pool, ordered):
            part = forward.part(self.pool, chosen, width)
            part["groups"] = self.prompt[chosen].to(part["groups"].device)
            yield torch.tensor([place[int(row)] for row in chosen]), part


class _Rows(torch.nn.Module):
    """A forward pass as a module, whose parameters can be exchanged."""

    def __init__(self, forward: SharedForward) -> None:
        super().__init__()
        self.model = forward.policy.model
        self.run = forward.logps

    def forward(self, part: dict[str, Tensor]) -> TokenLogps:
        return self.run(part)


def _dual(value: Tensor, tangent: Tensor) -> Tensor:
    found: Tensor = forward_ad.make_dual(value, tangent)  # type: ignore[no-untyped-call]
    return found


def _tangent(value: Tensor) -> Tensor:
    found: Tensor = forward_ad.unpack_dual(value).tangent  # type: ignore[no-untyped-call]
    return found


def _masked(values: Tensor, mask: Tensor) -> Tensor:
    """Values [n, T, …], zero where the mask [n, T] is."""
    return torch.where(mask.view(*mask.shape, *[1] * (values.dim() - 2)), values, 0)


def _add(total: Tensor, grads: Sequence[Tensor | None], sizes: Sequence[int]) -> None:
    """total [numel] += the gradients of all parameters, one behind the other."""
    for view, grad in zip(torch.split(total, list(sizes)), grads, strict=True):
        if grad is not None:
            view.add_(grad.flatten())


def prompt_numbers(pool: Rollouts) -> Tensor:
    """[U] a number of each row's prompt, from 0 in the order of their first rows."""
    known: dict[tuple[int, ...], int] = {}
    lengths = pool.prompt_lengths.tolist()
    rows = zip(pool.prompt_ids.tolist(), lengths, strict=True)
    return torch.tensor([known.setdefault(tuple(ids[:n]), len(known)) for ids, n in rows])
