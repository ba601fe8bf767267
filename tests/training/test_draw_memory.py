"""Out of memory while sampling: half the prompts a call, the same completions."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts
from grpolab.sampling.base import Draw, Samples
from grpolab.sampling.hf import HF
from grpolab.sampling.static import Static
from grpolab.tasks.base import Examples
from grpolab.training.collect import Collector, encode_examples
from grpolab.training.draw import Room, sample_rollouts
from grpolab.training.failures import TrainingFailed

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

GROUP = 3
FULL = "DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte"


@pytest.fixture(scope="module")
def policy() -> Policy:
    return lab.double(lab.policy_of(lab.run_of()))


@pytest.fixture(scope="module")
def prompts(policy: Policy) -> list[list[int]]:
    return encode_examples(policy.encoder, examples().train[:5])


def examples() -> Examples:
    found: Examples = lab.run_of().task.load()
    return found


def sampler(name: str = "static") -> Any:
    settings = (f"sampler.group_size={GROUP}", "sampler.max_new_tokens=8")
    return lab.run_of(f"sampler={name}", *settings).sampler


def room_for(prompts: int, monkeypatch: pytest.MonkeyPatch, kind: type = Static) -> list[int]:
    """A sampler that runs out of memory above so many prompts; the sizes it was asked for."""
    asked: list[int] = []
    whole = kind.__call__

    def small(self: Any, policy: Policy, wanted: Any, draw: Draw) -> Samples:
        asked.append(len(wanted))
        if len(wanted) > prompts:
            raise RuntimeError(FULL)
        found: Samples = whole(self, policy, wanted, draw)
        return found

    monkeypatch.setattr(kind, "__call__", small)
    return asked


def assert_same(found: Rollouts, expected: Rollouts) -> None:
    assert found.texts == expected.texts
    assert found.completion_tokens() == expected.completion_tokens()
    for name in ("mask", "truncated", "prompt_lengths", "prompt_index", "ages"):
        assert torch.equal(getattr(found, name), getattr(expected, name)), name
    torch.testing.assert_close(found.sampler_logps, expected.sampler_logps, rtol=1e-10, atol=1e-12)


def test_the_same_completions_in_smaller_calls(
    policy: Policy, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    draw = Draw(0, (3, 0), GROUP)
    expected = sample_rollouts(sampler(), policy, prompts, draw)
    assert len(set(expected.lengths.tolist())) > 1  # rows that end early are among them
    asked, room = room_for(2, monkeypatch), Room()
    with pytest.warns(UserWarning, match="out of memory while sampling .* 2 prompts a call"):
        found = sample_rollouts(sampler(), policy, prompts, draw, room)
    assert asked == [5, 2, 2, 1]
    assert_same(found, expected)
    asked.clear()
    assert_same(sample_rollouts(sampler(), policy, prompts, draw, room), expected)
    assert asked == [2, 2, 1]  # it is not tried again


def test_a_collector_remembers(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    run = lab.run_of(
        "prompts_per_step=4", "sampler.max_new_tokens=8", f"sampler.group_size={GROUP}"
    )
    expected = Collector(run, policy, examples()).collect(0).rollouts
    collector = Collector(run, policy, examples())
    asked = room_for(3, monkeypatch)
    with pytest.warns(UserWarning, match="out of memory while sampling"):
        found = collector.collect(0).rollouts
    assert_same(found, expected)
    assert found.rewards is not None
    assert expected.rewards is not None
    assert torch.equal(found.rewards, expected.rewards)
    collector.collect(1)
    assert asked == [4, 2, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "kind", "advice"),
    [("static", Static, "sampler.group_size"), ("hf", HF, "sampler=static would split")],
)
def test_where_nothing_can_be_halved_the_run_ends(
    name: str,
    kind: type,
    advice: str,
    policy: Policy,
    prompts: list[list[int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    room_for(0, monkeypatch, kind)
    with pytest.raises(TrainingFailed, match=f"out of memory while sampling.*{advice}"):
        sample_rollouts(sampler(name), policy, prompts[:1], Draw(0, (0, 0), GROUP))


def test_other_errors_pass(
    policy: Policy, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Samples:
        raise RuntimeError("shapes do not match")

    monkeypatch.setattr(Static, "__call__", broken)
    with pytest.raises(RuntimeError, match="shapes do not match"):
        sample_rollouts(sampler(), policy, prompts, Draw(0, (0, 0), GROUP))
