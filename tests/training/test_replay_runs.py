"""Replayed groups in the update, and a whole run with them: a kill loses nothing."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component
from grpolab.config import Run
from grpolab.policy.policy import Encoder
from grpolab.rewards.base import RewardInputs, Scores
from grpolab.rollouts import Rollouts
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Interrupted, Trainer
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

NAN = math.nan


# -- scoring -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.random_model(tmp_path_factory.mktemp("llama"), "Llama")


def mixed(old: Tensor | None = None) -> Rollouts:
    """Four groups of two, the second and the fourth replayed."""
    found = lab.made_up_rollouts([3, 6, 1, 5], [4, 2, 9, 1, 7, 2, 5, 3], group_size=2)
    found.ages = torch.tensor([0, 2, 0, 5])
    source = torch.Generator().manual_seed(4)
    known = -torch.rand(found.mask.shape, generator=source, dtype=torch.float64) - 1
    fresh = found.ages.repeat_interleave(2).unsqueeze(1) == 0
    found.old_logps = torch.where(fresh, NAN, known) if old is None else old
    found.collision = found.old_logps.exp()
    found.advantages = None
    return found


def updater_of(folder: str, *overrides: str) -> Updater:
    run = lab.run_of(f"model.name={folder}", "selection=replay", "sampler.group_size=2", *overrides)
    run = replace(run, hardware=replace(run.hardware, tokens_per_microbatch=40))
    return Updater(run, lab.double(lab.policy_of(run)))


def plain_logps(model: Any, rollouts: Rollouts) -> Tensor:
    """[N, T], 0 where masked."""
    found = torch.zeros(rollouts.mask.shape, dtype=torch.float64)
    with torch.no_grad():
        for row in range(len(rollouts)):
            logps = lab.plain_logps(model, *lab.sequence(rollouts, row))
            found[row, : len(logps)] = logps
    return found


def masked_equal(a: Tensor | None, b: Tensor, mask: Tensor) -> None:
    assert a is not None
    torch.testing.assert_close(a[mask], b[mask], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("reference", ["frozen", "old"])
@pytest.mark.parametrize("placement", ["loss", "reward"])
def test_replayed_groups_keep_their_old_logps(folder: str, reference: str, placement: str) -> None:
    overrides = (f"reference={reference}", "kl=k1", f"kl.placement={placement}")
    updater = updater_of(folder, *overrides)
    if updater.forward.reference is not None:
        with torch.no_grad():
            for p in updater.forward.reference.parameters():
                p.mul_(0.9)
    rollouts = mixed()
    fresh = (rollouts.ages.repeat_interleave(2).unsqueeze(1) == 0).expand_as(rollouts.mask)
    known, mask = rollouts.old_logps, rollouts.mask
    assert known is not None
    updater.score_logps(rollouts, beta=0.3)
    now = plain_logps(updater.policy.model, rollouts)
    old = torch.where(fresh, now, known)
    masked_equal(rollouts.old_logps, old, mask)
    model = updater.forward.reference
    base = old if model is None else plain_logps(model, rollouts)  # anew for all, or π_old
    masked_equal(rollouts.ref_logps, base, mask)
    if placement == "reward":
        masked_equal(rollouts.kl_penalty, 0.3 * (now - base), mask)
    else:
        assert rollouts.kl_penalty is None


def test_replayed_groups_keep_their_collision(folder: str) -> None:
    updater = updater_of(folder, "advantage=optimal_token_baseline")
    rollouts = mixed()
    known = rollouts.collision
    assert known is not None
    updater.score_logps(rollouts, beta=0.0)
    found = rollouts.collision
    assert found is not None
    for row in range(8):
        n = int(rollouts.lengths[row])
        if rollouts.ages[row // 2]:
            assert torch.equal(found[row, :n], known[row, :n])
        else:
            logits = lab.plain_logits(updater.policy.model, *lab.sequence(rollouts, row))
            expected = logits.softmax(dim=-1).square().sum(dim=-1)
            torch.testing.assert_close(found[row, :n], expected.detach())


def test_the_update_weighs_replayed_tokens_by_their_own_ratio(folder: str) -> None:
    """One update: fresh tokens have r = 1, replayed ones π/π_old of their time; no clip."""
    updater = updater_of(folder, "clip=none", "advantage=group_center", "aggregation=token_mean")
    rollouts = mixed()
    before = {n: p.detach().clone() for n, p in updater.parameters.items()}
    updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
    updater.run = replace(
        updater.run, optimizer=replace(updater.run.optimizer, lr=1.0, max_grad_norm=math.inf)
    )
    updater.score_logps(rollouts, beta=0.0)
    assert rollouts.rewards is not None
    assert rollouts.old_logps is not None
    rollouts.advantages = rollouts.rewards - rollouts.rewards.mean(dim=1, keepdim=True)
    terms, ratios = [], []
    for row in range(8):
        logps = lab.plain_logps(updater.policy.model, *lab.sequence(rollouts, row))
        ratio = (logps - rollouts.old_logps[row, : len(logps)]).exp()
        terms.append(-(ratio * rollouts.advantages.flatten()[row]).sum())
        ratios += ratio.tolist()
    loss = torch.stack(terms).sum() / int(rollouts.mask.sum())
    expected = torch.autograd.grad(loss, list(updater.parameters.values()))
    metrics = updater.update(rollouts, 0, 0.0)
    assert metrics["policy/ratio_max"] == pytest.approx(max(ratios), rel=1e-5)
    assert max(ratios) > 1.2
    assert min(ratios) < 0.5
    for (name, start), slope in zip(before.items(), expected, strict=True):
        torch.testing.assert_close(start - updater.parameters[name], slope, rtol=1e-8, atol=1e-10)


# -- the whole run -----------------------------------------------------------------------------


def some(inputs: RewardInputs) -> Scores:
    """Only prompts with an even sum tell their completions apart; that score moves with the
    completion's length, so that it depends on what the policy has learnt."""
    scores = []
    for i, (example, length) in enumerate(zip(inputs.examples, inputs.lengths, strict=True)):
        even = (example.meta["a"] + example.meta["b"]) % 2 == 0
        scores.append(i % 2 + 0.1 * length if even else 0.0)
    return Scores(scores, {"even": [float(s > 0) for s in scores]})


STEPS = 6
SMALL = (
    "selection=replay", "task.train_size=10", "task.held_out_size=2", "prompts_per_step=4",
    "sampler.group_size=2", "sampler.max_new_tokens=6", "eval.samples=0", "eval.every=0",
    "optimizer.lr=1e-3", "selection.size=5", "selection.max_staleness=3", "kl=k3",
    "updates_per_batch=2", "minibatches=2", "checkpoint.every=2", f"steps={STEPS}",
)  # fmt: skip


def run_of(*overrides: str) -> Run:
    return replace(lab.run_of(*SMALL, *overrides), reward=some)


def trainer(run: Run, folder: Path) -> Trainer:
    folder.mkdir(exist_ok=True)
    return Trainer(run, Encoder(run.model), run.task.load(), RunFolder(folder))


class Killed(Exception):
    """Stands in for a kill: nothing after it runs."""


def fit(job: Trainer, kill_at: int | None = None, stop_at: int | None = None) -> dict[int, Any]:
    """{step: metrics}, without what a clock measured, as far as the run came."""
    logged: dict[int, Any] = {}

    def log(step: int, metrics: dict[str, float]) -> None:
        clocked = ("time/", "speed/", "memory/")
        logged[step] = {k: str(v) for k, v in metrics.items() if not k.startswith(clocked)}
        if step == kill_at:
            raise Killed
        if step == stop_at:
            job.stop_asked = True

    try:
        job.fit(log)
    except (Killed, Interrupted):
        pass
    finally:
        torch.use_deterministic_algorithms(False)
    return logged


def content(job: Trainer) -> dict[str, tuple[Any, ...]]:
    """A run's buffer, to the bit."""
    assert job.collector.buffer is not None
    found = job.collector.buffer.tensors()
    return {k: (v.dtype, v.shape, v.numpy().tobytes()) for k, v in found.items()}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Trainer, dict[int, Any]]:
    job = trainer(run_of(), tmp_path_factory.mktemp("undisturbed") / "run")
    return job, fit(job)


def test_a_run_replays(undisturbed: tuple[Trainer, dict[int, Any]]) -> None:
    _, logged = undisturbed
    steps = [{k: float(v) for k, v in logged[s].items()} for s in range(1, STEPS + 1)]
    assert steps[0]["replay/size"] == steps[0]["replay/used_share"] == 0
    used = [m for m in steps if m["replay/used_share"] > 0]
    assert len(used) >= 3
    for m in steps:
        assert m["replay/size"] <= 5
        assert math.isnan(m["replay/age"]) == (m["replay/used_share"] == 0)
    for m in used:
        assert 1 <= m["replay/age"] <= 3
    # a fresh group's first ratio is 1, a replayed one's is not: some steps of learning are between
    assert all(m["policy/ratio_std"] > 0 for m in used)


def test_reward_metrics_describe_fresh_rollouts_alone(
    undisturbed: tuple[Trainer, dict[int, Any]], tmp_path: Path
) -> None:
    _, logged = undisturbed
    plain = fit(trainer(replace(run_of(), selection=component("selection", "all")), tmp_path / "r"))
    for name in ("reward/mean", "reward/even", "reward/zero_std_share", "length/mean"):
        assert logged[1][name] == plain[1][name]  # paired: nothing was learnt yet
    # 4 fresh groups of 2 each step: shares of eighths, whatever was replayed
    for step in range(1, STEPS + 1):
        assert float(logged[step]["reward/even"]) * 8 % 1 == 0
        assert float(logged[step]["reward/zero_std_share"]) * 4 % 1 == 0


def test_batches_are_what_the_buffer_promises(tmp_path: Path) -> None:
    """Step by step: fresh informative groups and different past ones, in the places of the rest."""
    job = trainer(run_of("steps=5"), tmp_path / "run")
    collector, seen = job.collector, []
    generated: dict[tuple[int, str, tuple[str, ...]], list[float]] = {}
    for step in range(5):
        found = collector.collect(step)
        fresh = found.everything
        assert fresh.rewards is not None
        assert fresh.groups == 4
        differ = (fresh.rewards.amax(dim=1) > fresh.rewards.amin(dim=1)).tolist()
        batch = found.rollouts
        ages, texts = (
            batch.ages.tolist(),
            [tuple(batch.texts[2 * g : 2 * g + 2]) for g in range(batch.groups)],
        )
        assert sum(a == 0 for a in ages) == sum(differ)
        assert batch.groups <= 4
        places = [(p, t) for p, t, a in zip(batch.prompts, texts, ages, strict=True) if a]
        origins = [(step - a, p, t) for (p, t), a in zip(places, filter(None, ages), strict=True)]
        assert len(set(origins)) == len(origins)
        for origin in origins:
            assert origin in generated
        if batch.groups:
            job.updater.score_logps(batch, 0.0)
            logps = batch.old_logps
            assert logps is not None
            for g, age in enumerate(ages):
                rows = slice(2 * g, 2 * g + 2)
                values = logps[rows][batch.mask[rows]].tolist()
                key = (step - age, batch.prompts[g], texts[g])
                if age:
                    assert generated[key] == values  # to the bit, though the policy has moved on
                generated[key] = values
        collector.remember(batch, step)
        seen.append(len(origins))
        with torch.no_grad():
            for p in job.updater.parameters.values():
                p.mul_(1.01)
        job.policy.sync()
    assert sum(seen) >= 3


@pytest.mark.parametrize(("kill_at", "stop_at"), [(3, None), (5, None), (None, 3), (4, None)])
def test_a_killed_run_ends_as_one_that_was_left_alone(
    kill_at: int | None,
    stop_at: int | None,
    undisturbed: tuple[Trainer, dict[int, Any]],
    tmp_path: Path,
) -> None:
    whole, expected = undisturbed
    first = fit(trainer(run_of(), tmp_path / "run"), kill_at, stop_at)
    assert max(first) == (kill_at or stop_at)
    saved = tmp_path / "run" / "checkpoint" / "extra" / "replay.safetensors"
    assert saved.exists()
    job = trainer(run_of(), tmp_path / "run")
    rest = fit(job)
    last = {3: 2, 4: 2, 5: 4}[kill_at] if kill_at else stop_at  # the checkpoint's step
    assert last is not None
    assert min(rest) == last + 1
    assert first | rest == expected
    assert content(job) == content(whole)
    for name, parameter in job.updater.parameters.items():
        assert torch.equal(parameter, whole.updater.parameters[name])


def test_the_buffer_changes_what_is_learnt(
    undisturbed: tuple[Trainer, dict[int, Any]], tmp_path: Path
) -> None:
    """Else the kills above would not have tested it."""
    whole, _ = undisturbed
    run = replace(run_of(), selection=component("selection", "drop_zero_variance"))
    job = trainer(run, tmp_path / "run")
    fit(job)
    pairs = zip(job.updater.parameters.values(), whole.updater.parameters.values(), strict=True)
    assert any(not torch.equal(a, b) for a, b in pairs)
