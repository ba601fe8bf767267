"""What a step does with memory it has not written, and with memory it gave back."""

from __future__ import annotations

import platform
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest
import torch
from torch import Tensor

from grpolab.sampling.base import Draw, Samples
from grpolab.training import memory
from grpolab.training.update import Updater

if TYPE_CHECKING:
    from tests.policy import policies as lab
else:
    import policies as lab

FAULTS = """
import resource, sys
import torch
from grpolab.training.memory import keep_freed_memory

kept = keep_freed_memory() if sys.argv[1] == "keep" else True
before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(20):
    torch.empty(2**24, dtype=torch.uint8).fill_(1)
    torch.empty(2**26, dtype=torch.uint8).fill_(1)
print(kept, resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="mallopt is glibc's")
def test_freed_memory_is_used_again() -> None:
    faults = {}
    for how in ("keep", "return"):
        done = subprocess.run(
            [sys.executable, "-c", FAULTS, how], capture_output=True, text=True, check=True
        )
        kept, count = done.stdout.split()
        assert kept == "True"
        faults[how] = int(count)
    assert faults["keep"] * 5 < faults["return"], faults


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_nothing_is_read_before_it_is_written(dtype: str) -> None:
    """New tensors full of NaN give the same completions and weights as whatever lies there."""
    (tokens, weights), (same_tokens, same_weights) = (stepped(dtype, nan=x) for x in (True, False))
    assert torch.equal(tokens, same_tokens)
    assert bool(weights.isfinite().all())
    assert torch.equal(weights, same_weights)


def stepped(dtype: str, *, nan: bool) -> tuple[Tensor, Tensor]:
    """Completions, and the weights after two updates on made-up ones."""
    run = lab.run_of(f"hardware.dtype={dtype}", "sampler.max_new_tokens=12", "kl=k3")
    was = torch.are_deterministic_algorithms_enabled()
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = nan  # type: ignore[attr-defined]
    try:
        assert bool(torch.empty(2**10).isnan().all()) or not nan
        updater = Updater(run, lab.policy_of(run))
        drawn: Samples = run.sampler(
            updater.policy, [[5, 6, 7, 8], [9], [10, 11]], Draw(3, (0,), run.sampler.group_size)
        )
        rollouts = lab.made_up_rollouts([7, 3], [9, 12] * 8, group_size=8, dtype=torch.float32)
        updater.score_logps(rollouts, 0.1)
        for step in range(2):
            updater.update(rollouts, step, 0.1)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(was)
    parameters = list(updater.parameters.values())
    return drawn.completion_ids, torch.cat([p.detach().flatten() for p in parameters])


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ([100, 200, 230, 241, 205, 300], [3, 5]),
        ([100, 200, 300, 310, 320, 371, 372], [2]),  # it needs more than it did at first
    ],
)
def test_a_process_that_grows_gives_freed_memory_back(
    sizes: list[int], expected: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[int] = []
    steps: list[None] = []
    monkeypatch.setattr(memory, "resident", lambda: sizes[len(steps)])
    monkeypatch.setattr(memory, "give_back", lambda: given.append(len(steps)))
    heap = memory.Heap()
    for _ in sizes:
        heap.after_step()
        steps.append(None)
    assert given == expected


GAPS = """
import torch
from grpolab.training.memory import give_back, keep_freed_memory, resident

keep_freed_memory()
kept = [torch.empty(2**16, dtype=torch.uint8).fill_(1) for _ in range(2000)]
del kept[::2]
before = resident()
give_back()
print(before - resident())
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc_trim is glibc's")
def test_gaps_are_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", GAPS], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 2**25  # of 62 MiB
