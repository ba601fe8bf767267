"""Whose turn it is, when learning is over, and what is left of a side that dies."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest

from grpolab.bench import growth, report, session
from grpolab.bench.cases import Plan, parse
from grpolab.bench.processes import BenchError, Worker
from grpolab.bench.session import Result, alternate, learn, learnt_at, same_prompts
from grpolab.cli import main


class Fake:
    """Answers as a worker does, and remembers the turns."""

    def __init__(self, name: str, turns: list[str], seconds: float, rewards: list[float]) -> None:
        self.name, self.turns, self.seconds, self.rewards = name, turns, seconds, rewards

    def ask(self, line: Mapping[str, Any]) -> dict[str, Any]:
        self.turns.append(self.name)
        reward = self.rewards[min(self.turns.count(self.name), len(self.rewards)) - 1]
        phases = {"sample": self.seconds / 2, "backward": self.seconds / 4}
        return {
            "seconds": self.seconds * len(self.turns), "phases": phases, "lengths": [2, 3],
            "prompt_lengths": [4], "prompts": ["p"], "reward": reward, "peak_gib": self.seconds,
        }  # fmt: skip


def run(case: str, *words: str, rewards: list[float] | None = None) -> tuple[Result, list[str]]:
    turns: list[str] = []
    ours = Fake("ours", turns, 1.0, rewards or [0.0])
    trl = Fake("trl", turns, 2.0, [0.0])
    result = Result(parse([f"case={case}", *words]))
    step = learn if case == "learn" else alternate
    step(result, cast(Worker, ours), cast(Worker, trl), lambda _: None)
    result.machine = {
        "sizes": {"body": 1, "head": 1, "total": 2},
        "rates": dict.fromkeys(
            ("bandwidth", "decode_body", "decode_head", "update_body", "update_head"), 100.0
        ) | {"weight_bytes": 4},
    }  # fmt: skip
    result.about = {"machine": {"cpu": "x"}, "peer": {}}
    result.about["ours"] = {"device": "cpu", "gpu": None, "torch": "0", "transformers": "0"}
    return result, turns


def test_the_sides_take_turns_and_the_first_turn_is_not_counted() -> None:
    result, turns = run("tiny", "steps=3")
    assert turns == ["ours", "trl"] * 4
    assert result.turns == ["ours", "peer"] * 3
    assert [s["seconds"] for s in result.ours] == [3.0, 5.0, 7.0]


def test_other_prompts_are_no_comparison() -> None:
    raw = {"prompts": ["p"], "prompt_lengths": [4]}
    same_prompts(raw, {"prompt_lengths": [4]})  # a side may not know the texts
    with pytest.raises(BenchError, match="different prompt lengths"):
        same_prompts(raw, raw | {"prompt_lengths": [5]})


def test_medians_spread_and_ratios() -> None:
    found = report.summarise(run("tiny", "steps=3")[0])
    ours, peer = found["ours"], found["peer"]
    assert (ours["step"], peer["step"]) == (5.0, 12.0)
    assert ours["spread"]["step"] == {"min": 3.0, "q1": 4.0, "q3": 6.0, "max": 7.0}
    assert ours["idle"] == 5.0 - 0.75
    assert found["ratio"] == {"step": 5 / 12, "sample": 0.5, "update": 0.5, "peak_memory": 0.5}
    assert found["ratio_per_token"]["sample"] == 0.5
    assert ours["tokens_per_s"] == 1.0
    for key in ("sample", "update", "step"):
        assert found["limit_share"][key] == found["limit"]["ours"][key] / ours[key]


def test_a_peer_that_samples_alone_is_compared_in_nothing_else() -> None:
    found = report.summarise(run("gpu_0.5b", "steps=2")[0])
    assert found["ratio"]["sample"] == 0.5
    assert {found["ratio"][k] for k in ("step", "update", "peak_memory")} == {None}


def test_learnt_is_a_mean_of_five_steps() -> None:
    assert learnt_at([1.0] * 4) is None
    assert learnt_at([1.0] * 5) == 5
    assert learnt_at([0.0, 0.5, 1.0, 1.0, 1.0, 1.0]) == 6
    assert learnt_at([0.9] * 5) == 5
    assert learnt_at([0.5] * 30) is None


def test_learning_ends_where_it_is_reached_and_the_peer_at_the_limit() -> None:
    result, turns = run("learn", "steps=8", rewards=[0.0, 1.0])
    assert turns == ["ours"] * 6 + ["trl"] * 8
    learnt = report.summarise(result)["learn"]
    assert learnt["ours"]["steps"] == 6
    assert learnt["ours"]["seconds"] == sum(range(1, 7))
    assert learnt["peer"]["steps"] is None
    assert learnt["ratio"] is None


def test_a_side_that_dies_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    log = tmp_path / "trl.log"
    worker = Worker("trl", [sys.executable, "-c", "raise SystemExit('no memory left')"], log, 1)
    worker.start({})
    sentence = r"trl: the worker ended with exit code 1; its log is"
    with pytest.raises(BenchError, match=sentence) as e:
        worker.wait_ready()
    worker.close()
    assert "no memory left" in str(e.value)
    assert "no memory left" in log.read_text()


def test_a_dead_side_fails_the_command(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def dead(*_: object) -> Result:
        raise BenchError("ours: the worker ended")

    monkeypatch.setattr(session, "measure", dead)
    assert main(["bench", "case=tiny", "peer=none"]) == 1
    assert capsys.readouterr().err == "grpolab: ours: the worker ended\n"


def test_growth_measures_a_shared_point_once_and_draws_its_figure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plans: list[Plan] = []

    def measured(plan: Plan, _: Any) -> Result:
        plans.append(plan)
        return replace(run("growth", "steps=2")[0], plan=plan)

    monkeypatch.setattr(growth, "measure", measured)
    plan = parse(["case=growth", "points=group,prompt_32"])
    found = growth.run(plan, lambda _: None)
    assert [p.work.group_size for p in plans] == [8, 16, 32, 64]
    assert all(p.work.forced for p in plans)
    names = ["group_8", "group_16", "group_32", "group_64", "prompt_32"]
    assert [p["point"] for p in found["points"]] == names
    assert found["points"][0]["ours"] == found["points"][-1]["ours"]
    drawn = {p.suffix for p in growth.draw(found, tmp_path / "figure.json")}
    assert drawn == {".png", ".pdf", ".svg", ".txt"}
