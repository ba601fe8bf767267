"""What each variant does to the gradient, on the same rollouts.

`grpolab.probe(…)` in a notebook, `grpolab probe …` on the command line: this module can be called.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    """`grpolab.probe` is a package, and the function of that name."""

    def __call__(self, *arguments: Any, **settings: Any) -> Any:
        from grpolab.probe.session import probe

        return probe(*arguments, **settings)


sys.modules[__name__].__class__ = _Callable
