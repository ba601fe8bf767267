"""Logged runs as tidy frames, and what is made of them: `grpolab.results.load(sweep="latest")`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from grpolab.results.frames import Results, ResultsError
    from grpolab.results.load import load

__all__ = ["Results", "ResultsError", "load"]


def __getattr__(name: str) -> Any:
    # pandas is imported when results are asked for, not with the package
    if name == "load":
        import importlib

        return importlib.import_module("grpolab.results.load")
    if name in __all__:
        from grpolab.results import frames

        return getattr(frames, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
