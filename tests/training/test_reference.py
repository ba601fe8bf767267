"""References that move, and where the KL to them stands: in the update, in the reward, resumed."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pytest
import torch
from torch import Tensor

from grpolab.component import ConfigError, component
from grpolab.config import Lora, Run
from grpolab.conflicts import check_conflicts
from grpolab.rollouts import Rollouts
from grpolab.sweep.preflight import check
from grpolab.tracking.folder import RunFolder
from grpolab.training import checkpoint
from grpolab.training.forward import Forward
from grpolab.training.loop import Trainer
from grpolab.training.selection import Selection
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

PROMPTS, LENGTHS, GROUP = [3, 9], [4, 0, 6, 1], 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    return lab.random_model(tmp_path_factory.mktemp("llama"), "Llama")


def run_with(folder: str, *overrides: str, lr: float = 1e-2) -> Run:
    run = lab.run_of(
        f"model.name={folder}",
        f"sampler.group_size={GROUP}",
        "sampler.max_new_tokens=8",
        f"prompts_per_step={len(PROMPTS)}",
        *overrides,
    )
    return replace(run, optimizer=replace(run.optimizer, lr=lr, max_grad_norm=math.inf))


def rollouts() -> Rollouts:
    return lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP, dtype=torch.float32)


def copies(parameters: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n: p.detach().clone() for n, p in parameters.items()}


def identical(a: Mapping[str, Tensor], b: Mapping[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[n], b[n]) for n in a)


# -- when --------------------------------------------------------------------------------------


def test_when_a_reference_moves() -> None:
    sync, ema = component("reference", "sync", every=3), component("reference", "ema", every=2)
    steps = range(1, 8)
    assert [sync.mix(s) for s in steps] == [None, None, 1.0, None, None, 1.0, None]
    assert [ema.mix(s) for s in steps] == [None, 0.6, None, 0.6, None, 0.6, None]
    assert component("reference", "ema", alpha=0.25, every=1).mix(1) == 0.25
    assert (sync.moves, ema.moves) == (True, True)
    for name in ("frozen", "old", "none"):
        still = component("reference", name)
        assert not still.moves
        assert [still.mix(s) for s in range(1, 1000)] == [None] * 999


def test_defaults_are_those_of_tr_dpo() -> None:
    ema = component("reference", "ema")
    assert (ema.alpha, ema.every) == (0.6, 512)


@pytest.mark.parametrize(
    ("name", "settings", "key"),
    [("ema", {"alpha": 0.0}, "alpha"), ("ema", {"alpha": 1.1}, "alpha"),
     ("ema", {"every": 0}, "every"), ("sync", {"every": 0}, "every")],
)  # fmt: skip
def test_refused_settings(name: str, settings: dict[str, Any], key: str) -> None:
    with pytest.raises(ConfigError, match=rf"^reference\.{key}: .* out of bounds"):
        component("reference", name, **settings)


# -- how ---------------------------------------------------------------------------------------


def strayed(run: Run) -> Forward:
    """A policy that has left its start, where the reference still is."""
    policy = lab.policy_of(run)
    forward = Forward(run, policy)
    with torch.no_grad():
        for p in policy.model.parameters():
            p += 0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)).to(p.dtype)
    return forward


def test_ema_by_hand(folder: str) -> None:
    forward = strayed(run_with(folder, "kl=k3", "reference=ema", "reference.every=2"))
    start = copies(dict(forward.reference.named_parameters()))
    policy = copies(dict(forward.policy.model.named_parameters()))
    forward.move_reference(1)
    assert identical(dict(forward.reference.named_parameters()), start)
    forward.move_reference(2)
    once = dict(forward.reference.named_parameters())
    for name, before in start.items():
        torch.testing.assert_close(once[name], 0.6 * policy[name] + 0.4 * before)
        assert not once[name].requires_grad
    forward.move_reference(4)
    for name, before in start.items():  # .6θ + .4(.6θ + .4·ref) = .84θ + .16·ref
        torch.testing.assert_close(once[name], 0.84 * policy[name] + 0.16 * before)
    assert identical(dict(forward.policy.model.named_parameters()), policy)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("master", ["true", "false"])
def test_sync_copies_bit_for_bit(folder: str, dtype: str, master: str) -> None:
    precision = (f"hardware.dtype={dtype}", f"hardware.master_weights={master}")
    forward = strayed(run_with(folder, "kl=k3", "reference=sync", "reference.every=1", *precision))
    policy = dict(forward.policy.model.named_parameters())
    reference = dict(forward.reference.named_parameters())
    assert not identical(reference, policy)
    forward.move_reference(1)
    assert identical(reference, policy)
    assert {p.dtype for p in reference.values()} == {p.dtype for p in policy.values()}
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(reference.values(), policy.values(),
                                                            strict=True))  # fmt: skip


def test_a_blend_in_low_precision_is_rounded_once(folder: str) -> None:
    precision = ("hardware.dtype=bfloat16", "hardware.master_weights=false")
    forward = strayed(run_with(folder, "kl=k3", "reference=ema", "reference.every=1", *precision))
    reference = dict(forward.reference.named_parameters())
    before = copies(reference)
    forward.move_reference(1)
    for name, source in forward.policy.model.named_parameters():
        wide = torch.lerp(before[name].float(), source.detach().float(), 0.6)
        assert reference[name].dtype == torch.bfloat16
        assert torch.equal(reference[name], wide.bfloat16())


def test_without_a_kl_there_is_nothing_to_move(folder: str) -> None:
    forward = Forward(run_with(folder, "reference=sync", "reference.every=1"),
                      lab.policy_of(run_with(folder)))  # fmt: skip
    assert forward.reference is None
    forward.move_reference(1)
    assert forward.moving_reference() == {}


# -- conflicts ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["sync", "ema"])
def test_adapters_have_no_second_copy(name: str) -> None:
    run = lab.run_of("kl=k3", f"reference={name}")
    with pytest.raises(ConfigError, match=f"^reference: {name} given with model.lora.*frozen"):
        check_conflicts(replace(run, model=replace(run.model, lora=Lora())))


@pytest.mark.parametrize("name", ["frozen", "sync", "ema"])
def test_the_full_kl_goes_with_every_model(name: str) -> None:
    assert lab.run_of("kl=full", f"reference={name}").reference.needs_model
    with pytest.raises(ConfigError, match=r"^reference: old .*kl=full.*sync or ema"):
        lab.run_of("kl=full", "reference=old")


@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_the_old_policy_in_the_reward_is_no_reference(placement: str) -> None:
    with pytest.raises(ConfigError, match=rf"^reference: old .*kl\.placement={placement}.*is 0"):
        lab.run_of("kl=k1", f"kl.placement={placement}", "reference=old")
    assert lab.run_of("kl=k1", "reference=old").kl.placement == "loss"
    assert lab.run_of("kl=k1", f"kl.placement={placement}").reference.name == "frozen"


# -- the KL in the reward ----------------------------------------------------------------------


def exact_updater(run: Run) -> Updater:
    updater = Updater(run, lab.double(lab.policy_of(run)))
    updater.optimizer = torch.optim.SGD(updater.parameters.values(), lr=1.0)  # type: ignore[assignment]
    with torch.no_grad():
        for p in updater.forward.reference.parameters():
            p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(3)).double()
    return updater


def test_reward_to_go_charges_each_token_for_what_follows(folder: str) -> None:
    run = run_with(folder, "kl=k3", "kl.placement=reward_to_go", "clip=reinforce", lr=1.0)
    run = replace(run, hardware=replace(run.hardware, tokens_per_microbatch=30))
    updater = exact_updater(run)
    batch = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP)
    assert batch.rewards is not None
    updater.score_logps(batch, 0.25)
    batch.advantages = updater.advantages(batch, None)
    assert batch.advantages.shape == batch.mask.shape

    total = torch.zeros((), dtype=torch.float64)
    model, reference = updater.policy.model, updater.forward.reference
    for row in range(len(batch)):
        prompt, completion = lab.sequence(batch, row)
        group = batch.rewards[row // GROUP]
        own = (batch.rewards.flatten()[row] - group.mean()) / (group.std() + 1e-4)
        if not completion:
            continue
        logps = lab.plain_logps(model, prompt, completion)
        D = (logps - lab.plain_logps(reference, prompt, completion)).detach()
        k3 = torch.exp(-D) + D - 1
        for t in range(len(completion)):
            advantage = own - 0.25 * k3[t:].sum()
            found = float(batch.advantages[row, t])
            assert found == pytest.approx(float(advantage.detach()), rel=1e-5)
            total = total - advantage.detach() * logps[t] / sum(LENGTHS)
    parameters = list(updater.parameters.values())
    naive = torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])
    before = torch.cat([p.detach().flatten() for p in parameters])
    metrics = updater.update(batch, 0, 0.25)
    after = torch.cat([p.detach().flatten() for p in parameters])
    assert float((before - after - naive).norm() / naive.norm()) < 1e-6  # advantages are float32
    assert metrics["loss/kl"] == 0.0
    assert metrics["kl/ref_k3"] > 0


@pytest.mark.parametrize("placement", ["loss", "reward", "reward_to_go"])
def test_with_beta_zero_nothing_of_the_kl_enters(folder: str, placement: str) -> None:
    """Bit for bit, even where the KL would be infinite."""

    def trained(*overrides: str) -> dict[str, Tensor]:
        run = run_with(folder, "updates_per_batch=2", *overrides)
        updater = Updater(run, lab.policy_of(run))
        if updater.forward.reference is not None:
            with torch.no_grad():
                next(iter(updater.forward.reference.parameters())).fill_(math.inf)
        batch = rollouts()
        updater.score_logps(batch, 0.0)
        batch.advantages = updater.advantages(batch, None)
        updater.update(batch, 0, 0.0)
        return copies(updater.parameters)

    plain = trained()
    assert identical(trained("kl=k2", f"kl.placement={placement}", "kl.beta=0.0"), plain)
    assert all(p.isfinite().all() for p in plain.values())


# -- whole runs --------------------------------------------------------------------------------

STEPS = 6


class Killed(Exception):
    pass


def trainer_of(run: Run, out: Path) -> Trainer:
    ready = check(run)
    folder = RunFolder(out)
    out.mkdir(exist_ok=True)
    return Trainer(run, ready.encoder, ready.examples, folder)


def whole_run(*overrides: str) -> Run:
    return lab.run_of(
        "prompts_per_step=2", "sampler.group_size=4", "sampler.max_new_tokens=12", f"steps={STEPS}",
        "eval.every=0", "eval.prompts=1", "eval.samples=0", "hardware.threads=1",
        "optimizer.lr=2e-4", "tracking.log_samples=0", "checkpoint.every=2", *overrides,
    )  # fmt: skip


def fit(trainer: Trainer, *, kill_at: int | None = None) -> list[dict[str, float]]:
    """Metrics of each step, without what a clock measured; dies in the middle where told to."""
    seen: list[dict[str, float]] = []

    def log(step: int, metrics: dict[str, float]) -> None:
        if step == kill_at:
            raise Killed
        kept = ("reward/", "kl/", "loss/", "optim/", "length/", "policy/")
        seen.append({k: v for k, v in metrics.items() if k.startswith(kept)})

    trainer.fit(log)
    return seen


MOVING = {
    "sync": ("reference=sync", "reference.every=3", "kl=k3"),
    "ema": ("reference=ema", "reference.every=2", "kl=straight_through", "updates_per_batch=2"),
    "ema in the reward": (
        "reference=ema", "reference.every=1", "kl=k1", "kl.placement=reward_to_go",
        "kl.schedule=adaptive", "kl.horizon=50", "kl.target=0.001",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MOVING)
def test_a_killed_run_ends_like_one_left_alone(case: str, tmp_path: Path) -> None:
    run = whole_run(*MOVING[case])
    alone = trainer_of(run, tmp_path / "alone")
    expected = fit(alone)
    start = copies(dict(Forward(run, lab.policy_of(run)).reference.named_parameters()))

    with pytest.raises(Killed):  # in step 5; the last checkpoint is of step 4
        fit(trainer_of(run, tmp_path / "killed"), kill_at=5)
    assert (tmp_path / "killed" / "checkpoint" / "reference.safetensors").exists()
    resumed = trainer_of(run, tmp_path / "killed")
    found = fit(resumed)
    assert len(found) == 2
    assert [str(m) for m in found] == [str(m) for m in expected[-2:]]
    assert identical(resumed.updater.parameters, alone.updater.parameters)
    reference = dict(resumed.updater.forward.reference.named_parameters())
    assert identical(reference, dict(alone.updater.forward.reference.named_parameters()))
    assert not identical(reference, start)


def test_right_after_a_copy_the_kl_is_zero(tmp_path: Path) -> None:
    """With reference.every=3 the KL is 0 in steps 1 and 4, the first after the start and after
    the copy; in steps 2, 3, 5 and 6 the policy has left."""
    trainer = trainer_of(whole_run(*MOVING["sync"]), tmp_path / "run")
    kls = [m["kl/ref_k3"] for m in fit(trainer) if "kl/ref_k3" in m]
    assert [abs(k) < 1e-7 for k in kls] == [True, False, False, True, False, False]
    # the copy of step 6 is made too
    policy = dict(trainer.policy.model.named_parameters())
    assert identical(dict(trainer.updater.forward.reference.named_parameters()), policy)


@dataclass(frozen=True)
class Nothing(Selection):
    """No group trains."""

    name: ClassVar[str] = "nothing"

    def __call__(self, rewards: Tensor, *, noise: Tensor | None = None) -> Tensor:
        return torch.zeros_like(rewards, dtype=torch.bool)


def test_a_step_without_groups_moves_the_reference_too(tmp_path: Path) -> None:
    run = whole_run("reference=sync", "reference.every=1", "kl=k3", "steps=1")
    trainer = trainer_of(replace(run, selection=Nothing()), tmp_path / "run")
    policy = dict(trainer.policy.model.named_parameters())
    with torch.no_grad():
        for p in policy.values():
            p += 0.01
    reference = dict(trainer.updater.forward.reference.named_parameters())
    assert not identical(reference, policy)
    assert fit(trainer)[-1]["optim/updates"] == 0
    assert identical(reference, policy)


def test_a_frozen_reference_costs_a_checkpoint_nothing(tmp_path: Path) -> None:
    run = whole_run("kl=k3", "steps=3")
    with pytest.raises(Killed):
        fit(trainer_of(run, tmp_path / "run"), kill_at=3)
    saved = {p.name for p in (tmp_path / "run" / "checkpoint").iterdir() if p.is_file()}
    assert saved == {"weights.safetensors", "optimizer.safetensors", "state.json", "sums.json"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_checkpoint_restores_the_reference_bit_for_bit(
    tmp_path: Path, dtype: torch.dtype
) -> None:
    weight = torch.nn.Parameter(torch.randn(3, 4))
    optimizer = torch.optim.AdamW([weight])
    reference = {"a": torch.randn(5, dtype=dtype), "b": torch.randn(2, 2, dtype=dtype).T}
    checkpoint.save(tmp_path, {"w": weight}, optimizer, {"step": 7}, reference=reference)
    empty = {n: torch.zeros_like(t) for n, t in reference.items()}
    state = checkpoint.load(tmp_path, {"w": weight}, optimizer, reference=empty)
    assert state is not None
    assert state["step"] == 7
    assert identical(empty, reference)


@pytest.mark.parametrize("placement", ["reward", "reward_to_go"])
def test_an_adaptive_beta_steers_a_kl_in_the_reward(placement: str, tmp_path: Path) -> None:
    """β follows its rule from the KL that was measured, though the KL is in no loss."""
    run = whole_run("kl=k1", f"kl.placement={placement}", "kl.schedule=adaptive",
                    "kl.beta=0.5", "kl.target=0.01", "kl.horizon=80", "steps=4")  # fmt: skip
    metrics = [m for m in fit(trainer_of(run, tmp_path / "run")) if "kl/beta" in m]
    beta = 0.5
    for m in metrics:
        assert m["kl/beta"] == pytest.approx(beta, rel=1e-12)
        assert m["loss/kl"] == 0.0
        # two prompts with four completions: n = 8 of a horizon of 80
        beta *= 1 + min(0.2, max(-0.2, m["kl/ref_k1"] / 0.01 - 1)) * 8 / 80
    assert len({m["kl/beta"] for m in metrics}) == len(metrics)
