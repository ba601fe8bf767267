"""Inner products from one gradient at a time are those of the gradients themselves."""

from __future__ import annotations

from collections.abc import Iterator
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from grpolab.probe import gradients, summary
from grpolab.probe.gradients import Slopes, products
from grpolab.probe.passes import Passes
from grpolab.probe.records import Probe
from grpolab.probe.session import probe
from grpolab.probe.sizes import terms
from grpolab.probe.table import SharedForward
from grpolab.training.collect import Collector
from grpolab.training.loop import prepare_torch

if TYPE_CHECKING:
    from tests.probe.first_gradients import BASE, composed
else:
    from first_gradients import BASE, composed

ARMS = [
    "clip=ppo", "clip=gspo", "advantage=raw", "advantage=group_center",
    "aggregation=seq_mean_token_mean", "clip.masks=[{name: top_entropy, share: 0.3}]",
]  # fmt: skip
"""Of which the second shares the first one's passes."""


@pytest.fixture(scope="module")
def found() -> Probe:
    return probe(ARMS, overrides=BASE, keep_gradients=True)


def test_cosines_and_norms_are_those_of_the_gradients(found: Probe) -> None:
    whole = torch.cat(list(found.kept.values()), dim=1).double()
    norms = whole.norm(dim=1)
    wanted = whole @ whole.T / torch.outer(norms, norms)
    np.testing.assert_allclose(found.cosine.to_numpy(), wanted, atol=2e-6)
    np.testing.assert_allclose(found.gradients["norm"], norms, rtol=1e-6)
    assert 0.1 < wanted.min() < 0.99  # the arms do differ


def test_one_gradient_at_a_time_is_the_same(found: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    held = []

    def limited(passes: Passes, arms: Any, **wanted: Any) -> gradients.Products:
        result = products(passes, arms, limit=1, **wanted)
        held.append(passes)
        return result

    monkeypatch.setattr(summary, "products", limited)
    again = probe(ARMS, overrides=BASE)
    assert held[0].most_at_once == 1
    np.testing.assert_allclose(again.cosine, found.cosine, atol=2e-6)
    np.testing.assert_allclose(again.cosine_error, found.cosine_error, atol=2e-6)
    columns = ["norm", "signal", "noise", "snr", "half_cosine"]
    np.testing.assert_allclose(again.gradients[columns], found.gradients[columns], rtol=1e-4)
    np.testing.assert_allclose(again.parts["share"], found.parts["share"], atol=1e-5)


def test_signal_is_that_of_the_prompts_own_gradients(found: Probe) -> None:
    """Against the gradients of each prompt's rows alone."""
    alone = probe(ARMS[:1], overrides=BASE, parts=["shares"])
    none = probe(ARMS[:1], overrides=BASE, parts=None, group_sizes=None, staleness=None)
    assert none.gradients["norm"][0] == alone.gradients["norm"][0]
    assert not alone.parts.empty
    assert none.parts.empty
    assert alone.gradients["snr"].isna().all()
    assert alone.gradients["norm"][0] == pytest.approx(found.gradients["norm"][0], rel=1e-6)
    assert alone.passes.backward < 1.01 * found.passes.backward


@pytest.mark.parametrize("extra", [[], ["hardware.engine=plain"], ["model.lora={r: 2}"]])
def test_forward_mode_is_the_transpose_of_backward(extra: list[str]) -> None:
    """c · (J v) = (Jᵀ c) · v for any c and v."""
    from grpolab.policy.policy import Policy
    from grpolab.sweep.preflight import check

    run = composed(*extra)
    ready = check(run)
    prepare_torch(run)
    policy = Policy(ready.encoder, run.hardware, seed=0)
    source = torch.Generator().manual_seed(0)
    for parameter in policy.trainable().values():  # LoRA's second factor starts at 0
        parameter.data += 0.01 * torch.randn(parameter.shape, generator=source)
    rollouts = Collector(run, policy, ready.examples).collect(0).rollouts
    passes = Passes(rollouts)
    forward = SharedForward(run, policy, None)
    rows = torch.arange(len(rollouts))
    c = torch.randn(rollouts.mask.shape, generator=source).double() * rollouts.mask
    back = passes.vjps(forward, rows, [{"logps": c}])[0].double()
    v = torch.randn(back.shape, generator=source)
    total = sum(
        float((c[own, : along["logps"].shape[1]] * along["logps"]).sum())
        for own, along in passes.jvp(forward, rows, v)
    )
    assert total == pytest.approx(float(back @ v.double()), rel=1e-4)


class Drawn:
    """Passes over groups whose gradients are known: row i's is the i-th."""

    def __init__(self, prompt: Tensor, terms: Tensor) -> None:
        self.prompt, self.terms = prompt, terms

    def vjps(self, forward: Any, rows: Tensor, cotangents: list[dict[str, Tensor]]) -> Tensor:
        return torch.stack([c["logps"].squeeze(1).float() @ self.terms[rows] for c in cotangents])

    def jvp(
        self, forward: Any, rows: Tensor, tangent: Tensor
    ) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for own in torch.split(torch.arange(len(rows)), 7):
            yield own, {"logps": (self.terms[rows[own]] @ tangent).double().unsqueeze(1)}


def drawn(source: torch.Generator) -> tuple[Drawn, Slopes]:
    """5 prompts × 3 groups of 2 rows: mean 1 in 4 dimensions, prompts' own variance .5 and the
    groups' 2 in each."""
    mean = 1 + 0.5**0.5 * torch.randn(5, 1, 4, generator=source)
    group = mean + 2**0.5 * torch.randn(5, 3, 4, generator=source)
    rows = group.flatten(0, 1).repeat_interleave(2, dim=0) / 2
    arm = Slopes(torch.arange(30), {"logps": torch.ones(30, 1).double()}, SimpleNamespace())  # type: ignore[arg-type]
    return Drawn(torch.arange(5).repeat_interleave(6), rows), arm


def test_moments_by_group_size_are_unbiased() -> None:
    source = torch.Generator().manual_seed(0)
    found = [terms(cast(Any, passes), arm, 2).moments() for passes, arm in many(source, 200)]
    mean, prompt, square = np.mean([(m.mean, m.prompt, m.square) for m in found], axis=0)
    assert mean == pytest.approx(4, rel=0.1)
    assert prompt == pytest.approx(4 + 2, rel=0.1)
    assert square == pytest.approx(4 + 2 + 8, rel=0.05)


def many(source: torch.Generator, count: int) -> Iterator[tuple[Drawn, Slopes]]:
    for _ in range(count):
        yield drawn(source)


def test_errors_by_group_size_are_those_of_leaving_out_each_prompt() -> None:
    """Against the squares of the sums that are left, made anew from the groups' own gradients."""
    passes, arm = drawn(torch.Generator().manual_seed(1))
    row = terms(cast(Any, passes), arm, 2).row(scale=3.0)
    groups = passes.terms.reshape(5, 3, 2, 4).sum(dim=2).double().numpy()
    left = []
    for p in range(5):
        own = np.delete(groups, p, axis=0)
        n, total = 12, own.sum(axis=(0, 1))
        prompts, square = np.square(own.sum(axis=1)).sum(), np.square(own).sum()
        mean = (total @ total - prompts) / (n**2 - 4 * 3**2)
        prompt, noise = (prompts - square) / (4 * 3 * 2), square / n - mean
        left.append((9 * mean, 9 * noise, mean / noise, (prompt - mean) / noise))
    wanted = np.sqrt(4 / 5 * np.square(left - np.mean(left, axis=0)).sum(axis=0))
    found = [row[f"{name}_error"] for name in ("signal", "noise", "snr", "prompt_share")]
    np.testing.assert_allclose(found, wanted, rtol=1e-5)


@pytest.fixture(scope="module")
def by_group_size() -> Probe:
    return probe(["advantage=group_center", "clip=cispo"], overrides=BASE, group_sizes=[2, 4])


def test_group_sizes(by_group_size: Probe) -> None:
    table = by_group_size.sizes[by_group_size.sizes["arm"] == "advantage=group_center"]
    assert table["group_size"].tolist() == [2, 4, 8]
    assert table["groups"].tolist() == [16, 8, 4]
    assert (table["noise"] > 0).all()
    assert (table["snr_error"] > 0).all()
    # in groups of all of a prompt's completions there are no two of one prompt to compare
    assert table["prompt_share"].notna().tolist() == [True, True, False]


def test_the_batch_s_own_size_is_what_the_other_tables_say(by_group_size: Probe) -> None:
    """There signal and noise are the batch's: P² and P times those of one of its P groups."""
    whole = by_group_size.sizes.query("group_size == 8").reset_index()
    batch = by_group_size.gradients
    np.testing.assert_allclose(whole["signal"] * 4**2, batch["signal"], rtol=1e-4)
    np.testing.assert_allclose(whole["noise"] * 4, batch["noise"], rtol=1e-4)
