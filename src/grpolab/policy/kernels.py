"""Matrix products on the fastest kernel at hand.

On a CPU in float32, PyTorch's own `linear` is MKL's, oneDNN's ships beside it, and both round as
float32 does. On an AMD EPYC oneDNN does the same product 1.2 to 1.3 times faster at a thousand rows
and 1.5 to 2.5 times faster at the 32 rows of a decode step, where the weight is laid out for it
beforehand. MKL is written for Intel: on a Xeon it is the faster by 1.07 at a thousand rows, and
they are equal at 32. So the maker of the processor decides and no timing does: one machine always
rounds alike. oneDNN's operators are those that `torch.compile` emits; where a build lacks them,
`linear` serves.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional


@cache
def has_onednn() -> bool:
    """Whether this build of PyTorch has oneDNN's linear, and it works."""
    try:
        x, w = torch.ones(2, 2), torch.eye(2)
        packed = torch.ops.mkldnn._reorder_linear_weight(w, 2)
        return bool(torch.equal(torch.ops.mkldnn._linear_pointwise(x, packed, None, *PLAIN), x))
    except (AttributeError, RuntimeError):
        return False


PLAIN: tuple[str, list[Any], str] = ("none", [], "")
"""No operation behind the product."""


@cache
def on_intel() -> bool:
    """Whether this build of PyTorch has MKL, and the processor is Intel's, which Linux alone tells
    without more ado."""
    try:
        intel = "GenuineIntel" in Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return intel and bool(torch.backends.mkl.is_available())  # type: ignore[no-untyped-call]


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """x [n, K] @ weightᵀ [K, N] + bias [N]; no gradient."""
    single = x.device.type == "cpu" and x.dtype == torch.float32
    if single and len(x) and has_onednn() and not on_intel():
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, *PLAIN)
        return found
    return functional.linear(x, weight, bias)


class PackedLinear:
    """A weight [N, K] laid out for many products with `rows` rows; no gradient, and no view of the
    original: who changes that packs anew."""

    def __init__(self, weight: Tensor, bias: Tensor | None, rows: int) -> None:
        self.bias = bias
        self.packs = (
            weight.device.type == "cpu"
            and weight.dtype in (torch.float32, torch.bfloat16)
            and has_onednn()
        )
        self.weight = weight
        if self.packs:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), rows)

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, K] → [n, N]."""
        if not self.packs:
            return functional.linear(x, self.weight, self.bias)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, *PLAIN)
        return found

    def silu(self, x: Tensor) -> Tensor:
        """silu of the product, in the same pass where the kernel can."""
        if not self.packs:
            return functional.silu(self(x), inplace=True)
        found: Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "swish", [], ""
        )
        return found

    def times(self, x: Tensor, other: Tensor) -> Tensor:
        """The product times other [n, N], likewise."""
        if not self.packs:
            return self(x).mul_(other)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, "mul"
        )
        return found

    def plus(self, x: Tensor, other: Tensor) -> Tensor:
        """The product plus other [n, N], in the wider dtype of the two."""
        if not self.packs or other.dtype != x.dtype:
            return other + self(x)
        found: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            x, other, self.weight, self.bias, "add"
        )
        return found
