"""Named streams: stable, independent, and without a trace in torch's global state."""

from __future__ import annotations

import itertools

import pytest
import torch

from grpolab.rng import STREAMS, derive, generator, global_stream, permutation


def test_pinned() -> None:
    # sha256("0/sampling/3"), its first 8 bytes without the last bit: a change breaks resuming
    assert derive(0, "sampling", 3) == 3393904119063395225


def test_same_stream_same_numbers() -> None:
    first, second = (torch.rand(8, generator=generator(1, "prompts", 2)) for _ in range(2))
    assert torch.equal(first, second)


def test_every_part_of_the_name_counts() -> None:
    names = [
        *((0, stream, 0) for stream in STREAMS),
        *((seed, "init", 0) for seed in (1, 2, 11)),
        *((0, "init", *indices) for indices in ((), (1,), (0, 0), (0, 1), (1, 0), (10,))),
        (1, "init", 1),
        (11, "init"),
    ]
    seeds = [derive(*name) for name in names]
    assert len(set(seeds)) == len(names)
    assert all(0 <= s < 2**63 for s in seeds)


def test_streams_are_uncorrelated() -> None:
    draws = [torch.randn(4000, generator=generator(0, s, 1)) for s in STREAMS]
    draws += [torch.randn(4000, generator=generator(seed, "init", 1)) for seed in (1, 2)]
    for a, b in itertools.combinations(draws, 2):
        correlation = float(torch.corrcoef(torch.stack([a, b]))[0, 1])
        assert abs(correlation) < 5 / 4000**0.5  # five standard errors


def test_drawing_more_from_one_stream_moves_no_other() -> None:
    expected = torch.rand(4, generator=generator(0, "selection", 7))
    torch.rand(1000, generator=generator(0, "sampling", 7))
    assert torch.equal(torch.rand(4, generator=generator(0, "selection", 7)), expected)


def test_generators_leave_the_global_state() -> None:
    before = torch.get_rng_state()
    torch.rand(5, generator=generator(0, "sampling"))
    permutation(10, 0, "prompts")
    assert torch.equal(torch.get_rng_state(), before)


def test_global_stream_draws_and_restores() -> None:
    before = torch.get_rng_state()
    with global_stream(3, "dropout", 1):
        first = torch.rand(6)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(9)
    with global_stream(3, "dropout", 1):
        assert torch.equal(torch.rand(6), first)
    assert torch.equal(torch.rand(6, generator=generator(3, "dropout", 1)), first)


def test_global_stream_restores_after_an_error() -> None:
    def fail() -> None:
        with global_stream(0, "dropout"):
            torch.rand(3)
            raise RuntimeError("inside")

    before = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="inside"):
        fail()
    assert torch.equal(torch.get_rng_state(), before)


def test_permutation() -> None:
    found = permutation(50, 0, "prompts", 1)
    assert sorted(found) == list(range(50))
    assert found == permutation(50, 0, "prompts", 1)
    assert found != permutation(50, 0, "prompts", 2)
    assert permutation(0, 0, "prompts") == []


def test_unknown_stream() -> None:
    with pytest.raises(ValueError, match="unknown random stream 'samplign'; allowed: init, "):
        derive(0, "samplign")
