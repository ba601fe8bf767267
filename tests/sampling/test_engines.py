"""`static` over our own decoder, and over Transformers' forward: the same tokens and log-probs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.component import component
from grpolab.policy.policy import Policy
from grpolab.sampling import decoding, static
from grpolab.sampling.base import Draw, Samples
from grpolab.sampling.cached import CacheEngine
from grpolab.sampling.decoding import DecoderEngine
from grpolab.sampling.static import running_first

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

FAMILIES = ["tiny", "Llama", "Qwen2", "Qwen3"]
PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [5, 6, 7]]
EVEN = [[5, 6, 7], [12, 9, 4], [13, 14, 15]]


@pytest.fixture(scope="module", params=FAMILIES)
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp(request.param)
    return lab.double(lab.family(folder, request.param))


def sample(
    policy: Policy, engine: str, prompts: list[list[int]], samples: int = 4, **settings: Any
) -> Samples:
    sampler = component("sampler", "static", **{"max_new_tokens": 20, **settings})
    decoder = policy.decoder
    assert decoder is not None
    try:
        policy.decoder = decoder if engine == "auto" else None
        found: Samples = sampler(policy, prompts, Draw(3, (0,), samples))
    finally:
        policy.decoder = decoder
    return found


def assert_same(a: Samples, b: Samples, tolerance: float = 1e-10) -> None:
    assert torch.equal(a.completion_ids, b.completion_ids)
    assert torch.equal(a.mask, b.mask)
    assert torch.equal(a.truncated, b.truncated)
    for name in ("sampler_logps", "policy_logps"):
        gap = (getattr(a, name) - getattr(b, name)).abs().max()
        assert float(gap) < tolerance, name


@pytest.mark.parametrize("prompts", [PROMPTS, EVEN, [[9]]])
@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"max_new_tokens": 1},
        {"temperature": 0.7, "top_k": 10},
        {"temperature": 1.4, "top_p": 0.9, "match_temperature": True},
        {"min_p": 0.05, "match_support": True},
    ],
)
def test_the_same_as_through_transformers(
    policy: Policy, prompts: list[list[int]], settings: dict[str, Any]
) -> None:
    ours = sample(policy, "auto", prompts, **settings)
    assert_same(ours, sample(policy, "plain", prompts, **settings))
    if not settings:  # rows end early and at different times, or nothing was tested
        lengths = ours.mask.sum(dim=1)
        assert len(prompts) == 1 or len(set(lengths.tolist())) > 3


@pytest.mark.parametrize("prompts", [PROMPTS, EVEN, [[9]]])
def test_attention_by_plain_products_is_the_same(
    policy: Policy, prompts: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The way of every other device, beside the fused kernel that a CPU has."""
    if not decoding.has_flash():
        pytest.skip("this build of PyTorch has no fused attention on a CPU")
    ours = sample(policy, "auto", prompts)
    monkeypatch.setattr(decoding, "has_flash", lambda: False)
    assert_same(sample(policy, "auto", prompts), ours)


@pytest.mark.parametrize("every", [1, 3, 8])
def test_the_same_whenever_finished_rows_leave(
    policy: Policy, every: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(policy, "auto", PROMPTS)
    monkeypatch.setattr(static, "CHECK_EVERY", {"cpu": every})
    assert_same(sample(policy, "auto", PROMPTS), expected)


def test_float32_log_probs_are_a_fresh_forwards(tmp_path: Path) -> None:
    policy = lab.family(tmp_path, "Qwen3")
    ours = sample(policy, "auto", PROMPTS)
    for row in range(len(ours.mask)):
        ids = ours.completion_ids[row][ours.mask[row]].tolist()
        fresh = lab.plain_logps(policy.model, PROMPTS[row // 4], ids).detach()
        gap = (fresh - ours.policy_logps[row][ours.mask[row]]).abs().max()
        assert float(gap) < 2e-5


def test_adapters_are_merged(tmp_path: Path) -> None:
    name = lab.random_model(tmp_path, "Llama")
    policy = lab.policy_of(lab.run_of(f"model.name={name}", "model.lora={r: 4}"))
    source = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in policy.trainable().values():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=source))
    lab.double(policy)
    ours = sample(policy, "auto", PROMPTS)
    assert_same(ours, sample(policy, "plain", PROMPTS))
    with policy.base_weights():
        without = sample(policy, "auto", PROMPTS)
        assert_same(without, sample(policy, "plain", PROMPTS))
    assert not torch.equal(without.completion_ids, ours.completion_ids)


def test_new_weights_are_seen(policy: Policy) -> None:
    before = sample(policy, "auto", EVEN)
    weight = policy.model.lm_head.weight
    kept = weight.detach().clone()
    with torch.no_grad():
        weight.mul_(0.5)
    assert_same(sample(policy, "auto", EVEN), sample(policy, "plain", EVEN))
    assert not torch.equal(sample(policy, "auto", EVEN).completion_ids, before.completion_ids)
    with torch.no_grad():
        weight.copy_(kept)


def rows_run(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many rows each decode step runs, from now on."""
    run: list[int] = []
    decode = DecoderEngine.decode

    def counted(self: DecoderEngine, tokens: torch.Tensor) -> torch.Tensor:
        run.append(len(tokens))
        return decode(self, tokens)

    monkeypatch.setattr(DecoderEngine, "decode", counted)
    return run


def test_of_few_rows_the_finished_cost_nothing(
    policy: Policy, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = rows_run(monkeypatch)
    found = sample(policy, "auto", PROMPTS)
    lengths = found.mask.sum(dim=1)
    # step t runs the rows that have a token t + 1 still to come
    assert run == [int((lengths > t + 1).sum()) for t in range(int(lengths.max()) - 1)]


@pytest.mark.parametrize(("sizes", "numbers"), [(4, {4, 8, 12, 16}), (100, set(range(1, 17)))])
def test_rows_leave_so_that_a_call_runs_through_few_numbers(
    policy: Policy, sizes: int, numbers: set[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = sample(policy, "plain", PROMPTS)
    run = rows_run(monkeypatch)
    monkeypatch.setattr(static, "SIZES", {"cpu": sizes})
    found = sample(policy, "auto", PROMPTS)
    assert_same(found, expected)
    lengths = found.mask.sum(dim=1)
    alive = [int((lengths > t + 1).sum()) for t in range(int(lengths.max()) - 1)]
    assert run == [min(n for n in numbers if n >= count) for count in alive]


@pytest.mark.parametrize("engine", ["auto", "plain", "recorded"])
@pytest.mark.parametrize("every", [1, 3])
@pytest.mark.parametrize("stop", [(), ("9",)])
def test_completions_are_told_as_they_end(
    policy: Policy, engine: str, every: int, stop: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(static, "CHECK_EVERY", {"cpu": every})
    monkeypatch.setattr(static, "SIZES", {"cpu": 2})  # finished rows stay among the running ones
    told: dict[int, list[int]] = {}

    def finished(places: list[int], ids: torch.Tensor, mask: torch.Tensor) -> None:
        for place, tokens, there in zip(places, ids, mask, strict=True):
            assert place not in told  # once each
            told[place] = tokens[there].tolist()

    first, samples = 2, 4  # the last two of four prompts, which stand at places 8 to 15
    draw = Draw(3, (0,), samples, first=first, total=4, finished=finished)
    sampler = component(
        "sampler", "static", max_new_tokens=20, stop=list(stop), cuda_graphs=engine == "recorded"
    )
    monkeypatch.setattr(policy, "decoder", None if engine == "plain" else policy.decoder)
    found = sampler(policy, PROMPTS[first:], draw)
    alone = sampler(policy, PROMPTS[first:], replace(draw, finished=None))
    assert_same(found, alone)
    whole = [ids[m].tolist() for ids, m in zip(found.completion_ids, found.mask, strict=True)]
    known = 19 // every * every  # tokens at the last look before the limit
    assert told == {
        first * samples + row: tokens
        for row, tokens in enumerate(whole)
        if len(tokens) <= known and not found.truncated[row]
    }
    assert told


def test_a_prompt_is_held_once(policy: Policy, monkeypatch: pytest.MonkeyPatch) -> None:
    engines: list[DecoderEngine] = []
    prefill = DecoderEngine.prefill

    def seen(self: DecoderEngine) -> torch.Tensor:
        engines.append(self)
        return prefill(self)

    monkeypatch.setattr(DecoderEngine, "prefill", seen)
    sample(policy, "auto", EVEN, samples=8, max_new_tokens=1)
    (engine,) = engines
    assert len(engine.shared) == len(engine.decoder.layers)
    assert {len(k) for pair in engine.shared for k in pair} == {len(EVEN)}


def test_lower_precision_keeps_close_to_float32(tmp_path: Path) -> None:
    name = lab.random_model(tmp_path, "Llama", initializer_range=0.1)
    run = lab.run_of(f"model.name={name}")
    exact = lab.policy_of(run)
    half = lab.policy_of(replace(run, hardware=replace(run.hardware, dtype="bfloat16")))
    found = sample(half, "auto", PROMPTS)
    assert found.policy_logps.dtype == torch.float32
    for row in range(len(found.mask)):
        ids = found.completion_ids[row][found.mask[row]].tolist()
        fresh = lab.plain_logps(exact.model, PROMPTS[row // 4], ids).detach()
        gap = (fresh - found.policy_logps[row][found.mask[row]]).abs().max()
        assert float(gap) < 0.1


@pytest.mark.parametrize("kind", ["GPT2", "Gemma2", "Mistral"])
def test_other_families_run_through_transformers(tmp_path: Path, kind: str) -> None:
    policy = lab.family(tmp_path, kind)  # Mistral with a sliding window is another family too
    assert policy.decoder is None
    engine = static.make_engine(policy, EVEN, 2, room=4)
    assert isinstance(engine, CacheEngine)


def test_rows_move_as_little_as_can_be() -> None:
    alive = torch.tensor([True, False, True, False, True, True])
    assert running_first(alive).tolist() == [0, 4, 2, 5]
    assert running_first(torch.tensor([True, True])).tolist() == [0, 1]
    assert running_first(torch.tensor([False, False, True])).tolist() == [2]
