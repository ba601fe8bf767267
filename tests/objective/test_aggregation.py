"""Aggregations by hand: every denominator, with and without empty rows, and how they relate."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import ConfigError, component, registry

LENGTHS = [3, 1, 0, 2]  # two prompts with two completions each; one is empty
LIMIT = 5
# 6 tokens; the prompts' groups have 4 and 2; the longest is 3
BY_HAND: list[tuple[str, dict[str, Any], list[str]]] = [
    ("token_mean", {}, ["1/6", "1/6", "-", "1/6"]),
    ("token_mean_micro", {}, ["1/6", "1/6", "-", "1/6"]),  # one micro-batch of up to 8 rows
    ("token_mean_micro", {"rows": 4}, ["1/6", "1/6", "-", "1/6"]),
    ("token_mean_micro", {"rows": 2}, ["1/8", "1/8", "-", "1/4"]),  # 4 and 2 tokens, two of them
    ("token_mean_micro", {"rows": 3}, ["1/8", "1/8", "-", "1/4"]),  # 3 + 1 + 0 | 2
    ("token_mean_micro", {"rows": 1}, ["1/12", "1/4", "-", "1/8"]),  # the empty one counts: 1/4
    ("token_sum", {}, ["1", "1", "-", "1"]),
    ("constant", {}, ["1/1000", "1/1000", "-", "1/1000"]),
    ("constant", {"constant": 64.0}, ["1/64", "1/64", "-", "1/64"]),
    ("seq_mean_token_mean", {}, ["1/12", "1/4", "-", "1/8"]),
    ("seq_mean_token_mean", {"count_empty": False}, ["1/9", "1/3", "-", "1/6"]),
    ("seq_mean_token_sum", {}, ["1/4", "1/4", "-", "1/4"]),
    ("seq_mean_token_sum", {"count_empty": False}, ["1/3", "1/3", "-", "1/3"]),
    ("seq_mean_token_sum_norm", {}, ["1/20", "1/20", "-", "1/20"]),
    ("seq_mean_token_sum_norm", {"count_empty": False}, ["1/15", "1/15", "-", "1/15"]),
    ("seq_mean_token_sum_norm", {"length": "longest"}, ["1/12", "1/12", "-", "1/12"]),
    (
        "seq_mean_token_sum_norm",
        {"length": "longest", "count_empty": False},
        ["1/9", "1/9", "-", "1/9"],
    ),
    ("prompt_mean", {}, ["1/8", "1/8", "-", "1/4"]),
    ("prompt_mean", {"count_empty": False}, ["1/8", "1/8", "-", "1/4"]),  # no prompt is empty
]


def mask_of(lengths: list[int], width: int = LIMIT) -> Tensor:
    return torch.arange(width) < torch.tensor(lengths).unsqueeze(1)


def token_weights(name: str, lengths: list[int], group_size: int, **settings: Any) -> Tensor:
    """[N, T] derivative of the scalar by each per-token loss."""
    mask = mask_of(lengths)
    losses = torch.zeros(mask.shape, dtype=torch.float64, requires_grad=True)
    scalar = component("aggregation", name, **settings)(
        losses, mask, group_size=group_size, max_length=LIMIT
    )
    assert float(scalar.detach()) == 0.0  # and not 0 · inf
    return torch.autograd.grad(scalar, losses)[0]


def expected(weights: list[str], lengths: list[int]) -> Tensor:
    each = [0.0 if w == "-" else float(Fraction(w)) for w in weights]
    return torch.where(mask_of(lengths), torch.tensor(each, dtype=torch.float64).unsqueeze(1), 0.0)


def same(a: Tensor, b: Tensor) -> None:
    torch.testing.assert_close(a, b, rtol=1e-14, atol=0)


@pytest.mark.parametrize(("name", "settings", "weights"), BY_HAND)
def test_by_hand(name: str, settings: dict[str, Any], weights: list[str]) -> None:
    same(token_weights(name, LENGTHS, 2, **settings), expected(weights, LENGTHS))


def test_every_aggregation_is_here_by_hand() -> None:
    assert {case[0] for case in BY_HAND} == set(registry("aggregation"))


@pytest.mark.parametrize(("count_empty", "share"), [(True, Fraction(1, 3)), (False, Fraction(1))])
def test_prompts_without_a_token(count_empty: bool, share: Fraction) -> None:
    # groups of 0, 4 and 0 tokens: 1/(3·4) or 1/(1·4)
    lengths = [0, 0, 1, 3, 0, 0]
    each = str(share / 4)
    same(
        token_weights("prompt_mean", lengths, 2, count_empty=count_empty),
        expected(["-", "-", each, each, "-", "-"], lengths),
    )


def test_a_prompt_with_one_token_counts() -> None:
    # groups of 1, 4 and 0 tokens, two of them with any: 1/(2·1) and 1/(2·4)
    lengths = [0, 1, 1, 3, 0, 0]
    same(
        token_weights("prompt_mean", lengths, 2, count_empty=False),
        expected(["-", "1/2", "1/8", "1/8", "-", "-"], lengths),
    )


def test_scalar_by_hand() -> None:
    # rows (1, 2, 3) and (6): the groups are (1, 2, 3, 6) and (empty, 4 4)
    losses = torch.tensor([[1.0, 2, 3], [6, 99, 99], [99, 99, 99], [4, 4, 99]])
    mask = mask_of(LENGTHS, width=3)
    found = {
        name: float(component("aggregation", name)(losses, mask, group_size=2, max_length=LIMIT))
        for name in registry("aggregation")
    }
    assert found == pytest.approx(
        {
            "token_mean": 20 / 6,
            "token_mean_micro": 20 / 6,
            "token_sum": 20.0,
            "constant": 0.02,
            "seq_mean_token_mean": (2 + 6 + 0 + 4) / 4,
            "seq_mean_token_sum": 20 / 4,
            "seq_mean_token_sum_norm": 20 / 20,
            "prompt_mean": (12 / 4 + 8 / 2) / 2,
        }
    )


# --- How they relate ----------------------------------------------------------------------------

batches = st.tuples(
    st.integers(1, 4),  # completions per prompt
    st.integers(1, 5),  # prompts
    st.integers(0, 10**6),
).map(lambda t: (t[0], torch.randint(0, LIMIT + 1, (t[0] * t[1],), generator=source(t[2]))))


def source(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@given(batch=batches)
def test_a_micro_batch_of_one_row_a_group_or_everything(batch: tuple[int, Tensor]) -> None:
    size, drawn = batch
    lengths = drawn.tolist()

    def micro(rows: int) -> Tensor:
        return token_weights("token_mean_micro", lengths, size, rows=rows)

    same(micro(1), token_weights("seq_mean_token_mean", lengths, size))
    same(micro(size), token_weights("prompt_mean", lengths, size))
    same(micro(len(lengths)), token_weights("token_mean", lengths, size))
    same(micro(1000), token_weights("token_mean", lengths, size))


@given(batch=batches, rows=st.integers(1, 6), seed=st.integers(0, 99))
def test_token_mean_micro_averages_what_each_micro_batch_gives(
    batch: tuple[int, Tensor], rows: int, seed: int
) -> None:
    size, drawn = batch
    mask = mask_of(drawn.tolist())
    losses = torch.randn(mask.shape, dtype=torch.float64, generator=source(seed))
    micro, mean = component("aggregation", "token_mean_micro", rows=rows), []
    for chunk, tokens in zip(torch.split(losses, rows), torch.split(mask, rows), strict=True):
        alone = micro(chunk, tokens, group_size=size, max_length=LIMIT)
        own = float(chunk[tokens].sum()) / max(1, int(tokens.sum()))
        assert float(alone) == pytest.approx(own, abs=1e-14)  # of one: its own token mean
        mean.append(own)
    whole = micro(losses, mask, group_size=size, max_length=LIMIT)
    assert float(whole) == pytest.approx(sum(mean) / len(mean), abs=1e-13)


COUNTING = [n for n, c in registry("aggregation").items() if "count_empty" in vars(c())]


@pytest.mark.parametrize("name", sorted(COUNTING))
@given(batch=batches)
def test_empty_rows_left_out_are_as_if_not_there(name: str, batch: tuple[int, Tensor]) -> None:
    size, drawn = batch
    lengths = drawn.tolist()
    if name == "prompt_mean":
        group = torch.split(drawn, size)
        kept = [bool(g.any()) for g in group for _ in range(size)]
    else:
        size, kept = 1, [n > 0 for n in lengths]
    found = token_weights(name, lengths, size, count_empty=False)
    without = [n for n, keep in zip(lengths, kept, strict=True) if keep]
    if not without:
        assert not found.any()
        return
    same(found[torch.tensor(kept)], token_weights(name, without, size, count_empty=False))
    if all(kept):
        same(found, token_weights(name, lengths, size))
    else:
        ratio = token_weights(name, lengths, size)[found > 0] / found[found > 0]
        assert (ratio < 1).all()


@given(batch=batches)
def test_fixed_denominators_differ_by_factors(batch: tuple[int, Tensor]) -> None:
    size, drawn = batch
    lengths, n = drawn.tolist(), len(drawn)
    total = token_weights("token_sum", lengths, size)
    same(total, mask_of(lengths).double())
    same(token_weights("constant", lengths, size, constant=8.0), total / 8)
    same(token_weights("seq_mean_token_sum", lengths, size), total / n)
    same(token_weights("seq_mean_token_sum_norm", lengths, size), total / (n * LIMIT))
    longest = max(1, *lengths)
    found = token_weights("seq_mean_token_sum_norm", lengths, size, length="longest")
    same(found, total / (n * longest))


def test_the_longest_completion_and_not_the_padding() -> None:
    mask = mask_of([2, 1], width=4)
    norm = component("aggregation", "seq_mean_token_sum_norm", length="longest")
    assert norm.weights(mask, group_size=2, max_length=9).flatten().tolist() == [1 / 4, 1 / 4]


@pytest.mark.parametrize("name", sorted(registry("aggregation")))
def test_no_rows_at_all(name: str) -> None:
    empty = torch.zeros(0, 3)
    found = component("aggregation", name)(empty, empty.bool(), group_size=2, max_length=3)
    assert float(found) == 0.0


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("constant", {"constant": 0.0}, "aggregation.constant: 0.0 is out of bounds"),
        ("token_mean_micro", {"rows": 0}, "aggregation.rows: 0 is out of bounds"),
        ("seq_mean_token_sum_norm", {"length": "max"}, "aggregation.length: 'max' is not allowed"),
        ("token_mean", {"count_empty": True}, "aggregation.count_empty: unknown setting"),
    ],
)
def test_refused(name: str, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        component("aggregation", name, **settings)
    assert str(caught.value).startswith(message)
