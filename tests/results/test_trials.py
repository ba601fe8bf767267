"""A search's history and trials, from what search.json says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from grpolab.results.trials import history, trial_table, write

ACCURACY = {"metric": "eval/accuracy", "direction": "maximize"}
LENGTH = {"metric": "length/mean", "direction": "minimize"}


def trial(number: int, *values: float, state: str = "complete", **more: Any) -> dict[str, Any]:
    own = {"overrides": {"clip": "ppo|x", "optimizer.lr": "1e-4"}, "steps": 8, "reason": None}
    return {"trial": number, "state": state, "values": list(values) or None, **own, **more}


def search(goals: list[dict[str, str]], trials: list[dict[str, Any]], *best: int) -> dict[str, Any]:
    return {
        "objective": goals,
        "tuning_seeds": [1000, 1001],
        "best": [{"trial": n, "values": trials[n]["values"]} for n in best],
        "all": trials,
    }


ONE = search(
    [ACCURACY],
    [
        trial(0, 0.25), trial(1, state="pruned", reason="behind"), trial(2, 0.75), trial(3, 0.5),
        trial(4, state="fail", overrides=None, reason="no"),
    ],
    2,
)  # fmt: skip


def test_a_row_a_trial_with_the_best_marked() -> None:
    table = trial_table(ONE)
    assert list(table) == [
        "trial", "state", "best", "eval/accuracy", "clip", "optimizer.lr", "steps", "reason",
    ]  # fmt: skip
    assert table["eval/accuracy"].dropna().tolist() == [0.25, 0.75, 0.5]
    assert table.loc[table["best"], "trial"].tolist() == [2]
    assert table["clip"].isna().tolist() == [False] * 4 + [True]


def test_the_line_is_the_best_so_far_either_way() -> None:
    for direction, expected in (("maximize", [0.25, 0.75, 0.75]), ("minimize", [0.25, 0.25, 0.25])):
        goal = {"metric": "eval/accuracy", "direction": direction}
        (axes,) = history(ONE | {"objective": [goal]}).figure.axes
        points, line = axes.lines[:2]
        assert np.asarray(points.get_xdata()).tolist() == [0, 2, 3]
        assert np.asarray(points.get_ydata()).tolist() == [0.25, 0.75, 0.5]
        assert np.asarray(line.get_ydata()).tolist() == [*expected, expected[-1]]
        assert np.asarray(line.get_xdata()).tolist() == [0, 2, 3, 4]


def test_several_objectives_have_a_panel_each_and_a_front() -> None:
    found = search([ACCURACY, LENGTH], [trial(0, 0.5, 9.0), trial(1, 0.25, 4.0)], 0, 1)
    figure, caption = history(found)
    assert [axes.get_ylabel() for axes in figure.axes] == ["Eval accuracy", "Length (tokens)"]
    for axes, values in zip(figure.axes, ([0.5, 0.25], [9.0, 4.0]), strict=True):
        assert np.asarray(axes.lines[-1].get_ydata()).tolist() == values  # both are ringed
    assert "the Pareto front (maximize eval/accuracy, minimize length/mean): 0, 1" in caption
    assert "n = 2 tuning seeds (1000, 1001)" in caption


def test_files(tmp_path: Path) -> None:
    made = write(ONE, tmp_path / "a")
    assert all(path.is_file() for path in made.values())
    assert "figures/search_history.svg" in made
    text = made["tables/trials.md"].read_text()
    assert r"| **2** | **complete** | **0.75** | **ppo\|x** |" in text
    assert "| 1 | pruned | – |" in text
    assert pd.read_csv(made["tables/trials.csv"])["reason"].tolist()[1] == "behind"
    nothing = search([ACCURACY], [trial(0, state="fail")])
    assert sorted(write(nothing, tmp_path / "b")) == ["tables/trials.csv", "tables/trials.md"]


@pytest.mark.parametrize("state", ["pruned", "fail"])
def test_what_has_no_value_stands_on_the_axis(state: str) -> None:
    (axes,) = history(ONE).figure.axes
    on_axis = [n for line in axes.lines if line.get_transform() != axes.transData
               for n in np.asarray(line.get_xdata()).tolist()]  # fmt: skip
    assert next(t["trial"] for t in ONE["all"] if t["state"] == state) in on_axis
