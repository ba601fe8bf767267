"""Who π_ref is."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar


@dataclass(frozen=True)
class Reference:
    """Base: facts that decide what is loaded and run."""

    group: ClassVar[str] = "reference"
    name: ClassVar[str]
    needs_model: ClassVar[bool] = False
    """A second copy of the weights is kept (or, with LoRA, the adapter switched off)."""
    exists: ClassVar[bool] = True


@dataclass(frozen=True)
class Frozen(Reference):
    """The start weights; with LoRA the adapter is switched off instead of a second model."""

    name: ClassVar[str] = "frozen"
    needs_model: ClassVar[bool] = True


@dataclass(frozen=True)
class Old(Reference):
    """The policy that generated the batch: a proximal term, and the seed's reading of π_ref.

    With one update per batch the KL to it and its k2 and k3 gradients are zero.
    """

    name: ClassVar[str] = "old"


@dataclass(frozen=True)
class NoReference(Reference):
    """No reference: any KL but none is refused."""

    name: ClassVar[str] = "none"
    exists: ClassVar[bool] = False
