"""Filters mean what pandas' `query` means by them, and can do nothing else."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest

from grpolab.results.load import Results, ResultsError, load
from grpolab.results.where import Where

FRAME = pd.DataFrame(
    {
        "arm": pd.Series(["a", "b", "b", "c"], dtype="str"),
        "kind": pd.Categorical(["x", "y", "x", None]),
        "seed": [0, 1, 2, 3],
        "baseline": [True, False, False, False],
        "value": [0.5, float("nan"), -1.0, float("inf")],
        "factor.lr": pd.Series(["1e-4", "0.001", None, "0.0001"], dtype="str"),
    }
)
AS_PANDAS = [
    "arm == 'b'",
    "arm != 'b' and seed < 3",
    "(arm == 'a') | (arm == 'c') & (seed > 1)",
    "arm == 'a' | seed == 3",  # there `|` binds like `or`
    "not baseline",
    "~(seed == 1)",
    "baseline or seed >= 2",
    "0 < seed <= 2",
    "2 > seed",
    "seed in [1, 3]",
    "arm not in ['a', 'b']",
    "kind == 'x'",
    "kind != 'x'",
    "kind in ('x', 'y')",
    "value > 0",
    "value <= -1.0",
    "value != 0.5",
    "`factor.lr` == '0.001'",
    "`factor.lr` != '0.001'",
]
REFUSED = [
    "@pd.io.common.os.system('true')",
    "__import__('os').system('true')",
    "arm.str.contains('a')",
    "arm.map(print)",
    "(lambda: 1)() == seed",
    "[x for x in seed] == 1",
    "seed == seed",
    "seed",
    "arm > 3 + 4",
    "seed ** 9 == 1",
    "'a' * 99999999 == arm",
    "f'{seed}' == arm",
    "seed == b'1'",
    "seed < 'a'",
    "(x := 3) == seed",
    "seed == [[1]]",
    "arm == 'b' if seed else 0",
    "seed[0] == 1",
    "seed in 3",
    "arm == 'a'; import os",
    "",
    "arm ==",
    "`arm == 1",
    "(" * 300 + "seed == 1" + ")" * 300,
]


@pytest.mark.parametrize("text", AS_PANDAS)
def test_the_rows_are_those_of_pandas(text: str) -> None:
    where = Where(text)
    mask = where.of_runs(FRAME) & where.of_history(FRAME)
    assert FRAME.index[mask].tolist() == FRAME.query(text).index.tolist()
    assert 0 < mask.sum() < 4


def test_a_factor_compares_with_numbers_as_a_number() -> None:
    assert Where("factor.lr == 1e-4").of_runs(FRAME).tolist() == [True, False, False, True]
    assert Where("factor.lr < 5e-4").of_runs(FRAME).tolist() == [True, False, False, True]
    assert Where("factor.lr in [0.001]").of_runs(FRAME).tolist() == [False, True, False, False]


@pytest.mark.parametrize("text", REFUSED)
def test_all_else_is_refused(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    def rows() -> object:
        where = Where(text)
        return where.of_runs(FRAME) & where.of_history(FRAME)

    with pytest.raises(ResultsError, match=r"^where"):
        rows()
    assert capsys.readouterr().out == ""


def test_errors_name_the_columns_and_the_nearest() -> None:
    with pytest.raises(ResultsError, match=r"no column sed; there is: arm, .*; nearest: seed$"):
        Where("sed == 1").of_runs(FRAME)
    with pytest.raises(ResultsError, match=r"`arm\.lower\(\)` is not allowed.*the columns arm, "):
        Where("arm.lower() == 'a'").of_runs(FRAME)
    with pytest.raises(ResultsError, match=r"about runs and about their numbers"):
        Where("status == 'done' or step > 3")


def test_runs_and_numbers_are_filtered(output_dir: Path, first: Results) -> None:
    found = load(
        output_dir=output_dir, sweep="first",
        where="status == 'done' and factor.clip in ['ppo', 'cispo'] and metric == 'eval/accuracy' "
        "and step >= 45",
    )  # fmt: skip
    assert len(found.runs) == 4
    assert set(found.history["job_id"]) == set(found.runs["job_id"])
    assert sorted(set(zip(found.history["metric"], found.history["step"], strict=True))) == [
        ("eval/accuracy", 45), ("eval/accuracy", 50),
    ]  # fmt: skip
    failed = load(output_dir=output_dir, sweep="first", where="status != 'done'")
    assert failed.runs["job_id"].tolist() == ["clip-none-1"]
    own = first.history[first.history["job_id"] == "clip-none-1"]
    assert failed.history["value"].tolist() == own["value"].tolist()
    nothing = load(output_dir=output_dir, sweep="first", where="seed > 7")
    assert (len(nothing.runs), len(nothing.history)) == (0, 0)
