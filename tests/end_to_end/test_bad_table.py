"""The published table of bad input has the cases that the tests try, each with a sentence."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.end_to_end import test_bad_configs, test_bad_inputs
else:
    import test_bad_configs
    import test_bad_inputs

HEAD = "| kind | case | given | what is said |"
PAGE = Path(__file__).resolve().parents[2] / "experiments" / "robustness" / "README.md"
CASES = {
    "setting": list(test_bad_configs.SETTINGS),
    "data": list(test_bad_inputs.DATA),
    "model": list(test_bad_inputs.MODELS),
    "checkpoint": list(test_bad_inputs.CHECKPOINTS),
    "store": list(test_bad_inputs.STORES),
    "command": list(test_bad_inputs.OTHERS),
}
ROWS = [
    [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
    for line in PAGE.read_text(encoding="utf-8").partition(HEAD)[2].splitlines()
    if line.startswith("| ")
]


@pytest.mark.parametrize("kind", list(CASES))
def test_the_table_has_the_cases_of_the_tests(kind: str) -> None:
    """`python experiments/robustness/bad_inputs.py` writes it."""
    assert [row[1] for row in ROWS if row[0] == kind] == CASES[kind]


def test_each_has_what_was_given_and_a_sentence() -> None:
    assert {row[0] for row in ROWS} == set(CASES)
    assert [row for row in ROWS if len(row) != 4 or not all(row)] == []
