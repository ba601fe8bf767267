"""The scripts of two studies: contributions in every order, and accuracy by difficulty."""

from __future__ import annotations

import shutil
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.dapo_ladder import effects
from experiments.difficulty_bias import by_difficulty
from grpolab.results.frames import ResultsError
from grpolab.results.load import Results
from grpolab.tasks.arithmetic import Arithmetic
from grpolab.tasks.base import Example

PARTS = ["aggregation=token_mean", "clip.high=0.28", "selection=dynamic"]
SEEDS = np.array([0.01, -0.02, 0.03, 0.0, -0.01, 0.02])
NOISE = np.array([1.0, -1.0, 1.0, -1.0, 1.0, -1.0]) * 1e-3


def subsets() -> list[frozenset[str]]:
    return [frozenset(c) for size in range(4) for c in combinations(PARTS, size)]


def planted() -> effects.Cells:
    """The second part adds 0.1, the third 0.2 but only on top of the second, the first nothing."""
    _, high, dynamic = PARTS
    return {
        on: 0.4 + 0.1 * (high in on) + 0.2 * ({high, dynamic} <= on) + SEEDS + NOISE * len(on) ** 2
        for on in subsets()
    }


def table() -> Any:  # as Any: its labels' types are wider than what stands there
    return effects.effects(PARTS, planted()).set_index(["kind", "what"])


@pytest.mark.parametrize(
    ("kind", "deltas"),
    [
        ("alone", [0.0, 0.1, 0.0]),
        ("last", [0.0, 0.3, 0.2]),
        ("main", [0.0, 0.2, 0.1]),
    ],
)
def test_a_part_adds_what_was_planted_first_last_and_on_average(
    kind: str, deltas: list[float]
) -> None:
    found = table().loc[kind]
    assert found.loc[PARTS, "delta"].tolist() == pytest.approx(deltas, abs=1e-12)
    assert (found["low"] < found["delta"]).all()
    assert (found["delta"] < found["high"]).all()


def test_only_the_planted_interaction_is_there() -> None:
    found = table().loc["interaction", "delta"]
    first, high, dynamic = PARTS
    # half of the difference between what the third adds with and without the second
    assert found[f"{high}×{dynamic}"] == pytest.approx(0.1, abs=1e-12)
    assert found[f"{first}×{high}"] == pytest.approx(0.0, abs=1e-12)
    assert found[f"{first}×{dynamic}"] == pytest.approx(0.0, abs=1e-12)


def test_the_rungs_of_every_ladder_are_there_once_and_add_up() -> None:
    found = table().loc["rung", "delta"]
    first, high, dynamic = PARTS
    assert len(found) == 12
    one = found[f"{high} after nothing"] + found[f"{dynamic} after {high}"]
    other = found[f"{dynamic} after nothing"] + found[f"{high} after {dynamic}"]
    assert one == pytest.approx(0.3, abs=1e-12)
    assert other == pytest.approx(0.3, abs=1e-12)
    assert found[f"{dynamic} after {first}, {high}"] == table().loc[("last", dynamic), "delta"]


def test_holm_is_taken_within_each_kind() -> None:
    for _, own in effects.effects(PARTS, planted()).groupby("kind"):
        smallest = own.sort_values("p").iloc[0]
        assert smallest["p_holm"] == pytest.approx(min(1.0, smallest["p"] * len(own)))


def as_results(arms: list[frozenset[str]]) -> Results:
    runs = [
        {
            "study": "ladder", "sweep": "s", "arm": ",".join(sorted(on)) or "baseline",
            "baseline": not on, "seed": seed, "status": "done", "job_id": f"{i}-{seed}",
        }
        for i, on in enumerate(arms)
        for seed in range(len(SEEDS))
    ]  # fmt: skip
    values = planted()
    history = [
        {
            "study": "ladder", "job_id": f"{i}-{seed}", "metric": "eval/pass@1", "step": 1,
            "value": values[on][seed],
        }
        for i, on in enumerate(arms)
        for seed in range(len(SEEDS))
    ]  # fmt: skip
    return Results(pd.DataFrame(runs), pd.DataFrame(history))


def test_the_cells_are_read_by_arm_and_seed() -> None:
    parts, found = effects.cells(as_results(subsets()), "eval/pass@1")
    assert parts == PARTS
    assert found.keys() == planted().keys()
    for on, values in planted().items():
        assert found[on].tolist() == values.tolist()


def test_a_missing_combination_is_refused_in_one_sentence() -> None:
    with pytest.raises(ResultsError, match=r"kept: 7 arms .* needed: every combination") as error:
        effects.cells(as_results(subsets()[:-1]), "eval/pass@1")
    assert "\n" not in str(error.value)


def test_the_figure_names_each_part_and_the_interval(tmp_path: Path) -> None:
    figure, caption = effects.draw(effects.effects(PARTS, planted()), "eval/pass@1", 6)
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == PARTS
    legend = axes.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == list(effects.KINDS.values())
    assert "6 seeds" in caption
    assert "Student-t 95 %" in caption


@pytest.mark.parametrize(
    ("a", "b", "expected"), [(12, 34, 0), (17, 25, 1), (71, 52, 1), (67, 58, 2), (45, 56, 2)]
)
def test_difficulty_is_the_columns_that_reach_ten(a: int, b: int, expected: int) -> None:
    example = Example(f"{a}+{b}=", str(a + b), {"a": a, "b": b, "operation": "add"})
    assert by_difficulty.tens(example) == expected


def test_the_prompts_are_no_training_prompts_and_equally_many() -> None:
    task = Arithmetic()
    trained = {example.prompt for example in task.load().train}
    found = by_difficulty.fresh_prompts(task)
    assert {level: len(own) for level, own in found.items()} == dict.fromkeys((0, 1, 2), 256)
    for level, own in found.items():
        assert {by_difficulty.tens(example) for example in own} == {level}
        assert not trained & {example.prompt for example in own}


def test_arms_are_judged_seed_by_seed_in_each_difficulty() -> None:
    gains: dict[str, list[float]] = {"baseline": [0, 0], "advantage=maxrl": [0.1, -0.2]}
    rows: list[dict[str, Any]] = [
        {
            "arm": arm, "seed": seed, "tens": level,
            "accuracy": 0.5 + SEEDS[seed] + gain[level] * (1 + NOISE[seed]),
        }
        for arm, gain in gains.items()
        for level in (0, 1)
        for seed in range(6)
    ]  # fmt: skip
    rows += [{"arm": "start", "seed": 0, "tens": level, "accuracy": 0.1} for level in (0, 1)]
    found = by_difficulty.judged(pd.DataFrame(rows).sample(frac=1, random_state=0))
    assert found["arm"].tolist() == ["advantage=maxrl"] * 2
    assert found["tens"].tolist() == [0, 1]
    assert found["delta"].tolist() == pytest.approx([0.1, -0.2])
    assert found["n"].tolist() == [6, 6]
    assert (found["p_holm"] < 1e-6).all()


def test_the_committed_verdicts_follow_from_the_committed_accuracies(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = Path(by_difficulty.__file__).parent
    shutil.copy(committed / "by_difficulty.csv", tmp_path)
    assert by_difficulty.main([f"out={tmp_path}"]) == 0
    assert "advantage=maxrl" in capsys.readouterr().out
    found, wanted = (
        pd.read_csv(folder / "difficulty_verdicts.csv") for folder in (tmp_path, committed)
    )
    assert len(wanted) == 6
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-6)
    assert "8 paired seeds" in (tmp_path / "difficulty.caption.txt").read_text()


def test_a_folder_without_accuracies_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert by_difficulty.main([f"out={tmp_path}"]) == 2
    assert "has no by_difficulty.csv" in capsys.readouterr().err


def test_the_committed_effects_follow_from_the_committed_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    committed = Path(effects.__file__).parent
    assert effects.main([f"kept={committed}", f"out={tmp_path}"]) == 0
    assert "selection=dynamic after nothing" in capsys.readouterr().out
    found, wanted = (pd.read_csv(folder / "effects.csv") for folder in (tmp_path, committed))
    assert wanted["kind"].value_counts().to_dict() == {
        "rung": 12, "alone": 3, "last": 3, "main": 3, "interaction": 3,
    }  # fmt: skip
    pd.testing.assert_frame_equal(found, wanted, rtol=1e-6)
    assert (tmp_path / "contributions.png").stat().st_size > 1000
