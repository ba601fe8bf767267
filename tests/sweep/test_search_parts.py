"""The parts of a search: its space, its pruner beside Optuna's own, its draws."""

from __future__ import annotations

import math
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpolab.cli.search import _pool
from grpolab.component import ConfigError, component
from grpolab.config import job_id
from grpolab.sweep.compose import expand, parse_command
from grpolab.sweep.search.prune import Hyperband
from grpolab.sweep.search.settings import Goal
from grpolab.sweep.search.space import Choices, Range, parse
from grpolab.sweep.search.study import Study

optuna = pytest.importorskip("optuna", reason="needs the extra search")

SPACE = parse(
    {"optimizer.lr": {"low": 1e-5, "high": 1e-2, "log": True}, "clip": ["ppo", "cispo"], "kl": None}
)


# -- the space -------------------------------------------------------------------------------------


def test_dimensions() -> None:
    assert {"optimizer.lr": Range(1e-5, 1e-2, log=True), "clip": Choices(("ppo", "cispo"))} == SPACE
    masks = parse({"clip.masks": [[], ["truncated"]], "kl.target_kl": [None, 0.1]})
    assert masks["clip.masks"] == Choices(("[]", "[truncated]"))
    assert masks["kl.target_kl"] == Choices(("null", "0.1"))


@pytest.mark.parametrize(
    ("dim", "value", "text"),
    [
        (Range(1e-5, 1e-2), 0.000123456, "0.0001235"),
        (Range(0.123456, 1.0), 0.123456, "0.123456"),  # 0.1235 would do, 0.1234 would not
        (Range(0.0, 0.99996), 0.99996, "0.99996"),  # four digits would leave the range
        (Range(0.0, 1.0, step=0.1), 0.30000000000000004, "0.3"),
        (Range(1, 8), 3, "3"),
        (Range(1.0, 8.0), 3.0, "3"),
    ],
)
def test_a_number_as_text_stays_in_its_range(dim: Range, value: float, text: str) -> None:
    found = dim.text(value)
    assert dim.low <= float(found) <= dim.high
    assert float(found) == pytest.approx(float(text), rel=1e-3)


def test_both_ends_whole_means_whole_numbers() -> None:
    assert Range(1, 8).whole
    assert not Range(1, 8.0).whole


@pytest.mark.parametrize(
    ("space", "said"),
    [
        ({}, "search.space: empty"),
        ({"clip": "ppo"}, "search.space.clip: 'ppo' given"),
        ({"clip": ["ppo", "ppo"]}, "each choice once"),
        ({"optimizer.lr": {"low": 1e-3, "high": 1e-5}}, "low below high"),
        ({"optimizer.lr": {"low": 0.0, "high": 1.0, "log": True}}, "above 0"),
        ({"optimizer.lr": {"low": 0.0, "hihg": 1.0}}, "did you mean high?"),
        ({"optimizer.lr": {"low": 0.0, "high": 1.0, "step": 2.0}}, "step: 2 given"),
        ({"optimizer.lr": {"low": "a", "high": 1.0}}, "low: 'a' given"),
        ({"seed": [0, 1]}, "search.seeds"),
        ({"eval.prompts": [4, 8]}, "measured differently"),
        ({"tracking.mlflow": [True, False]}, "not what it computes"),
        ({"study": ["a", "b"]}, "not what it computes"),
    ],
)
def test_no_space(space: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=r"search\.space") as error:
        parse(space)
    assert said in str(error.value)


# -- the settings ----------------------------------------------------------------------------------


def test_a_metric_brings_its_direction() -> None:
    found = component("search", "optuna", objective=["reward/mean"]).goals
    assert found == [Goal("reward/mean", "maximize")]
    own = [{"metric": "kl/ref_k3", "direction": "minimize"}, "length/truncated_share"]
    found = component("search", "optuna", objective=own, pruner="none").goals
    assert [g.direction for g in found] == ["minimize", "minimize"]


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"objective": ["eval/acuracy"]}, "did you mean eval/accuracy?"),
        ({"objective": ["kl/ref_k3"], "pruner": "none"}, "no direction given for kl/ref_k3"),
        ({"objective": []}, "at least one metric"),
        ({"objective": ["reward/mean", "eval/accuracy"]}, "prunes none"),
        ({"objective": [3]}, "search.objective[0]: 3 given"),
        ({"seeds": [1, 1]}, "each once"),
        ({"pruner": "none", "min_steps": 3}, "search.min_steps: 3 given"),
        ({"pruner": "median"}, "hyperband, none"),
        ({"trials": 0}, "search.trials"),
        ({"trails": 3}, "did you mean trials?"),
    ],
)
def test_settings_that_cannot_be_used(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError) as error:
        component("search", "optuna", **settings)
    assert said in str(error.value)


# -- hyperband -------------------------------------------------------------------------------------


def test_one_bracket_by_hand() -> None:
    """Two trials of three meet the first rung: the best one of a full rung of three goes on."""
    pruner = Hyperband("s", least=2, most=2, reduction=3, maximize=True)
    assert pruner.brackets == 1
    reports: dict[int, dict[int, float]] = {0: {2: 0.5}}
    assert not pruner.ends(0, reports)  # alone, it is the best
    reports[1] = {1: 0.9}
    assert not pruner.ends(1, reports)  # no rung yet
    reports[1] = {1: 0.9, 2: 0.4}
    assert pruner.ends(1, reports)
    reports[2] = {3: 0.5}
    assert not pruner.ends(2, reports)  # a tie with the best


@pytest.mark.parametrize("maximize", [True, False])
@pytest.mark.parametrize(("least", "most", "reduction"), [(1, 27, 3), (2, 20, 2), (5, 40, 4)])
def test_agrees_with_optuna_on_trials_one_after_the_other(
    maximize: bool, least: int, most: int, reduction: int
) -> None:
    direction = "maximize" if maximize else "minimize"
    theirs = optuna.pruners.HyperbandPruner(least, most, reduction)
    study = optuna.create_study(study_name="s", direction=direction, pruner=theirs)
    ours = Hyperband("s", least, most, reduction, maximize)
    rng = np.random.default_rng(least)
    ended = 0
    for number in range(40):
        trial = study.ask()
        own: dict[int, float] = {}
        for step in range(1, most + 1):
            own[step] = float(np.round(rng.normal(), 1))  # with ties
            trial.report(own[step], step)
            reports = {t.number: t.intermediate_values for t in study.get_trials()}
            pruned = trial.should_prune()
            assert ours.ends(number, reports) == pruned, (number, step)
            if pruned:
                break
        ended += pruned
        study.tell(trial, state=optuna.trial.TrialState.PRUNED if pruned else None, values=None
                   if pruned else own[most])  # fmt: skip
    assert 0 < ended < 40


def test_asked_again_it_says_the_same() -> None:
    pruner = Hyperband("s", 1, 9, 3, maximize=True)
    reports = {n: {1: float(n), 3: float(n)} for n in range(8)}
    first = [pruner.ends(n, reports) for n in reports]
    assert [pruner.ends(n, reports) for n in reports] == first


# -- the study -------------------------------------------------------------------------------------


def opened(path: Path, **settings: Any) -> Study:
    asked = component("search", "optuna", **{"startup": 3, "trials": 12, **settings})
    return Study(path / "optuna.db", "name", asked, SPACE, steps=10, first=2)


def value(overrides: dict[str, str]) -> float:
    """A score that is best at a learning rate of 1e-3 and for cispo."""
    return -abs(math.log10(float(overrides["optimizer.lr"])) + 3) + (overrides["clip"] == "cispo")


def played(path: Path, *, reopened: bool, **settings: Any) -> list[dict[str, str]]:
    """Twelve trials, all by one Study or each by one of its own."""
    study = opened(path, **settings)
    drawn = []
    while study.left():
        number = study.draw()
        if reopened:
            study = opened(path, **settings)
        drawn.append(study.overrides(number))
        study.complete(number, [value(drawn[-1])])
    return drawn


@pytest.mark.parametrize("sampler", ["tpe", "random"])
def test_a_study_taken_up_again_draws_the_same(tmp_path: Path, sampler: str) -> None:
    found = [tmp_path / "once", tmp_path / "often"]
    once, often = (played(p, reopened=p is found[1], sampler=sampler) for p in found)
    assert once == often
    assert len({d["optimizer.lr"] for d in once}) == 12


def test_another_seed_draws_others_and_tpe_learns(tmp_path: Path) -> None:
    first = played(tmp_path / "a", reopened=False)
    assert first != played(tmp_path / "b", reopened=False, seed=1)
    random = played(tmp_path / "c", reopened=False, sampler="random")
    assert random[:3] == first[:3]  # before tpe goes by what it has seen
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.mean([value(d) for d in first[6:]]) > np.mean([value(d) for d in random[6:]])


def test_a_trial_killed_between_its_draws_is_completed_as_it_would_have_been(
    tmp_path: Path,
) -> None:
    whole = opened(tmp_path / "a")
    wanted = whole.overrides(whole.draw())
    torn = opened(tmp_path / "b")
    number = torn.draw()
    dim = SPACE["optimizer.lr"]
    assert isinstance(dim, Range)
    torn._trial(number).suggest_float("optimizer.lr", dim.low, dim.high, log=True)
    assert opened(tmp_path / "b").begun() == [number]
    assert opened(tmp_path / "b").overrides(number) == wanted


def test_reports_are_noted_once_and_decided_again_after_a_kill(tmp_path: Path) -> None:
    study = opened(tmp_path, seeds=[1000])
    brackets = [study.pruner.bracket(n) for n in range(12)] if study.pruner else []
    rivals = [n for n in range(12) if brackets[n] == 0][:2]
    while study.left():
        study.draw()
    assert not study.report(rivals[0], 2, 0.9)
    assert study.report(rivals[1], 2, 0.1)
    again = opened(tmp_path, seeds=[1000])  # killed before the study was told
    assert again.report(rivals[1], 2, 0.1)
    again.note(rivals[1], "pruned_job", "abc")
    again.prune(rivals[1], "why")
    assert again.pruned() == {"abc": "why"}
    assert again.best() == []


def test_a_search_is_no_part_of_a_runs_identity() -> None:
    (job,) = expand(parse_command(["debug=smoke"])).jobs
    without = {key: value for key, value in job.raw.items() if key != "search"}
    assert job_id(job.raw | {"search": {"name": "optuna", "trials": 3}}) == job_id(without)
    assert job_id(without | {"steps": 99}) != job_id(without)


# -- its places ------------------------------------------------------------------------------------


class Places:
    """A launcher and its pool, which notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def pool(self, raws: list[Any], scratch: Path) -> Places:
        self.told.append(("pool", len(raws)))
        return self

    def prepare(self, jobs: int) -> None:
        self.told.append(("prepare", jobs))


def test_processes_are_started_for_the_trials_that_are_not_over(tmp_path: Path) -> None:
    sweep = expand(parse_command(["search=optuna", "search.trials=3"]))
    settings = component("search", "optuna", space={"kl": ["k1"]}, trials=3, pruner="none")
    study = Study(tmp_path / "optuna.db", "key", settings, SPACE, steps=1, first=0)
    study.complete(study.draw(), [1.0])
    study.draw()  # begun by a driver that was killed
    places: Any = Places()
    _pool(study, places, sweep, tmp_path)
    assert places.told == [("pool", 2), ("prepare", 2)]
    study.complete(1, [1.0])
    study.complete(study.draw(), [1.0])
    _pool(study, places, sweep, tmp_path)
    assert places.told[2:] == [("pool", 1), ("prepare", 0)]
