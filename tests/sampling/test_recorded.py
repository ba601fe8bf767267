"""Decode steps of fixed shapes, recorded and replayed: the tokens and log-probs of plain steps."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

from grpolab.component import ConfigError, component
from grpolab.conflicts import check_conflicts
from grpolab.policy.policy import Encoder, Policy
from grpolab.sampling import recorded
from grpolab.sampling.base import Draw, Samples
from grpolab.sampling.decoding import DecoderEngine
from grpolab.sampling.recorded import RecordedEngine, doubled, rounded
from grpolab.sweep.preflight import check_kernels

if TYPE_CHECKING:
    from tests.policy import policies as lab
    from tests.sampling.replaying import Replaying
else:
    import policies as lab
    from replaying import Replaying

PROMPTS = [[5, 6, 7, 8, 9, 10, 11], [12], [13, 14, 15], [5, 6, 7]]
EVEN = [[5, 6, 7], [12, 9, 4], [13, 14, 15]]


@pytest.fixture(scope="module", params=["tiny", "Qwen2", "Qwen3"])
def policy(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Policy:
    folder = tmp_path_factory.mktemp(request.param)
    return lab.double(lab.family(folder, request.param))


def sample(policy: Policy, prompts: list[list[int]], *, graphs: bool, **settings: Any) -> Samples:
    sampler = component(
        "sampler", "static", **{"max_new_tokens": 20, "cuda_graphs": graphs, **settings}
    )
    found: Samples = sampler(policy, prompts, Draw(3, (0,), 4))
    return found


def assert_same(a: Samples, b: Samples) -> None:
    assert torch.equal(a.completion_ids, b.completion_ids)
    assert torch.equal(a.mask, b.mask)
    for name in ("sampler_logps", "policy_logps"):
        torch.testing.assert_close(getattr(a, name), getattr(b, name), rtol=0, atol=1e-10)


@pytest.fixture
def small_steps(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Sizes that a call of this length meets several of; those that were recorded."""
    monkeypatch.setattr(recorded, "COLUMNS", 4)
    monkeypatch.setattr(recorded, "Recorder", Replaying)
    seen: list[tuple[int, int]] = []
    step = RecordedEngine._step

    def counted(self: RecordedEngine, rows: int, columns: int) -> None:
        seen.append((rows, columns))
        step(self, rows, columns)

    monkeypatch.setattr(RecordedEngine, "_step", counted)
    return seen


@pytest.mark.parametrize("prompts", [PROMPTS, EVEN, [[9]]])
@pytest.mark.parametrize("settings", [{}, {"max_new_tokens": 1}, {"max_new_tokens": 50}])
def test_replayed_steps_are_plain_steps(
    policy: Policy,
    prompts: list[list[int]],
    settings: dict[str, Any],
    small_steps: list[tuple[int, int]],
) -> None:
    ours = sample(policy, prompts, graphs=True, **settings)
    assert_same(ours, sample(policy, prompts, graphs=False, **settings))
    # step t runs the rows that have a token t + 1 still to come; each size is run twice, to warm up
    # and to be recorded, and replayed from then on
    lengths = ours.mask.sum(dim=1)
    running = [int((lengths > t + 1).sum()) for t in range(int(lengths.max()) - 1)]
    room = settings.get("max_new_tokens", 20)
    sizes = [(doubled(rows, running[0]), rounded(t + 1, 4, room)) for t, rows in enumerate(running)]
    assert small_steps == [size for size in dict.fromkeys(sizes) for _ in range(2)]


def test_a_call_meets_several_sizes(policy: Policy, small_steps: list[tuple[int, int]]) -> None:
    """Or what is above shows little."""
    steps = sample(policy, PROMPTS, graphs=True, max_new_tokens=60).mask.shape[1] - 1
    rows, columns = ({size[i] for size in small_steps} for i in (0, 1))
    assert min(len(rows), len(columns)) > 1
    assert len(set(small_steps)) < steps


@pytest.mark.parametrize("every", [3, 8])
def test_rows_that_ended_may_run_on(
    policy: Policy,
    every: int,
    small_steps: list[tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A GPU is not asked at every token who has finished."""
    plain = sample(policy, PROMPTS, graphs=False)
    monkeypatch.setattr("grpolab.sampling.static.CHECK_EVERY", {"cpu": every})
    assert_same(sample(policy, PROMPTS, graphs=True), plain)


def test_without_cuda_the_fixed_steps_run_as_they_are(policy: Policy) -> None:
    ours = sample(policy, PROMPTS, graphs=True)
    assert_same(ours, sample(policy, PROMPTS, graphs=False))


def test_nothing_moves_between_steps(policy: Policy, small_steps: list[tuple[int, int]]) -> None:
    """A graph keeps the addresses it was recorded with."""
    assert policy.decoder is not None
    engine = RecordedEngine(policy.decoder, PROMPTS, samples=4, room=12, dtype=policy.dtype)
    plain = DecoderEngine(policy.decoder, PROMPTS, samples=4, room=12, dtype=policy.dtype)
    with torch.no_grad():
        tokens = engine.prefill().argmax(dim=-1)
        assert torch.equal(plain.prefill().argmax(dim=-1), tokens)
        held: dict[str, int] = {}
        for step in range(9):
            logits = engine.decode(tokens)
            torch.testing.assert_close(logits, plain.decode(tokens), rtol=0, atol=1e-10)
            names = ("fed", "now", "positions", "places", "keys", "values", "logits")
            here = {name: getattr(engine, name).data_ptr() for name in names}
            here |= {"cell": engine.fixed.cell.data_ptr(), "row": engine.fixed.row.data_ptr()}
            here |= {f"shared {i}": k.data_ptr() for i, (k, _) in enumerate(engine.shared)}
            held = held or here
            assert here == held
            tokens = logits.argmax(dim=-1)
            if step in (2, 5):  # rows leave from the middle, a whole group among them
                rows = torch.tensor([r for r in range(len(tokens)) if r % 5 and r not in (8, 9)])
                engine.keep(rows)
                plain.keep(rows)
                tokens = tokens[rows]


def test_a_number_that_python_holds_would_be_noticed() -> None:
    """The test's own recording: what is no tensor stays as it was, what is one does not."""
    out, now = torch.zeros(6), torch.zeros(1, dtype=torch.long)
    count = 0

    def by_tensor() -> None:
        out.index_copy_(0, now, torch.ones(1) * (now + 1))

    def by_number() -> None:
        out[count].fill_(7.0)

    one, other = (Replaying(out.device).record(work) for work in (by_tensor, by_number))
    out.zero_()
    for step in range(1, 4):
        count = step
        now += 1
        one()
        other()
    assert out.tolist() == [7, 2, 3, 4, 0, 0]


def test_lower_precision_keeps_close(tmp_path: Path) -> None:
    name = lab.random_model(tmp_path, "Llama", initializer_range=0.1)
    half = lab.policy_of(lab.run_of(f"model.name={name}", "hardware.dtype=bfloat16"))
    ours, plain = (sample(half, EVEN, graphs=graphs) for graphs in (True, False))
    same = (ours.completion_ids[:, :1] == plain.completion_ids[:, :1]).squeeze(1)
    assert bool(same.any())
    gap = (ours.policy_logps[same, 0] - plain.policy_logps[same, 0]).abs().max()
    assert float(gap) < 0.05


def test_a_model_without_our_decoder_is_refused(tmp_path: Path) -> None:
    policy = lab.family(tmp_path, "GPT2")
    with pytest.raises(ConfigError, match=r"sampler\.cuda_graphs: true given .* allowed: false"):
        sample(policy, EVEN, graphs=True)


def test_what_waits_for_the_device_would_be_noticed() -> None:
    rows = torch.tensor([True, False])

    def asks(work: Callable[[], object]) -> Callable[[], None]:
        return lambda: setattr(rows, "asked", work())

    for work in (lambda: rows.nonzero(), lambda: bool(rows.any()), lambda: rows[rows]):
        with pytest.raises(RuntimeError, match="while recording"):
            Replaying(rows.device).record(asks(work))


def test_an_engine_is_freed_at_once(policy: Policy) -> None:
    """It holds keys, values and a copy of the weights: none may wait for a garbage collection."""
    assert policy.decoder is not None
    engine = RecordedEngine(policy.decoder, EVEN, samples=2, room=3, dtype=policy.dtype)
    gc.disable()
    try:
        with torch.no_grad():
            engine.decode(engine.prefill().argmax(dim=-1))
        freed = weakref.ref(engine)
        del engine
        assert freed() is None
    finally:
        gc.enable()


def test_plain_kernels_are_refused_before_a_model_is_loaded() -> None:
    run = lab.run_of("sampler.cuda_graphs=true")
    check_conflicts(run)
    with pytest.raises(ConfigError, match=r"sampler\.cuda_graphs: .* allowed: false, or hardware"):
        check_conflicts(replace(run, hardware=replace(run.hardware, engine="plain")))


@pytest.mark.parametrize("key", ["sampler.cuda_graphs", "hardware.gradient_checkpointing"])
def test_another_family_is_refused_before_a_model_is_loaded(key: str, tmp_path: Path) -> None:
    for kind, refused in (("GPT2", True), ("Llama", False)):
        run = lab.run_of(f"model.name={lab.random_model(tmp_path / kind, kind)}", f"{key}=true")
        with pytest.raises(ConfigError, match=rf"{key}: .* a gpt2") if refused else nullcontext():
            check_kernels(run, Encoder(run.model).config)


@pytest.mark.parametrize(("count", "most", "found"), [(1, 9, 1), (4, 9, 4), (5, 9, 8), (9, 9, 9)])
def test_rows_are_doubled(count: int, most: int, found: int) -> None:
    assert doubled(count, most) == found


@pytest.mark.parametrize(
    ("count", "to", "most", "found"), [(1, 16, 256, 16), (16, 16, 256, 16), (17, 16, 20, 20)]
)
def test_sizes_are_rounded_up(count: int, to: int, most: int, found: int) -> None:
    assert rounded(count, to, most) == found
