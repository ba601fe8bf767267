"""Text that models wrote, so that a page or a figure shows all of it and nothing else."""

from __future__ import annotations

import re

# C0 but tab and newline, delete, C1, marks that turn the direction of what follows, half pairs
_HIDDEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]"
)


def visible(text: object) -> str:
    """Text with each character that a page hides, or that turns others round, as its escape."""
    return _HIDDEN.sub(lambda match: ascii(match[0])[1:-1], str(text))
