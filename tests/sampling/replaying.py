"""A CUDA graph in all but speed, on any device: what a function did to its tensors, done again.

Recording keeps every operator with the tensors it was given; replaying calls them in turn and
writes what comes out into the tensors that came out then. Python does not run again, so whatever
the function took from a Python number stays as it was, as in a graph.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

WAITS = ("_local_scalar_dense", "nonzero", "bincount", "_unique2", "masked_select", "lift_fresh")
"""What waits for the device, or copies from the host: a recording would end at it."""


class Tape(TorchDispatchMode):
    """Operators as they are called."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[torch.Tensor]]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func._schema.name.removeprefix("aten::")
        by_mask = any(
            isinstance(x, torch.Tensor) and x.dtype == torch.bool
            for x in tree_leaves(args[1:] if name in ("index", "index_put_") else ())
        )
        if name in WAITS or by_mask:
            raise RuntimeError(f"{name} while recording")
        found = func(*args, **kwargs)
        outputs = [x for x in tree_leaves(found) if isinstance(x, torch.Tensor)]
        aliases = any(r.alias_info is not None for r in func._schema.returns)
        views = aliases and not any(
            r.alias_info is not None and r.alias_info.is_write for r in func._schema.returns
        )
        if not views:  # a view of what is written anew is written anew
            self.calls.append((func, args, kwargs, [] if aliases else outputs))
        return found


class Replaying:
    """Stands where `grpolab.sampling.recorded.Recorder` does."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def record(self, step: Callable[[], None]) -> Callable[[], None]:
        """As for a graph: run once to warm up, and once more to be recorded."""
        step()
        tape = Tape()
        with tape:
            step()

        def replay() -> None:
            for func, args, kwargs, kept in tape.calls:
                found = tree_leaves(func(*args, **kwargs))
                anew = [x for x in found if isinstance(x, torch.Tensor)]
                for old, new in zip(kept, anew, strict=bool(kept)):
                    old.copy_(new)

        return replay
