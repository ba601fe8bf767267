"""Log-probs of given tokens: equal to those of each sequence alone, whatever stands around it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component
from grpolab.policy.packing import join_rows
from grpolab.policy.policy import Policy, TokenLogps, entropies
from grpolab.rollouts import Rollouts

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

FAMILIES = ["tiny", "Llama", "Qwen2", "GPT2", "Mistral", "Gemma2"]
PROMPTS, LENGTHS = [3, 9, 1], [4, 0, 12, 1, 7, 2]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return lab.family(tmp_path_factory.mktemp(request.param), request.param)


def score(policy: Policy, rollouts: Rollouts, **settings: Any) -> TokenLogps:
    return policy.token_logps(
        rollouts.prompt_ids,
        rollouts.prompt_lengths,
        rollouts.completion_ids,
        rollouts.mask,
        **settings,
    )


@pytest.mark.parametrize(("width", "prompt_width"), [(12, 9), (20, 9), (12, 30), (33, 17)])
def test_equal_to_each_sequence_alone(policy: Policy, width: int, prompt_width: int) -> None:
    rollouts = lab.made_up_rollouts(
        PROMPTS, LENGTHS, group_size=2, width=width, prompt_width=prompt_width
    )
    with torch.no_grad():
        found = score(policy, rollouts, keep_logits=True)
        assert found.logits is not None
        assert found.logps.shape == found.entropy.shape == rollouts.mask.shape
        for row in range(len(rollouts)):
            prompt, completion = lab.sequence(rollouts, row)
            mask = rollouts.mask[row]
            logps = lab.plain_logps(policy.model, prompt, completion)
            logits = lab.plain_logits(policy.model, prompt, completion)
            entropy = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
            torch.testing.assert_close(found.logps[row][mask], logps, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.entropy[row][mask], entropy, atol=1e-5, rtol=1e-5)
            torch.testing.assert_close(found.logits[row][mask], logits, atol=2e-5, rtol=1e-4)


def test_rows_do_not_see_each_other(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=2)
    order = torch.tensor([4, 2, 0, 5, 1, 3])
    with torch.no_grad():
        whole = score(policy, rollouts).logps
        permuted = policy.token_logps(
            rollouts.prompt_ids[order],
            rollouts.prompt_lengths[order],
            rollouts.completion_ids[order],
            rollouts.mask[order],
        ).logps
    difference = (permuted - whole[order]).abs()[rollouts.mask[order]]
    assert float(difference.max()) < 1e-5


def test_gradient_is_that_of_the_plain_log_probs(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=2)
    weights = torch.randn(rollouts.mask.shape, generator=torch.Generator().manual_seed(1))
    parameters = list(policy.trainable().values())
    found = score(policy, rollouts)
    assert not found.entropy.requires_grad
    ours = torch.autograd.grad((found.logps * weights)[rollouts.mask].sum(), parameters)
    total = torch.zeros(())
    for row in range(len(rollouts)):
        logps = lab.plain_logps(policy.model, *lab.sequence(rollouts, row))
        total = total + (logps * weights[row][rollouts.mask[row]]).sum()
    plain = torch.autograd.grad(total, parameters)
    norm = torch.cat([g.flatten() for g in plain]).norm()
    gap = torch.cat([(a - b).flatten() for a, b in zip(ours, plain, strict=True)]).norm()
    assert float(gap / norm) < 1e-5


# -- on a part of the vocabulary ---------------------------------------------------------------


def matched(**settings: Any) -> Any:
    flags = {"match_temperature": True, "match_support": True}
    return component("sampler", "static", **{"temperature": 0.8, "top_k": 5, **flags, **settings})


def alone(policy: Policy, rollouts: Rollouts, row: int) -> tuple[Tensor, Tensor]:
    """(log-probs [t, V] over the tempered top five and the sampled token, over all) of one row."""
    prompt, completion = lab.sequence(rollouts, row)
    logits = lab.plain_logits(policy.model, prompt, completion) / 0.8
    sampled = torch.tensor(completion, dtype=torch.long).unsqueeze(1)
    order = logits.detach().sort(dim=-1, descending=True).values
    kept = (logits >= order[:, 4:5]).scatter(1, sampled, True)
    return logits.masked_fill(~kept, -torch.inf).log_softmax(-1), logits.log_softmax(-1)


def of_tokens(logps: Tensor, rollouts: Rollouts, row: int) -> Tensor:
    tokens = rollouts.completion_ids[row][rollouts.mask[row]]
    return logps.gather(1, tokens.unsqueeze(1)).squeeze(1)


@pytest.mark.parametrize(("width", "prompt_width"), [(12, 9), (33, 17)])
def test_on_a_support_equal_to_each_sequence_alone(
    policy: Policy, width: int, prompt_width: int
) -> None:
    rollouts = lab.made_up_rollouts(
        PROMPTS, LENGTHS, group_size=2, width=width, prompt_width=prompt_width
    )
    with torch.no_grad():
        found = score(
            policy, rollouts, evaluation=matched().evaluation(), collision=True, keep_logits=True
        )
        assert found.whole is not None
        assert found.collision is not None
        assert found.logits is not None
        outside = 0
        for row in range(len(rollouts)):
            mask = rollouts.mask[row]
            kept, whole = alone(policy, rollouts, row)
            pi = kept.exp()
            expected = {
                "logps": of_tokens(kept, rollouts, row),
                "whole": of_tokens(whole, rollouts, row),
                "entropy": -torch.where(pi > 0, pi * kept, 0.0).sum(-1),
                "collision": pi.square().sum(-1),
            }
            for name, value in expected.items():
                one = getattr(found, name)[row][mask]
                torch.testing.assert_close(one, value, atol=1e-5, rtol=1e-5)
            logps = found.logits[row][mask].log_softmax(-1)
            torch.testing.assert_close(logps, whole, atol=1e-4, rtol=1e-4)
            outside += int(((kept > -torch.inf).sum(-1) > 5).sum())
        assert outside > 0  # tokens that only their being sampled keeps in
        assert found.kl_logps is found.whole


def test_on_a_support_rows_may_be_split_as_they_like(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=2)
    with torch.no_grad():
        found = score(policy, rollouts, evaluation=matched().evaluation())
        for rows in ([0], [1, 5], [2, 3, 4]):
            width = max(1, int(rollouts.lengths[rows].max()))
            part = policy.token_logps(
                rollouts.prompt_ids[rows],
                rollouts.prompt_lengths[rows],
                rollouts.completion_ids[rows][:, :width],
                rollouts.mask[rows][:, :width],
                evaluation=matched().evaluation(),
            )
            mask = rollouts.mask[rows][:, :width]
            for name in ("logps", "kl_logps", "entropy"):
                a, b = getattr(part, name), getattr(found, name)[rows][:, :width]
                torch.testing.assert_close(a[mask], b[mask], atol=1e-5, rtol=1e-5)


def test_on_a_support_gradient_is_that_of_the_renormalised_log_probs(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=2)
    source = torch.Generator().manual_seed(1)
    weights = torch.randn((2, *rollouts.mask.shape), generator=source)
    parameters = list(policy.trainable().values())
    found = score(policy, rollouts, evaluation=matched().evaluation())
    assert not found.entropy.requires_grad
    both = torch.stack([found.logps, found.kl_logps])
    ours = torch.autograd.grad((both * weights)[:, rollouts.mask].sum(), parameters)
    total = torch.zeros(())
    for row in range(len(rollouts)):
        for weight, logps in zip(weights, alone(policy, rollouts, row), strict=True):
            chosen = of_tokens(logps, rollouts, row)
            total = total + (chosen * weight[row][rollouts.mask[row]]).sum()
    plain = torch.autograd.grad(total, parameters)
    norm = torch.cat([g.flatten() for g in plain]).norm()
    gap = torch.cat([(a - b).flatten() for a, b in zip(ours, plain, strict=True)]).norm()
    assert float(gap / norm) < 1e-5


def test_a_whole_support_is_one_tensor(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=2)
    with torch.no_grad():
        plain = score(policy, rollouts)
        for sampler in (matched(top_k=0, temperature=1.0), matched(match_temperature=False)):
            whole = score(policy, rollouts, evaluation=sampler.evaluation(whole=True))
            gap = (whole.logps - plain.logps)[rollouts.mask].abs().max()
            assert float(gap) < 1e-5  # a sampler that can restrict takes the plain path
            assert whole.whole is None
            assert whole.kl_logps is whole.logps
        tempered = score(policy, rollouts, evaluation=matched(top_k=0).evaluation())
        assert tempered.whole is None
        assert not torch.equal(tempered.logps[rollouts.mask], plain.logps[rollouts.mask])


def test_entropy_of_what_is_left_out() -> None:
    # One of two equal tokens: log 2; one alone: 0. −inf · 0 must not be NaN
    logits = torch.tensor([[[1.0, 1.0, -torch.inf], [0.3, -torch.inf, -torch.inf]]])
    found = entropies(logits, logits.logsumexp(-1))
    assert found.tolist() == [[pytest.approx(0.6931472), pytest.approx(0.0, abs=1e-7)]]


# -- rows --------------------------------------------------------------------------------------


def test_only_empty_completions(policy: Policy) -> None:
    rollouts = lab.made_up_rollouts([1, 1], [0, 0], group_size=1, width=3)
    found = score(policy, rollouts)
    assert found.logps.shape == (2, 3)


def test_rows_are_padded_to_the_longest_row_only() -> None:
    prompts = torch.tensor([[5, 6, 7, 8], [9, 50, 51, 52]])
    completions = torch.tensor([[10, 40, 41], [11, 12, 13]])
    mask = torch.tensor([[True, False, False], [True, True, True]])
    ids, positions = join_rows(prompts, torch.tensor([4, 1]), completions, mask, 0)
    assert ids.tolist() == [[5, 6, 7, 8, 10], [9, 11, 12, 13, 0]]
    assert positions[mask].tolist() == [4, 1, 2, 3]
    assert int(positions.max()) <= ids.shape[1]


def test_half_precision_copies_keep_their_rotary_frequencies() -> None:
    policy = lab.policy_of(lab.run_of("hardware.dtype=bfloat16", "kl=k3"))
    copies = {torch.bfloat16: policy.sampling_model, torch.float32: policy.frozen_copy()}
    for dtype, copied in copies.items():
        assert {p.dtype for p in copied.parameters()} == {dtype}
        assert not any(p.requires_grad for p in copied.parameters())
        own, others = dict(policy.model.named_buffers()), dict(copied.named_buffers())
        assert own
        for name, buffer in own.items():
            assert torch.equal(buffer, others[name])
    assert {p.dtype for p in policy.model.parameters()} == {torch.float32}


def test_the_reference_is_the_policy_before_anything_is_learnt() -> None:
    policy = lab.policy_of(lab.run_of("hardware.dtype=bfloat16", "kl=k3"))
    prompts = torch.tensor([[5, 6, 7, 8], [9, 10, 11, 12]])
    completions = torch.tensor([[10, 40, 41], [11, 12, 13]])
    mask = torch.ones(2, 3, dtype=torch.bool)
    lengths = torch.tensor([4, 4])
    own = policy.token_logps(prompts, lengths, completions, mask).logps
    reference = policy.frozen_copy()
    other = policy.token_logps(prompts, lengths, completions, mask, model=reference).logps
    assert torch.equal(own, other)


def test_half_precision_copy_agrees_far_from_the_start() -> None:
    # Rounded frequencies would shift position 240 by most of a radian
    policy = lab.policy_of(lab.run_of("hardware.dtype=bfloat16"))
    ids = torch.randint(3, lab.VOCABULARY, (4, 250), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        exact = policy.model(input_ids=ids).logits.softmax(-1)
        half = policy.sampling_model(input_ids=ids).logits.float().softmax(-1)
    apart = (exact - half).abs().sum(-1) / 2
    assert float(apart[:, 200:].mean()) < 2 * float(apart[:, :50].mean()) + 0.01


def test_saved_model_loads(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    policy = lab.policy_of(lab.run_of())
    policy.save(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    for name, parameter in loaded.named_parameters():
        assert torch.equal(parameter, policy.trainable()[name])
    assert (tmp_path / "tokenizer.json").exists()
