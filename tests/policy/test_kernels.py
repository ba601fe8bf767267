"""Products on either library: the same numbers, and the processor's maker decides."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from grpolab.policy import kernels
from grpolab.policy.kernels import PackedLinear, linear


@pytest.fixture(params=[True, False], ids=["intel", "other"])
def intel(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> bool:
    monkeypatch.setattr(kernels, "on_intel", lambda: request.param)
    return bool(request.param)


@pytest.mark.parametrize("rows", [1, 5, 40])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_the_product(intel: bool, rows: int, biased: bool) -> None:
    source = torch.Generator().manual_seed(rows)
    x, weight = (torch.randn(n, 24, generator=source) for n in (rows, 7))
    bias = torch.randn(7, generator=source) if biased else None
    wide = functional.linear(x.double(), weight.double(), None if bias is None else bias.double())
    for found in (linear(x, weight, bias), PackedLinear(weight, bias, 5)(x)):
        torch.testing.assert_close(found.double(), wide, rtol=1e-5, atol=1e-5)


def test_the_maker_decides(intel: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not kernels.has_onednn():
        pytest.skip("this build of PyTorch has no oneDNN")
    called: list[int] = []
    own = functional.linear

    def seen(x: torch.Tensor, w: torch.Tensor, b: torch.Tensor | None = None) -> torch.Tensor:
        called.append(len(x))
        return own(x, w, b)

    monkeypatch.setattr(functional, "linear", seen)
    x = torch.ones(3, 2)
    assert torch.equal(linear(x, torch.eye(2)), x)
    assert called == ([3] if intel else [])
