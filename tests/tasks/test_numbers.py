"""Numbers out of text: known spellings, and what holds for any text."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from grpolab.tasks.numbers import first_number, last_number, numbers, parse_number


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("42", 42),
        (" 3.50 ", 3.5),
        (".5", 0.5),
        ("-.5", -0.5),
        ("-7", -7),
        ("\u22127", -7),
        ("+7", 7),
        ("-0", 0),
        ("1,234", 1234),
        ("1,234,567.89", 1234567.89),
        ("$1,234.50.", 1234.5),
        ("-$5", -5),
        ("$-5", -5),
        ("\\$5", 5),
        ("\u20ac 9", 9),
        ("3/4", 0.75),
        ("-3/4", -0.75),
        ("20%", 20),
        ("20\\%", 20),
        ("20 %.", 20),
        ("1.5e3", 1500),
        ("2E-2", 0.02),
        ("2e\u22122", 0.02),
    ],
)
def test_one_number(text: str, value: float) -> None:
    assert parse_number(text) == value
    assert last_number(text) == value


@pytest.mark.parametrize(
    "text",
    ["", " ", "abc", "1 2", "1,23", "1,2345", "1/0", "1e999", "--5", "3+4", "1/2/3", "nan", "inf"],
)
def test_not_one_number(text: str) -> None:
    assert parse_number(text) is None


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("7-3", [7, 3]),
        ("7 - 3", [7, 3]),
        ("x=-3", [-3]),
        ("1,2", [1, 2]),
        ("12,345 and 1234,567", [12345, 1234, 567]),
        ("so 5/0 or 8", [8]),
        ("on 1/23/2024", [1, 2024]),
        ("1.2.3", [1.2, 3]),
        ("The answer is **1,007.**", [1007]),
        ("wait...5", [5]),
        ("$5-$3", [5, 3]),
        ("none", []),
        ("-0", [0]),
        ("__import__('os')", []),
        ("2**3", [2, 3]),
    ],
)
def test_numbers_in_text(text: str, found: list[float]) -> None:
    assert list(numbers(text)) == found
    assert last_number(text) == (found[-1] if found else None)
    assert first_number(text) == (found[0] if found else None)


def test_minus_zero_is_zero() -> None:
    assert math.copysign(1, last_number("-0") or 0.0) == 1


def test_an_endless_number_is_none() -> None:
    assert last_number("9" * 100_000) is None


@given(st.integers(-(10**15), 10**15))
def test_whole_numbers_are_read_back(number: int) -> None:
    for text in (str(number), f"{number:,}", f"{number}.", f"it is {number:,}, I think"):
        assert last_number(text) == number


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_decimals_are_read_back(number: float) -> None:
    assert parse_number(repr(number)) == number
    assert last_number(f"= {number!r}.") == number


@given(st.text())
def test_any_text_gives_finite_numbers(text: str) -> None:
    assert all(math.isfinite(number) for number in numbers(text))
    one = parse_number(text)
    assert one is None or one == last_number(text)


@given(st.text(alphabet="0123456789.,/eE+-\u2212$% "))
def test_any_mixture_of_digits_and_marks_is_read_without_error(text: str) -> None:
    one = parse_number(text)
    assert one is None or one == last_number(text)
