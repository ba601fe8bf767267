"""Helpers: the gradient of the first update that training itself makes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from torch import Tensor

from grpolab.config import Run, bind_run
from grpolab.probe.records import Probe
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.preflight import check
from grpolab.tracking.folder import RunFolder
from grpolab.training.loop import Trainer

BASE = (
    "hardware.device=cpu", "hardware.threads=1", "tracking=jsonl", "prompts_per_step=4",
    "sampler.group_size=8", "sampler.max_new_tokens=8", "eval.every=0", "eval.prompts=2",
    "eval.samples=0", "steps=3",
)  # fmt: skip


def composed(*overrides: str) -> Run:
    return bind_run(expand(parse_command([*BASE, *overrides])).jobs[0].raw)


class Stopped(Exception):
    """The first update has its gradient."""


def first_gradient(run: Run, folder: Path) -> dict[str, Tensor]:
    """The gradient of the first update that training itself makes, resumed where it can be."""
    ready = check(run)
    trainer = Trainer(run, ready.encoder, ready.examples, RunFolder(folder))
    found: dict[str, Tensor] = {}

    def stop() -> float:
        for name, parameter in trainer.updater.parameters.items():
            assert parameter.grad is not None
            found[name] = parameter.grad.clone()
        raise Stopped

    trainer.updater._step = stop  # type: ignore[method-assign]
    with pytest.raises(Stopped):
        trainer.fit(lambda step, metrics: None)
    return found


def assert_same_gradients(
    found: Probe, variants: list[list[str]], folder: Path, start: Path | None = None, *base: str,
    tolerance: float = 1e-5,
) -> None:  # fmt: skip
    """Each arm's kept gradient is that of the first update of training it."""
    for j, variant in enumerate(variants):
        own = folder / str(j)
        own.mkdir(parents=True)
        if start is not None:
            shutil.copytree(start / "checkpoint", own / "checkpoint")
        last = {o.partition("=")[0]: o for o in [*base, *variant]}
        wanted = first_gradient(composed(*last.values()), own)
        size = sum(float(g.double().square().sum()) for g in wanted.values()) ** 0.5
        away = sum(
            float((found.kept[n][j] - g.flatten()).double().square().sum())
            for n, g in wanted.items()
        )
        assert size > 0
        assert away**0.5 < tolerance * size, variant
        assert found.gradients["norm"][j] == pytest.approx(size, rel=tolerance)
