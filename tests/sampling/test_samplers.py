"""Every sampler draws from the same distribution, says so truthfully, and leaves no trace."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import scipy.stats
import torch
from transformers import (
    GenerationConfig,
    LogitsProcessorList,
    MinPLogitsWarper,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from grpolab.policy.policy import Policy
from grpolab.sampling import static
from grpolab.sampling.base import Samples, choose, finish, keep_top_p, pad_left, token_logp

if TYPE_CHECKING:
    from tests.policy import policies as lab
    from tests.sampling.draws import PROMPTS, SAMPLERS, sample
else:
    import policies as lab
    from draws import PROMPTS, SAMPLERS, sample

FAMILIES = ["tiny", "Llama", "Qwen2", "GPT2", "Mistral", "Gemma2"]
ALPHA = 1e-3
DRAWS = 2000


@pytest.fixture(scope="module")
def tiny() -> Policy:
    return lab.policy_of(lab.run_of())


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return lab.family(tmp_path_factory.mktemp(request.param), request.param)


def warped_logps(policy: Policy, found: Samples, samples: int, warpers: list[Any]) -> torch.Tensor:
    """Log-probs of the sampled tokens after Transformers' own warpers, one sequence at a time."""
    logps = torch.zeros(found.mask.shape)
    encoded = policy.encoder.encode(PROMPTS)
    for row in range(len(logps)):
        completion = found.completion_ids[row][found.mask[row]]
        with torch.no_grad():
            prompt = encoded[row // samples]
            logits = lab.plain_logits(policy.model, prompt, completion.tolist())
        warped = LogitsProcessorList(warpers)(None, logits.float()).log_softmax(-1)
        logps[row, : len(completion)] = warped.gather(1, completion.unsqueeze(1)).squeeze(1)
    return logps


WARPED: list[tuple[dict[str, Any], list[Any]]] = [
    ({}, []),
    ({"temperature": 0.7}, [TemperatureLogitsWarper(0.7)]),
    (
        {"temperature": 1.3, "top_k": 5},
        [TemperatureLogitsWarper(1.3), TopKLogitsWarper(5)],
    ),
    (
        {"temperature": 0.7, "top_p": 0.8},
        [TemperatureLogitsWarper(0.7), TopPLogitsWarper(0.8)],
    ),
    (
        {"temperature": 0.7, "top_k": 20, "top_p": 0.9, "min_p": 0.1},
        [
            TemperatureLogitsWarper(0.7),
            TopKLogitsWarper(20),
            TopPLogitsWarper(0.9),
            MinPLogitsWarper(0.1),
        ],
    ),
    ({"top_k": 1000}, []),
]


# -- log-probs ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(("settings", "warpers"), WARPED)
def test_log_probs_are_those_of_transformers_own_warpers(
    policy: Policy, name: str, settings: dict[str, Any], warpers: list[Any]
) -> None:
    found = sample(policy, name, samples=3, **settings)
    warped = warped_logps(policy, found, 3, warpers)
    plain = warped_logps(policy, found, 3, [])
    assert bool(torch.isfinite(warped).all())
    torch.testing.assert_close(found.sampler_logps, warped, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.policy_logps, plain, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("name", SAMPLERS)
def test_log_probs_are_those_of_the_trainer(policy: Policy, name: str) -> None:
    found = sample(policy, name, temperature=0.8)
    encoded = [p for p in policy.encoder.encode(PROMPTS) for _ in range(4)]
    ids = torch.zeros((16, 8), dtype=torch.long)
    for row, prompt in enumerate(encoded):
        ids[row, : len(prompt)] = torch.tensor(prompt)
    lengths = torch.tensor([len(p) for p in encoded])
    with torch.no_grad():
        trained = policy.token_logps(ids, lengths, found.completion_ids, found.mask).logps
    gap = (trained - found.policy_logps)[found.mask].abs().max()
    assert float(gap) < 1e-4


# -- greedy ------------------------------------------------------------------------------------


def greedy_alone(policy: Policy, prompt: list[int], tokens: int) -> list[int]:
    """`model.generate` of one prompt, up to and with the end token."""
    config = GenerationConfig(
        do_sample=False, max_new_tokens=tokens, eos_token_id=policy.end_ids, pad_token_id=0
    )
    ids = torch.tensor([prompt])
    output = policy.model.generate(
        input_ids=ids, attention_mask=torch.ones_like(ids), generation_config=config
    )
    return [int(t) for t in output[0, len(prompt) :]]


@pytest.mark.parametrize(
    ("name", "compact_below"),
    [("hf", 0), ("continuous", 0), ("static", 0.0), ("static", 0.75), ("static", 1.0)],
)
def test_greedy_is_generate_of_each_prompt_alone(
    policy: Policy, name: str, compact_below: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "COMPACT_BELOW", compact_below)
    prompts = [*PROMPTS, "5", "12+34=12+34=12+34=", "8+8=16;", "1+1=2"]
    found = sample(policy, name, prompts=prompts, samples=2, greedy=True, max_new_tokens=24)
    assert float(found.sampler_logps.abs().max()) == 0.0
    for row, prompt in enumerate(policy.encoder.encode(prompts)):
        expected = greedy_alone(policy, prompt, 24)
        for twin in (2 * row, 2 * row + 1):
            assert found.completion_ids[twin][found.mask[twin]].tolist() == expected
            assert bool(found.truncated[twin]) == (not set(expected) & set(policy.end_ids))


@pytest.mark.parametrize("name", ["hf", "continuous"])
@pytest.mark.parametrize("greedy", [True, False])
def test_defaults_of_the_model_folder_play_no_part(name: str, greedy: bool, tmp_path: Path) -> None:
    folder = lab.random_model(tmp_path, "Llama")
    policy = lab.policy_of(lab.run_of(f"model.name={folder}"))
    before = sample(policy, name, greedy=greedy)
    own = GenerationConfig(
        eos_token_id=2, repetition_penalty=3.0, temperature=0.1, min_p=0.5, no_repeat_ngram_size=1
    )
    policy.model.generation_config = own
    after = sample(policy, name, greedy=greedy)
    assert torch.equal(before.completion_ids, after.completion_ids)
    assert policy.model.generation_config is own


# -- the distribution --------------------------------------------------------------------------


def features(policy: Policy, name: str, seed: int, **settings: Any) -> dict[str, list[str]]:
    """What the two-sample tests look at, each value with its prompt."""
    prompts = PROMPTS[:2]
    each = DRAWS // len(prompts)
    found = sample(policy, name, prompts=prompts, samples=each, seed=seed, **settings)
    owner = [prompts[row // each] for row in range(DRAWS)]
    texts = policy.encoder.decode(found.completion_ids, found.mask)
    third = found.completion_ids[:, 2].where(found.mask[:, 2], -1).tolist()
    columns = {
        "first": found.completion_ids[:, 0].tolist(),
        "third": third,
        "length": found.mask.sum(dim=1).tolist(),
        "text": texts,
    }
    return {k: [f"{o}|{v}" for o, v in zip(owner, c, strict=True)] for k, c in columns.items()}


def p_value(first: list[str], second: list[str]) -> float:
    """Chi-square test that two samples have one distribution; rare values are pooled."""
    counts = [Counter(first), Counter(second)]
    common = [v for v in counts[0] | counts[1] if counts[0][v] + counts[1][v] >= 20]
    table = [[c[v] for v in common] for c in counts]
    rest = [len(s) - sum(row) for s, row in zip((first, second), table, strict=True)]
    if sum(rest):
        table = [[*row, r] for row, r in zip(table, rest, strict=True)]
    if len(table[0]) < 2:
        return 1.0
    return float(scipy.stats.chi2_contingency(np.array(table)).pvalue)


@pytest.mark.parametrize("settings", [{}, {"temperature": 0.7, "top_k": 10}], ids=str)
def test_every_sampler_draws_from_one_distribution(tiny: Policy, settings: dict[str, Any]) -> None:
    ours = features(tiny, "static", 11, **settings)
    for other in set(SAMPLERS) - {"static"}:
        theirs = features(tiny, other, 12, **settings)
        for name in ours:
            assert p_value(ours[name], theirs[name]) > ALPHA, (other, name)


def test_the_comparison_would_notice_a_wrong_temperature(tiny: Policy) -> None:
    right, wrong = features(tiny, "static", 11), features(tiny, "static", 12, temperature=1.3)
    for name in ("third", "length", "text"):
        assert p_value(right[name], wrong[name]) < ALPHA, name


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("settings", [{}, {"temperature": 2.0, "min_p": 0.02}], ids=str)
def test_frequencies_of_tokens_are_their_probabilities(
    name: str, settings: dict[str, Any], tmp_path: Path
) -> None:
    policy = lab.family(tmp_path, "Llama")
    found = sample(policy, name, prompts=PROMPTS[:1], samples=4000, max_new_tokens=1, **settings)
    tokens = found.completion_ids[:, 0]
    logps = dict(zip(tokens.tolist(), found.sampler_logps[:, 0].tolist(), strict=True))
    likely = [t for t, logp in logps.items() if np.exp(logp) * 4000 >= 10]
    assert len(likely) > 4
    seen = [int((tokens == t).sum()) for t in likely]
    expected = [float(np.exp(logps[t])) * 4000 for t in likely]
    seen.append(4000 - sum(seen))
    expected.append(max(1e-9, 4000 - sum(expected)))
    if expected[-1] < 5:  # too few for the test: they join the last of the others
        seen, expected = [[*v[:-2], v[-2] + v[-1]] for v in (seen, expected)]
    expected = [e * 4000 / sum(expected) for e in expected]
    assert float(scipy.stats.chisquare(seen, expected).pvalue) > ALPHA


# -- compaction, noise, state ------------------------------------------------------------------


def test_compaction_changes_nothing(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for below, every in ((0.0, 1), (0.75, 1), (1.0, 1), (0.75, 8), (1.0, 3)):
        monkeypatch.setattr(static, "COMPACT_BELOW", below)
        monkeypatch.setattr(static, "CHECK_EVERY", {"cpu": every})
        found.append(sample(policy, samples=8, max_new_tokens=24))
    assert len(set(found[0].mask.sum(dim=1).tolist())) > 1  # rows do end at different times
    for other in found[1:]:
        assert torch.equal(other.completion_ids, found[0].completion_ids)
        assert torch.equal(other.mask, found[0].mask)
        assert torch.equal(other.truncated, found[0].truncated)
        torch.testing.assert_close(other.policy_logps, found[0].policy_logps, atol=1e-4, rtol=1e-4)
        torch.testing.assert_close(
            other.sampler_logps, found[0].sampler_logps, atol=1e-4, rtol=1e-4
        )


def test_noise_belongs_to_the_place_and_not_to_the_neighbours(tiny: Policy) -> None:
    def rows(prompts: list[str], group: int) -> list[list[int]]:
        found = sample(tiny, prompts=prompts)
        pick = slice(group * 4, group * 4 + 4)
        return [
            ids[m].tolist()
            for ids, m in zip(found.completion_ids[pick], found.mask[pick], strict=True)
        ]

    alone = rows(["47+85="], 0)
    assert rows(["47+85=", "10+20=", "99+99="], 0) == alone
    assert rows(["47+85=", "99+99=", "10+20="], 0) == alone
    assert rows(["47+85=", "3+4="], 0) == alone  # padding moves no noise either
    assert rows(["10+20=", "47+85="], 0) != alone


@pytest.mark.parametrize("name", SAMPLERS)
def test_same_stream_same_samples_and_no_trace(tiny: Policy, name: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = sample(tiny, name)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again = sample(tiny, name)
    assert torch.equal(first.completion_ids, again.completion_ids)
    assert torch.equal(first.sampler_logps, again.sampler_logps)
    for changed in ({"seed": 1}, {"indices": (0, 1)}, {"indices": (1, 0)}):
        other = sample(tiny, name, **changed)
        same = other.completion_ids.shape == first.completion_ids.shape
        assert not (same and torch.equal(other.completion_ids, first.completion_ids))


def test_the_completions_of_a_prompt_differ(tiny: Policy) -> None:
    found = sample(tiny, prompts=["47+85="], samples=16)
    assert len(set(tiny.encoder.decode(found.completion_ids, found.mask))) > 4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("limit", [1, 2, 7])
def test_the_token_limit(tiny: Policy, name: str, limit: int) -> None:
    found = sample(tiny, name, max_new_tokens=limit)
    assert found.completion_ids.shape[1] <= limit
    ended = torch.isin(found.completion_ids, torch.tensor(tiny.end_ids)) & found.mask
    assert torch.equal(found.truncated, ~ended.any(dim=1))
    assert bool(found.mask[:, 0].all())
    assert float(found.sampler_logps[~found.mask].abs().sum()) == 0.0


def test_log_probs_follow_the_half_precision_copy() -> None:
    policy = lab.policy_of(lab.run_of("hardware.dtype=bfloat16"))
    found = sample(policy)
    assert found.sampler_logps.dtype == torch.float32
    assert bool(torch.isfinite(found.sampler_logps).all())


# -- parts -------------------------------------------------------------------------------------


def test_choose_inverts_the_cumulative_distribution() -> None:
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4]).log().expand(6, 4)
    uniforms = torch.tensor([0.0, 0.0999, 0.1001, 0.2999, 0.6001, 0.9999])
    assert choose(logits, uniforms)[0].tolist() == [0, 0, 1, 1, 3, 3]


def test_choose_walks_through_all_blocks() -> None:
    """At the middle of every token's share of the distribution, that token."""
    logits = torch.randn(1, 1000, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    p = logits.softmax(-1)[0]
    middle = p.cumsum(0) - p / 2
    tokens, logps = choose(logits.expand(1000, -1), middle)
    assert tokens.tolist() == list(range(1000))
    torch.testing.assert_close(logps, p.log())


@pytest.mark.parametrize("vocabulary", [4, 128, 129, 50_000])
def test_choose_never_takes_the_impossible(vocabulary: int) -> None:
    source = torch.Generator().manual_seed(0)
    logits = torch.randn(64, vocabulary, generator=source)
    logits[:, 0] = -torch.inf
    logits[:, -1] = -torch.inf
    logits[:, -2] = -1e4  # underflows to probability 0 though it is not masked
    for u in (0.0, 1e-45, 0.5, 1 - 2**-24, 1.0):
        tokens, logps = choose(logits, torch.full((64,), u))
        torch.testing.assert_close(logps, token_logp(logits, tokens), rtol=1e-5, atol=1e-5)
        chosen = logits.softmax(-1).gather(1, tokens.unsqueeze(1))
        assert float(chosen.min()) > 0
    only = torch.full((1, vocabulary), -torch.inf)
    only[0, 2] = 0.0
    for u in (0.0, 0.3, 1.0):
        assert choose(only, torch.tensor([u]))[0].tolist() == [2]


def test_choose_in_half_precision_stays_possible() -> None:
    logits = torch.tensor([[0.0, 1.0, -torch.inf]], dtype=torch.bfloat16)
    assert choose(logits, torch.tensor([0.9999999]))[0].tolist() == [1]


def test_finish() -> None:
    ids = torch.tensor([[5, 2, 2, 7], [5, 6, 7, 8], [2, 1, 1, 1], [5, 5, 5, 9]])
    mask, truncated = finish(ids, torch.tensor([2, 9]))
    assert mask.tolist() == [
        [True, True, False, False],
        [True] * 4,
        [True, False, False, False],
        [True] * 4,
    ]
    assert truncated.tolist() == [False, True, False, False]


def test_pad_left() -> None:
    ids, mask = pad_left([[5, 6, 7], [8]], 0)
    assert ids.tolist() == [[5, 6, 7], [0, 0, 8]]
    assert mask.tolist() == [[1, 1, 1], [0, 0, 1]]


def test_top_p_keeps_the_smallest_sufficient_set() -> None:
    logits = torch.tensor([[0.5, 0.3, 0.15, 0.05]]).log()
    kept = {p: int((keep_top_p(logits, p) > -torch.inf).sum()) for p in (1e-9, 0.4, 0.6, 0.9, 0.99)}
    assert kept == {1e-9: 1, 0.4: 1, 0.6: 2, 0.9: 3, 0.99: 4}
