"""The distribution the trainer evaluates: by hand, its gradient, and equal to what was sampled."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from grpolab.component import component
from grpolab.policy.policy import Policy, TokenLogps
from grpolab.sampling import base
from grpolab.sampling.base import Sampler, Samples

if TYPE_CHECKING:
    from tests.policy import policies as lab
    from tests.sampling.draws import PROMPTS, SAMPLERS, sample
else:
    import policies as lab
    from draws import PROMPTS, SAMPLERS, sample

P = torch.tensor([0.5, 0.3, 0.15, 0.05], dtype=torch.float64)
COMBINATIONS: list[dict[str, Any]] = [
    {"temperature": 0.7},
    {"top_k": 5},
    {"temperature": 1.3, "top_k": 5},
    {"temperature": 0.8, "top_p": 0.8},
    {"temperature": 1.2, "min_p": 0.1},
    {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
]


def sampler_of(name: str = "static", **settings: Any) -> Sampler:
    found: Sampler = component("sampler", name, **settings)
    return found


def evaluated(token: int, **settings: Any) -> tuple[float, float]:
    """(π(token) evaluated, π(token) over the whole support) under logits log P."""
    logits, tokens = P.log().unsqueeze(0), torch.tensor([token])
    both = sampler_of(**settings).evaluate(logits, tokens)
    one, two = (float(z.softmax(-1)[0, token]) for z in both)
    return one, two


# -- by hand -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "token", "expected", "whole"),
    [
        # By default the policy itself, however it was sampled
        ({"temperature": 0.5, "top_k": 2}, 2, 0.15, 0.15),
        # top_k 2 keeps .5 and .3: .5/.8 and .3/.8; a third token sampled all the same: .15/.95
        ({"top_k": 2, "match_support": True}, 0, 0.625, 0.5),
        ({"top_k": 2, "match_support": True}, 1, 0.375, 0.3),
        ({"top_k": 2, "match_support": True}, 2, 0.15 / 0.95, 0.15),
        # top_p .7 needs .5 + .3
        ({"top_p": 0.7, "match_support": True}, 0, 0.625, 0.5),
        # min_p .2 keeps what is at least .2 · .5 = .1
        ({"min_p": 0.2, "match_support": True}, 1, 0.3 / 0.95, 0.3),
        # T = 1/2 squares: .25, .09, .0225, .0025 of .365
        ({"temperature": 0.5, "match_temperature": True}, 0, 0.25 / 0.365, 0.25 / 0.365),
        (
            {"temperature": 0.5, "match_temperature": True, "top_k": 1},
            1,
            0.09 / 0.365,
            0.09 / 0.365,
        ),
        # Both: .25/.34 on the two likeliest; the KL's side stays on the whole tempered support
        (
            {"temperature": 0.5, "match_temperature": True, "top_k": 2, "match_support": True},
            0,
            0.25 / 0.34,
            0.25 / 0.365,
        ),
        # The support alone, of the tempered distribution: .25/.365 = .685 reaches .68 with one
        # token, where the untempered .5 would need a second
        ({"temperature": 0.5, "top_p": 0.68, "match_support": True}, 0, 1.0, 0.5),
        ({"temperature": 0.5, "top_p": 0.68, "match_support": True}, 1, 0.3 / 0.8, 0.3),
        # top_p after top_k, on what it left: .5/.8 = .625 reaches .6
        ({"top_k": 2, "top_p": 0.6, "match_support": True}, 0, 1.0, 0.5),
        # min_p after top_p: .3 is below .7 · .5
        ({"top_p": 0.7, "min_p": 0.7, "match_support": True}, 0, 1.0, 0.5),
    ],
)
def test_four_tokens_by_hand(
    settings: dict[str, Any], token: int, expected: float, whole: float
) -> None:
    assert evaluated(token, **settings) == pytest.approx((expected, whole), abs=1e-12)


@pytest.mark.parametrize(
    "settings", [{"match_support": True}, {"match_temperature": True}, {"match_support": False}]
)
def test_a_plain_sampler_is_evaluated_as_it_is(settings: dict[str, Any]) -> None:
    logits = torch.randn(3, 7)
    sampler = sampler_of(**settings)
    one, two = sampler.evaluate(logits, torch.tensor([0, 1, 2]))
    assert one is logits
    assert two is logits
    assert sampler.plain
    assert sampler.matched
    assert sampler.evaluates_policy


@pytest.mark.parametrize(
    ("settings", "plain", "policy", "matched"),
    [
        ({"temperature": 0.7}, False, True, False),
        ({"temperature": 0.7, "match_temperature": True}, False, False, True),
        ({"temperature": 0.7, "match_support": True}, False, True, False),
        ({"top_k": 3}, False, True, False),
        ({"top_k": 3, "match_support": True}, False, False, True),
        ({"top_k": 3, "match_temperature": True}, False, True, False),
        ({"temperature": 2.0, "min_p": 0.1, "match_support": True}, False, False, False),
        ({"temperature": 2.0, "min_p": 0.1, "match_temperature": True}, False, False, False),
    ],
)
def test_what_a_sampler_says_of_itself(
    settings: dict[str, Any], plain: bool, policy: bool, matched: bool
) -> None:
    sampler = sampler_of(**settings)
    assert (sampler.plain, sampler.evaluates_policy, sampler.matched) == (plain, policy, matched)


settings_of_a_sampler = st.fixed_dictionaries(
    {
        "temperature": st.floats(0.3, 3),
        "top_k": st.integers(0, 8),
        "top_p": st.floats(0.05, 1),
        "min_p": st.floats(0, 0.9),
    }
)


@given(settings=settings_of_a_sampler, seed=st.integers(0, 10_000))
def test_matched_it_is_the_distribution_sampled_from(settings: dict[str, Any], seed: int) -> None:
    source = torch.Generator().manual_seed(seed)
    logits = 3 * torch.randn(5, 6, generator=source, dtype=torch.float64)
    sampler = sampler_of(**settings, match_temperature=True, match_support=True)
    warped = sampler.warp(logits)
    likeliest = logits.argmax(dim=-1)
    found, whole = sampler.evaluate(logits, likeliest)
    assert torch.equal(found.softmax(-1), warped.softmax(-1))
    assert torch.equal(whole, logits / sampler.temperature)
    # Any other token joins the support, and no other does
    other = torch.randint(6, (5,), generator=source)
    kept = sampler.evaluate(logits, other)[0] > -torch.inf
    expected = (warped > -torch.inf).scatter(1, other.unsqueeze(1), True)
    assert torch.equal(kept, expected)


def test_rows_are_filtered_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = torch.randn(3, 5, 11)
    tokens = torch.randint(11, (3, 5))
    sampler = sampler_of(top_k=6, top_p=0.8, min_p=0.05, temperature=0.7)
    whole = sampler.outside(logits, tokens)
    assert whole.shape == logits.shape
    assert 0 < int(whole.sum()) < whole.numel()
    monkeypatch.setattr(base, "FILTERED_AT_ONCE", 23)  # two rows at a time
    assert torch.equal(sampler.outside(logits, tokens), whole)


# -- the gradient ------------------------------------------------------------------------------


@pytest.mark.parametrize("match_temperature", [False, True])
def test_gradient_is_that_of_the_renormalised_log_softmax(match_temperature: bool) -> None:
    sampler = sampler_of(
        temperature=0.8, top_k=3, match_support=True, match_temperature=match_temperature
    )
    scale = 1 / 0.8 if match_temperature else 1.0
    tokens = torch.tensor([1, 3])

    def logps(logits: Tensor) -> Tensor:
        both = sampler.evaluate(logits, tokens)
        parts = [z.gather(1, tokens.unsqueeze(1)).squeeze(1) - z.logsumexp(-1) for z in both]
        return torch.stack(parts)

    logits = torch.tensor(
        [[0.1, 1.0, -0.5, 0.9, -2.0], [2.0, 1.0, 0.5, -1.0, -3.0]],
        dtype=torch.float64,
        requires_grad=True,
    )
    assert torch.autograd.gradcheck(logps, (logits,))
    on_support, whole = (
        torch.autograd.grad(part.sum(), logits, retain_graph=True)[0] for part in logps(logits)
    )
    # (1[v = token] − π(v)) / T inside the support, the sampled token 3 of row 2 included; 0 outside
    inside = torch.tensor([[True, True, False, True, False], [True, True, True, True, False]])
    one_hot = torch.nn.functional.one_hot(tokens, 5)
    z = logits.detach() * scale
    kept = z.masked_fill(~inside, -math.inf).softmax(-1)
    torch.testing.assert_close(on_support, scale * (one_hot * inside - kept))
    torch.testing.assert_close(whole, scale * (one_hot - z.softmax(-1)))
    assert float(on_support[~inside].abs().max()) == 0.0


# -- the samplers ------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["tiny", "Qwen2", "GPT2"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return lab.family(tmp_path_factory.mktemp(request.param), request.param)


def trainer(policy: Policy, found: Samples, sampler: Sampler, samples: int) -> TokenLogps:
    """The trainer's view of what was sampled."""
    encoded = [p for p in policy.encoder.encode(PROMPTS) for _ in range(samples)]
    ids = torch.zeros((len(encoded), 8), dtype=torch.long)
    for row, prompt in enumerate(encoded):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(p) for p in encoded])
    with torch.no_grad():
        return policy.token_logps(
            ids, lengths, found.completion_ids, found.mask, evaluation=sampler.evaluation()
        )


def gap(a: Tensor, b: Tensor, mask: Tensor) -> float:
    return float((a - b)[mask].abs().max())


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("settings", COMBINATIONS, ids=str)
def test_matched_log_probs_are_those_sampled_at(
    policy: Policy, name: str, settings: dict[str, Any]
) -> None:
    settings = settings | {"match_temperature": True, "match_support": True}
    found = sample(policy, name, samples=3, **settings)
    now = trainer(policy, found, sampler_of(name, **settings), 3)
    assert gap(now.logps, found.sampler_logps, found.mask) < 1e-4
    assert gap(now.logps, found.policy_logps, found.mask) < 1e-4
    assert (now.whole is None) == (not sampler_of(**settings).truncates)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("flags", ["", "match_temperature", "match_support"])
@pytest.mark.parametrize("greedy", [False, True])
def test_policy_logps_are_what_the_trainer_evaluates(
    policy: Policy, name: str, flags: str, greedy: bool
) -> None:
    settings: dict[str, Any] = {"temperature": 0.8, "top_k": 4, "min_p": 0.02}
    settings |= dict.fromkeys(flags.split(), True)
    found = sample(policy, name, samples=3, greedy=greedy, **settings)
    now = trainer(policy, found, sampler_of(name, **settings), 3)
    assert gap(now.logps, found.policy_logps, found.mask) < 1e-4
    if not greedy:
        assert gap(now.logps, found.sampler_logps, found.mask) > 1e-2  # another distribution


@pytest.mark.parametrize("settings", COMBINATIONS, ids=str)
def test_in_float64_to_rounding_error(settings: dict[str, Any], tmp_path: Path) -> None:
    policy = lab.double(lab.family(tmp_path, "GPT2"))
    settings = settings | {"match_temperature": True, "match_support": True}
    found = sample(policy, samples=3, **settings)
    assert found.sampler_logps.dtype == torch.float64
    now = trainer(policy, found, sampler_of(**settings), 3)
    assert gap(now.logps, found.sampler_logps, found.mask) < 1e-9
