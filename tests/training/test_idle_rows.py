"""Rows that cannot move the weights run forward alone; what is computed twice is computed once."""

from __future__ import annotations

import resource
import subprocess
import sys
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor

from grpolab.component import component, names
from grpolab.objective.clip import Clip
from grpolab.policy.policy import Policy
from grpolab.rollouts import Rollouts
from grpolab.training.memory import is_out_of_memory, token_budget
from grpolab.training.update import TrainingFailed, Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

GROUP = 4
STEADY = ("optimizer.lr=1e-2", "optimizer.eps=1e-3")
"""A larger ε, so that AdamW does not make a step of a gradient that is rounding."""
PROMPTS, LENGTHS = [3, 6, 2], [4, 2, 9, 1, 7, 2, 1, 5, 9, 9, 3, 3]


def updater_of(*overrides: str) -> Updater:
    run = lab.run_of(f"sampler.group_size={GROUP}", *STEADY, *overrides)
    return Updater(run, lab.double(lab.policy_of(run)))


def rollouts_with(idle: list[int]) -> Rollouts:
    rollouts = lab.made_up_rollouts(PROMPTS, LENGTHS, group_size=GROUP)
    assert rollouts.advantages is not None
    rollouts.advantages[idle] = 0.0
    return rollouts


def weights(updater: Updater) -> Tensor:
    return torch.cat([p.detach().flatten() for p in updater.parameters.values()])


@pytest.mark.parametrize("name", names("clip"))
def test_a_clip_tells_whether_it_needs_advantages(name: str) -> None:
    clip: Clip = component("clip", name)
    source = torch.Generator().manual_seed(0)
    old = -torch.rand(6, 9, generator=source, dtype=torch.float64)
    logps = (old + torch.randn(6, 9, generator=source, dtype=torch.float64)).requires_grad_()
    mask = torch.arange(9) < torch.tensor([9, 1, 4, 6, 2, 9]).unsqueeze(1)
    rewards = torch.tensor([[1.0], [0.0], [1.0], [0.0], [1.0], [0.0]], dtype=torch.float64)
    nothing = torch.zeros(6, 1, dtype=torch.float64)
    loss = clip(logps, old, nothing, mask, rewards=rewards).loss
    gradient = torch.zeros_like(old)
    if loss.requires_grad:
        (gradient,) = torch.autograd.grad(loss.sum(), logps)
    assert bool((gradient == 0).all()) == clip.needs_advantage


def run_forward(updater: Updater, monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, bool]]:
    """(rows, with gradient) of each forward pass of the trained policy, as they come."""
    found: list[tuple[int, bool]] = []
    token_logps = Policy.token_logps

    def counted(self: Policy, *args: Any, **kwargs: Any) -> Any:
        if kwargs.get("model") is None:
            found.append((len(args[0]), torch.is_grad_enabled()))
        return token_logps(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "token_logps", counted)
    return found


@pytest.mark.parametrize("idle", [[1], [0, 2], [0, 1, 2]])
@pytest.mark.parametrize("clip", ["ppo", "gspo", "bapo"])
def test_idle_groups_have_no_backward_pass(
    clip: str, idle: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater, plain = updater_of(f"clip={clip}"), updater_of(f"clip={clip}")
    monkeypatch.setattr(type(plain.run.clip), "needs_advantage", False)
    for step, which in enumerate(([], idle)):  # the optimizer has moments by the second step
        expected = plain.update(rollouts_with(list(which)), step, 0.0)
    monkeypatch.undo()
    updater.update(rollouts_with([]), 0, 0.0)
    passes = run_forward(updater, monkeypatch)
    metrics = updater.update(rollouts_with(idle), 1, 0.0)
    torch.testing.assert_close(weights(updater), weights(plain), rtol=1e-10, atol=1e-12)
    assert metrics == pytest.approx(expected, rel=1e-5, abs=1e-6)
    if not updater.run.clip.needs_plan:
        learnt = sum(rows for rows, grad in passes if grad)
        assert (learnt, sum(rows for rows, _ in passes)) == (12 - 4 * len(idle), 12)


@pytest.mark.parametrize("overrides", [["kl=k3", "kl.beta=0.1"], ["clip=quadratic"]])
def test_every_row_counts_where_something_else_moves_it(
    overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater = updater_of(*overrides)
    passes = run_forward(updater, monkeypatch)
    updater.update(rollouts_with([0, 1]), 0, 0.1)
    assert sum(rows for rows, grad in passes if grad) == 12


def test_the_first_updates_log_probs_serve_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    overrides = ("kl=k3", "updates_per_batch=3", "hardware.tokens_per_microbatch=20")
    updater, plain = updater_of(*overrides), updater_of(*overrides)
    beforehand = rollouts_with([])
    monkeypatch.setattr(Updater, "scores_before", True)
    plain.score_logps(beforehand, 0.1)
    assert beforehand.old_logps is not None
    assert beforehand.ref_logps is not None
    expected = plain.update(beforehand, 0, 0.1)
    monkeypatch.undo()
    fresh = rollouts_with([])
    updater.score_logps(fresh, 0.1)
    assert fresh.old_logps is None
    passes = run_forward(updater, monkeypatch)
    metrics = updater.update(fresh, 0, 0.1)
    assert sum(rows for rows, _ in passes) == 3 * 12
    torch.testing.assert_close(weights(updater), weights(plain), rtol=1e-10, atol=1e-12)
    assert metrics == pytest.approx(expected, rel=1e-7, abs=1e-9)


def test_minibatches_are_scored_beforehand(monkeypatch: pytest.MonkeyPatch) -> None:
    """By the second update the weights have changed."""
    updater = updater_of("updates_per_batch=3", "minibatches=3")
    rollouts = rollouts_with([])
    updater.score_logps(rollouts, 0.0)
    assert rollouts.old_logps is not None


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError, MemoryError])
@pytest.mark.parametrize("limit", [20, 10])
def test_out_of_memory_halves_the_micro_batches(
    limit: int, error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    updater, plain = updater_of("kl=k3"), updater_of("kl=k3")
    plain.update(rollouts_with([]), 0, 0.1)
    token_logps = Policy.token_logps
    calls = 0

    def small(self: Policy, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += kwargs.get("model") is None
        if calls > 1 and int(args[3].sum()) > limit:  # the first has left a gradient behind
            raise error("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 byte")
        return token_logps(self, *args, **kwargs)

    updater.forward.budget = 40
    monkeypatch.setattr(Policy, "token_logps", small)
    with pytest.warns(UserWarning, match="out of memory in an update"):
        updater.update(rollouts_with([]), 0, 0.1)
    assert updater.forward.budget < 40
    torch.testing.assert_close(weights(updater), weights(plain), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("overrides", "advised"),
    [
        ([], True),
        (["hardware.gradient_checkpointing=true"], False),
        (["hardware.engine=plain"], False),
        (["kl=full", "kl.beta=0.1"], False),
        (["sampler.top_k=10", "sampler.match_support=true"], False),
        (["clip=bapo"], False),  # its plan has no backward pass
    ],
)
def test_where_nothing_can_be_halved_the_error_stands(
    overrides: list[str], advised: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And recommends checkpointing where it is off and something would come of it."""
    updater = updater_of(*overrides)

    def never(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(Policy, "token_logps", never)
    with (
        pytest.warns(UserWarning, match="out of memory in"),
        pytest.raises(TrainingFailed, match=r"out of memory.*single.*max_new_tokens") as caught,
    ):
        updater.update(rollouts_with([]), 0, 0.0)
    assert ("gradient_checkpointing" in str(caught.value)) == advised


BEFORE_AN_UPDATE = {
    "minibatches": (4, ["updates_per_batch=2", "minibatches=2", "kl=k3"]),
    "kl_in_reward": (4, ["kl=full", "kl.placement=reward_to_go"]),
    "replay": (3, ["selection=replay"]),
    "collision": (3, ["advantage=optimal_token_baseline"]),
}
"""(number of the forward pass that fails, settings that need passes beforehand). With a reference,
which a little noise sets off from the policy, it is asked in every other pass."""


def fails_once(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """The so manyeth forward pass without a gradient finds no memory."""
    token_logps = Policy.token_logps
    calls = 0

    def small(self: Policy, *args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        calls += not torch.is_grad_enabled()
        if calls == at and not torch.is_grad_enabled():
            raise MemoryError  # says nothing, as Python's own
        return token_logps(self, *args, **kwargs)

    monkeypatch.setattr(Policy, "token_logps", small)


def set_off(updater: Updater) -> Updater:
    """The reference moved away from the policy, and little micro-batches."""
    source = torch.Generator().manual_seed(2)
    if updater.forward.reference is not None:
        updater.forward.reference.double()
        with torch.no_grad():
            for p in updater.forward.reference.parameters():
                p += 0.05 * torch.randn(p.shape, generator=source, dtype=p.dtype)
    updater.forward.budget = 24
    return updater


def scored(updater: Updater) -> Rollouts:
    """Rollouts with log-probs and advantages, the second group from an older policy."""
    rollouts = rollouts_with([])
    if updater.run.selection.replays:
        assert rollouts.sampler_logps is not None
        rollouts.ages[1] = 1
        rollouts.old_logps = rollouts.sampler_logps.clone()
    updater.score_logps(rollouts, 0.1)
    rollouts.advantages = updater.advantages(rollouts, None)
    return rollouts


@pytest.mark.parametrize("case", BEFORE_AN_UPDATE)
def test_out_of_memory_before_an_update_changes_nothing(
    case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    at, overrides = BEFORE_AN_UPDATE[case]
    updater, plain = (set_off(updater_of(*overrides)) for _ in range(2))
    expected = scored(plain)
    plain.update(expected, 0, 0.1)
    fails_once(monkeypatch, at)
    with pytest.warns(UserWarning, match=r"the passes before an update \(MemoryError\).* 12 tok"):
        found = scored(updater)
    monkeypatch.undo()
    assert updater.forward.budget == 12
    for name in ("old_logps", "ref_logps", "kl_penalty", "collision"):
        values, same = getattr(found, name), getattr(expected, name)
        if same is not None:
            gap = (values - same)[found.mask].abs().max()
            assert float(gap) < 1e-10, name
    updater.update(found, 0, 0.1)
    torch.testing.assert_close(weights(updater), weights(plain), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "clip", [["clip=clip_cov", "clip.share=0.1", "clip.lo=-1", "clip.hi=1"], ["clip=bapo"]]
)
def test_out_of_memory_in_a_plan_changes_nothing(
    clip: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = []
    for at in (None, 2):
        updater = set_off(updater_of("updates_per_batch=2", "minibatches=2", *clip))
        rollouts = scored(updater)
        assert rollouts.old_logps is not None
        source = torch.Generator().manual_seed(3)
        noise = torch.randn(rollouts.mask.shape, generator=source, dtype=torch.float64)
        rollouts.old_logps += 0.3 * noise
        if at is None:
            updater.update(rollouts, 0, 0.0)
        else:
            fails_once(monkeypatch, at)
            with pytest.warns(UserWarning, match=r"the plan of an update .* 12 tokens"):
                updater.update(rollouts, 0, 0.0)
            assert updater.forward.budget == 12
        ends.append(weights(updater))
    torch.testing.assert_close(ends[1], ends[0], rtol=1e-10, atol=1e-12)


def test_other_errors_are_no_lack_of_memory() -> None:
    assert not is_out_of_memory(RuntimeError("shapes do not match"))
    assert is_out_of_memory(MemoryError())


REAL = """
import resource, sys, warnings
import torch
from dataclasses import replace
sys.path[:0] = {paths!r}
import policies as lab
from grpolab.training.update import Updater

torch.set_num_threads(1)
run = lab.run_of("sampler.group_size=64", "sampler.max_new_tokens=64")
updater = Updater(run, lab.policy_of(run))
rollouts = lab.made_up_rollouts([40] * 2, [60] * 128, group_size=64, dtype=torch.float32)
updater.forward.budget = 64
updater.update(rollouts, 0, 0.0)  # what any update needs is there
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + 2**27, resource.RLIM_INFINITY))
updater.forward.budget = 2**16
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    metrics = updater.update(rollouts, 1, 0.0)
said = [str(w.message) for w in caught if "out of memory" in str(w.message)]
print(len(said) > 0, updater.forward.budget < 2**16, metrics["tokens/trained"])
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="RLIMIT_AS and /proc")
def test_a_real_allocation_that_fails() -> None:
    assert resource.RLIMIT_AS
    code = REAL.format(paths=[p for p in sys.path if p.endswith(("policy", "src")) or p])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["True", "True", "7680.0"], done.stderr[-2000:]


def test_a_budget_in_gib_bounds_the_tokens_of_a_pass() -> None:
    run = lab.run_of("hardware.tokens_per_microbatch=4000")
    policy = lab.policy_of(run)
    each = policy.bytes_per_token()
    hardware = replace(run.hardware, memory_budget=100 * each / 2**30)
    assert token_budget(hardware, policy) == 100
    assert token_budget(run.hardware, policy) == 4000
    wide = replace(run.hardware, memory_budget=1000.0)
    assert token_budget(wide, policy) == 4000


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_bytes_per_token_are_those_that_are_kept(dtype: str, checkpointing: bool) -> None:
    run = lab.run_of(
        f"hardware.dtype={dtype}", f"hardware.gradient_checkpointing={str(checkpointing).lower()}"
    )
    policy = lab.policy_of(run)
    rollouts = lab.made_up_rollouts([30] * 4, [60] * 32, group_size=8)
    seen: dict[int, int] = {}
    parameters = {p.data_ptr() for p in policy.model.parameters()}

    def keep(tensor: Tensor) -> Tensor:
        if tensor.data_ptr() not in parameters:
            storage = tensor.untyped_storage()
            seen[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        found = policy.token_logps(
            rollouts.prompt_ids, rollouts.prompt_lengths, rollouts.completion_ids, rollouts.mask,
            groups=torch.arange(4).repeat_interleave(8),
        )  # fmt: skip
        tokens = 4 * 30 + 32 * 59
        each = sum(seen.values()) / tokens
    assert found.logps.requires_grad
    assert 0.6 < policy.bytes_per_token() / each < 1.6
