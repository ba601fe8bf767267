"""torch when it is first used, not when a component's module is imported.

Checking a configuration needs the classes of its components: their settings, their facts, their
own checks; none of that computes. Importing torch takes longer than all of it. Within `deferred()`
our own modules may therefore say `import torch` and `from torch import Tensor`, as any module
does, and get a stand-in: the first use of it imports torch, puts torch in the stand-in's place in
every module of ours, and goes on. Nobody else's import is touched, and where torch is there
already nothing is deferred.

At the top of a module, before its first use, the stand-in serves for annotations (`Tensor`) and
for the decorators `torch.no_grad()` and `torch.inference_mode()`. Anything else there imports
torch, which is right and merely slower.
"""

from __future__ import annotations

import builtins
import functools
import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

OURS = "grpolab."
DECORATORS = ("no_grad", "inference_mode")


class _AnyTensor(type):
    """What is asked of the stand-in is asked of torch.Tensor."""

    def __getattr__(cls, name: str) -> Any:
        if name.startswith("__"):  # typing looks for marks on whatever stands in brackets
            raise AttributeError(name)
        return getattr(load().Tensor, name)

    def __instancecheck__(cls, instance: object) -> bool:
        return isinstance(instance, load().Tensor)


class Tensor(metaclass=_AnyTensor):
    """Stands for torch.Tensor until torch is there."""


class _Torch:
    """Stands for torch until its first use."""

    def __getattr__(self, name: str) -> Any:
        if name in DECORATORS and "torch" not in sys.modules:
            return functools.partial(_decorator, name)
        return getattr(load(), name)


class _Names:
    """What `from torch import …` reads from."""

    Tensor = Tensor


_TORCH = _Torch()


@functools.cache
def load() -> Any:
    """Imports torch and puts it, and its Tensor, wherever a module of ours holds the stand-in."""
    torch = importlib.import_module("torch")
    for name, module in list(sys.modules.items()):
        if name.startswith(OURS) and name != __name__:
            held = vars(module)
            held.update({k: torch for k, v in held.items() if v is _TORCH})
            held.update({k: torch.Tensor for k, v in held.items() if v is Tensor})
    return torch


def _decorator(name: str, *arguments: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """torch's context manager of that name as a decorator, made at each call."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def inside(*args: Any, **kwargs: Any) -> Any:
            with getattr(load(), name)(*arguments):
                return function(*args, **kwargs)

        return inside

    return decorate


@contextmanager
def deferred() -> Iterator[None]:
    """Modules of ours that are imported in the block get torch when they first use it."""
    ordinary = builtins.__import__

    def imported(
        name: str,
        globals: Mapping[str, Any] | None = None,
        locals: Mapping[str, Any] | None = None,
        fromlist: Any = (),
        level: int = 0,
    ) -> Any:
        importer = str((globals or {}).get("__name__", ""))
        if name == "torch" and importer.startswith(OURS) and "torch" not in sys.modules:
            if not fromlist:
                return _TORCH
            if tuple(fromlist) == ("Tensor",):
                return _Names
        return ordinary(name, globals, locals, fromlist, level)

    builtins.__import__ = imported
    try:
        yield
    finally:
        builtins.__import__ = ordinary
