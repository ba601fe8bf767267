"""`setting`: one field of a component, with its bounds and its help, in one line.

Standard library only, so that the objective stays importable without Hydra.
"""

from __future__ import annotations

from dataclasses import field
from typing import Any


def setting(
    default: Any,
    help: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
) -> Any:
    """A dataclass field with a default, a one-line help and numeric bounds.

    The bounds (inclusive `ge`, `le`; exclusive `gt`, `lt`) are enforced by
    `grpolab.component`, which also checks the annotated type. A list bound applies to every
    element. A mutable default is copied for each instance.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"help": help, **{k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, (list, dict)):
        return field(default_factory=lambda: type(default)(default), metadata=metadata)
    return field(default=default, metadata=metadata)
