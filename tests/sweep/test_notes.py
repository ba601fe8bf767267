"""What is said before a run or a sweep starts."""

from __future__ import annotations

import dataclasses
from typing import Any

from grpolab.config import Run, bind_run
from grpolab.sweep.compose import Command, expand
from grpolab.sweep.notes import notes


def said(*overrides: str) -> list[str]:
    sweep = expand(Command(list(overrides), multirun=True))
    return notes([bind_run(j.raw) for j in sweep.jobs], sweep.factors)


def test_a_sweep_over_clips_that_cannot_act() -> None:
    (note,) = said("clip=ppo,cispo,gspo", "seed=0,1")
    assert "cispo, ppo" in note
    assert "updates_per_batch=4" in note
    assert len(said("clip.high=0.2,0.28")) == 1


def test_nothing_to_say() -> None:
    assert said("clip=ppo,cispo", "updates_per_batch=2") == []
    assert said("clip=ppo,gspo") == []
    assert said("kl=k1,k3", "seed=0,1") == []
    assert said("clip=gspo", "clip.high=0.1,0.2") == []


def test_a_danger_is_said_once() -> None:
    sweep = expand(Command(["seed=0,1"], multirun=True))
    runs = [bind_run(j.raw) for j in sweep.jobs]

    class Dangerous(type(runs[0].advantage)):  # type: ignore[misc]
        caution = "it explodes."

    def with_danger(run: Run) -> Any:
        return dataclasses.replace(run, advantage=Dangerous())

    assert notes([with_danger(r) for r in runs]) == ["advantage=group_zscore: it explodes."]
