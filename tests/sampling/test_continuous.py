"""Continuous batching: requests wait for places, pages are shared, and the model comes back."""

from __future__ import annotations

import gc
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.policy.policy import Policy
from grpolab.sampling import continuous
from grpolab.sampling.base import Samples

if TYPE_CHECKING:
    from tests.policy import policies as lab
    from tests.sampling.draws import PROMPTS, sample
else:
    import policies as lab
    from draws import PROMPTS, sample


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Policy:
    return lab.family(tmp_path_factory.mktemp("llama"), "Llama")


def expected_logps(policy: Policy, prompts: list[str], found: Samples, samples: int) -> Tensor:
    """Of the policy itself, one sequence at a time."""
    logps = torch.zeros(found.mask.shape)
    for row, (ids, mask) in enumerate(zip(found.completion_ids, found.mask, strict=True)):
        prompt = policy.encoder.encode([prompts[row // samples]])[0]
        with torch.no_grad():
            one = lab.plain_logps(policy.model, prompt, ids[mask].tolist())
        logps[row, : len(one)] = one
    return logps


def check(policy: Policy, prompts: list[str], samples: int, **settings: Any) -> Samples:
    found = sample(policy, "continuous", prompts=prompts, samples=samples, **settings)
    assert len(found.mask) == len(prompts) * samples
    logps = expected_logps(policy, prompts, found, samples)
    torch.testing.assert_close(found.sampler_logps, logps, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(found.policy_logps, logps, atol=1e-4, rtol=1e-4)
    return found


@pytest.mark.parametrize(("rows", "batch_tokens"), [(1, 1024), (3, 1024), (64, 5), (3, 4)])
def test_few_places_and_small_steps_change_no_log_prob(
    llama: Policy, rows: int, batch_tokens: int
) -> None:
    # Prompts longer than a step are read in pieces
    check(llama, [*PROMPTS, "12+34=12+34=12+34="], 3, rows=rows, batch_tokens=batch_tokens)


def test_no_more_run_at_once_than_rows(llama: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    widths = []
    forward = llama.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        widths.append(kwargs["logits_indices"].numel())
        return forward(*args, **kwargs)

    monkeypatch.setattr(llama.model, "forward", counted)
    sample(llama, "continuous", samples=4, rows=3)
    assert max(widths) == 3
    # Places are filled again: 16 completions in threes, none of which waits for another
    assert widths.count(3) > len(widths) / 2


def test_shared_pages_hold_what_the_request_would_have_written(
    llama: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(continuous, "PAGE", {"cpu": 4})
    prompts = ["12+34=12+34=12+34=", "12+34=12+35=12+34=", "12+34=12+34=12+34="]
    read = []
    forward = llama.model.forward

    def counted(*args: Any, **kwargs: Any) -> Any:
        read.append(kwargs["input_ids"].shape[-1])
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(llama.model, "forward", counted)
        found = sample(llama, "continuous", prompts=prompts, samples=3, rows=2)
    longest = len(llama.encoder.encode(prompts[:1])[0])
    generated = int(found.mask.sum())
    assert sum(read) < 9 * longest + generated - 20  # pages of some prompts were not read again
    check(llama, prompts, 3, rows=2)


def test_the_model_is_left_as_it_was(llama: Policy) -> None:
    weights = {n: p.clone() for n, p in llama.model.named_parameters()}
    assert llama.model.config._attn_implementation == "sdpa"
    sample(llama, "continuous")
    assert llama.model.config._attn_implementation == "sdpa"
    assert gc.get_freeze_count() == 0
    assert not hasattr(llama.model, "_cached_continuous_batching_manager")
    for name, parameter in llama.model.named_parameters():
        assert torch.equal(parameter, weights[name])


def test_eager_attention_comes_back(tmp_path: Path) -> None:
    policy = lab.family(tmp_path, "Gemma2")
    assert policy.model.config._attn_implementation == "eager"
    prompts = ["47+85="]
    check(policy, prompts, 2)
    assert policy.model.config._attn_implementation == "eager"
    check(policy, prompts, 2)


def test_adapters_take_part(tmp_path: Path) -> None:
    folder = lab.random_model(tmp_path, "Llama")
    policy = lab.policy_of(lab.run_of(f"model.name={folder}", "+model.lora={r: 4}"))
    with torch.no_grad():
        for parameter in policy.trainable().values():
            source = torch.Generator().manual_seed(0)
            parameter.add_(torch.randn(parameter.shape, generator=source), alpha=0.3)
    found = check(policy, PROMPTS, 2)
    with policy.base_weights() as model, torch.no_grad():
        prompt = policy.encoder.encode(PROMPTS[:1])[0]
        ids = found.completion_ids[0][found.mask[0]]
        base = lab.plain_logps(model, prompt, ids.tolist())
    assert float((base - found.policy_logps[0][found.mask[0]]).abs().max()) > 1e-2


def test_half_precision(tmp_path: Path) -> None:
    folder = lab.random_model(tmp_path, "Llama")
    policy = lab.policy_of(lab.run_of(f"model.name={folder}", "hardware.dtype=bfloat16"))
    found = sample(policy, "continuous", top_k=5)
    assert found.sampler_logps.dtype == torch.float32
    mine = sample(policy, "static", top_k=5)
    for samples in (found, mine):
        assert bool(torch.isfinite(samples.sampler_logps).all())
        assert float(samples.policy_logps[samples.mask].max()) <= 0


def test_what_it_cannot_run_is_refused_in_a_sentence(
    llama: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.model.config, "layer_types", ["linear_attention"] * 2, raising=False)
    with pytest.raises(ConfigError) as caught:
        sample(llama, "continuous")
    message = str(caught.value)
    assert message.startswith("sampler: continuous given with model.name=")
    assert "linear_attention" in message
    assert message.endswith("allowed: static or hf.")
    assert "\n" not in message
    monkeypatch.undo()
    assert llama.model.config._attn_implementation == "sdpa"
    check(llama, PROMPTS, 2)  # nothing is left behind


def test_an_attention_it_does_not_have_is_refused(
    llama: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(llama.model.config, "_attn_implementation_internal", "flex_attention")
    with pytest.raises(ConfigError, match="flex_attention"):
        sample(llama, "continuous")
    assert llama.model.config._attn_implementation == "flex_attention"


def test_a_failure_on_the_way_is_raised_and_undone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    policy = lab.family(tmp_path, "Gemma2")  # eager: the engine switches its attention
    steps = 0
    forward = policy.model.forward

    def fails(*args: Any, **kwargs: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:
            raise RuntimeError("out of something")
        return forward(*args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(policy.model, "forward", fails)
        with pytest.raises(ConfigError, match="out of something"):
            sample(policy, "continuous")
    assert policy.model.config._attn_implementation == "eager"
    check(policy, PROMPTS, 2)
