"""What of the off-policy view is asked for; read without loading torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, get_args

from grpolab.component import ConfigError, nearest
from grpolab.results.family import names_of

By = Literal["batch", "fresh"]
FRESH = 4
"""Batches of fresh completions that the true gradient is estimated from."""


@dataclass(frozen=True)
class Staleness:
    """Further updates of the first arm after which every arm's gradient is looked at again.

    Raises:
        ConfigError: a value that cannot be.
    """

    updates: tuple[int, ...] = ()
    by: By = "batch"
    """Updates on the batch itself, or training steps on fresh ones."""
    fresh: int = FRESH
    """Batches drawn anew from the policy as it is then; 0: none, and no truth."""

    def __post_init__(self) -> None:
        if self.by not in get_args(By):
            raise ConfigError(
                f"stale_by: {self.by!r} given; allowed: {', '.join(get_args(By))}"
                f"{nearest(self.by, get_args(By)) or '.'}"
            )
        if self.fresh < 0 or self.fresh == 1:  # a single batch does not tell signal from noise
            raise ConfigError(f"fresh: {self.fresh} given; allowed: 0, or 2 or more.")


def parse_staleness(given: Mapping[str, str]) -> Staleness:
    """Of the command's keys `staleness`, `stale_by` and `fresh`.

    Raises:
        ConfigError: a value that cannot be.
    """
    text = given.get("fresh", str(FRESH))
    if not text.strip().isdigit():
        raise ConfigError(f"fresh: {text!r} given; allowed: 0, or 2 or more.")
    updates = whole_numbers(given.get("staleness", "[]"))
    return Staleness(tuple(updates), given.get("stale_by", "batch"), int(text))  # type: ignore[arg-type]


def whole_numbers(text: str, key: str = "staleness") -> list[int]:
    """Of a list such as [0,1,4,16], the value of a key, each once.

    Raises:
        ConfigError: it is none.
    """
    words = names_of(text)
    if not all(w.isdigit() for w in words):
        raise ConfigError(
            f"{key}: {text!r} given; allowed: a list of whole numbers such as [0,1,4,16]."
        )
    return [int(w) for w in words]
