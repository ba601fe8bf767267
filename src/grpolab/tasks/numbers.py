r"""Numbers out of text, parsed and never evaluated.

Read: whole numbers and decimals ("42", "3.50", ".5"), signs (also the minus sign U+2212), thousands
commas ("1,234.50"), fractions ("3/4"), scientific notation ("1.2e-3"), a currency sign in front
("$1,234.50", "-$5", "\$5") and a percent sign behind. The percent sign does not change the value:
"20%" is 20, since gold answers write "20" and "20%" alike.

Not read: numbers in words, mixed numbers ("1 1/2" is two numbers), hexadecimal, LaTeX fractions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

_WHOLE = r"(?:[0-9]{1,3}(?:,[0-9]{3})+(?![0-9])|[0-9]+)"
_UNSIGNED = rf"(?:{_WHOLE}(?:\.[0-9]+)?|(?<![\w.])\.[0-9]+)"
# A sign counts only where it cannot be a minus between two numbers ("7-3" ends in 3, not in -3).
# The atomic groups keep "1/23/2024" from being read as 1/2: a chain of slashes is no fraction.
_NUMBER = re.compile(
    r"(?P<sign>(?<![\w)\]}.%])[-+\u2212])?"
    r"(?:\\?[$\u20ac\u00a3\u00a5][ ]?(?P<inner>[-+\u2212])?)?"
    rf"(?P<numerator>(?>{_UNSIGNED}(?:[eE][-+\u2212]?[0-9]+(?!\w))?))"
    rf"(?:/(?P<denominator>(?>{_WHOLE}(?:\.[0-9]+)?))(?!/[0-9]))?"
)
_MINUS = ("-", "\u2212")


def parse_number(text: str) -> float | None:
    """The value of a text that is one number and nothing else, None for any other text.

    Space around it, a percent sign and one closing full stop are allowed: " $1,234.50. " is 1234.5.
    None too for what is no finite number ("1/0", "1e999").
    """
    stripped = text.strip().removesuffix(".").rstrip().removesuffix("%").removesuffix("\\")
    match = _NUMBER.fullmatch(stripped.rstrip())
    return _value(match) if match else None


def numbers(text: str) -> Iterator[float]:
    """The finite numbers in a text, from left to right."""
    for match in _NUMBER.finditer(text):
        value = _value(match)
        if value is not None:
            yield value


def first_number(text: str) -> float | None:
    """The first number in a text, None where there is none."""
    return next(numbers(text), None)


def last_number(text: str) -> float | None:
    """The last number in a text, None where there is none."""
    found = list(numbers(text))
    return found[-1] if found else None


def _value(match: re.Match[str]) -> float | None:
    numerator, denominator = _float(match["numerator"]), match["denominator"]
    if denominator is None:
        value = numerator
    elif _is_date_like(match):
        value = _float(denominator)  # the tail of "1/2/2024": its last number alone
    else:
        divisor = _float(denominator)
        value = numerator / divisor if divisor else math.nan
    if not math.isfinite(value):
        return None
    signs = (match["sign"], match["inner"])
    negative = sum(sign in _MINUS for sign in signs) % 2 == 1
    return -value if negative and value else value


def _is_date_like(match: re.Match[str]) -> bool:
    before = match.string[max(0, match.start() - 2) : match.start()]
    return len(before) == 2 and before[0].isdigit() and before[1] == "/"


def _float(digits: str) -> float:
    return float(digits.replace(",", "").replace("\u2212", "-"))
