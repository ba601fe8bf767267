"""A reward that is a user's own Python function."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

from grpolab.objective.settings import setting
from grpolab.rewards.ahead import Ahead
from grpolab.rewards.base import Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard, limited
from grpolab.tasks.base import Example

MISSING = "???"


@dataclass(frozen=True)
class PythonReward(Reward):
    """A function of one's own, named `module:function`.

    Called as f(completion, example, **arguments) → number for each completion, or with `batched` as
    f(completions, examples, **arguments) → N numbers. `example` is a `grpolab.tasks.base.Example`
    (prompt, answer, meta). NaN means unscorable. What raises or exceeds the time limit is NaN too:
    one sample, or the batch with `batched`.

    The function is imported when the configuration is checked, so that a typo stops a run before it
    starts. It is the user's own code and runs with the user's rights.

    A function that waits, for a model's server or a sandbox, is better called several times at
    once: with `workers` above 1 it is called in so many threads, from the moment a completion has
    ended, while others are still sampled (sampler static). It has to bear that. A call whose time
    is up while it waits goes on in its thread until it returns: give what it waits for a time limit
    of its own, too.
    """

    name: ClassVar[str] = "python"

    function: str = setting(MISSING, "module:function, importable from where the run starts.")
    arguments: dict[str, Any] = setting({}, "Further keyword arguments of the function.")
    batched: bool = setting(False, "The function takes all completions at once.")
    time_limit: float = setting(10.0, "Seconds for one completion; slower ones are NaN.", gt=0)
    workers: int = setting(1, "Calls at the same time, in threads, for one that waits.", ge=1)

    def __post_init__(self) -> None:
        if self.batched and self.workers > 1:
            raise ValueError(
                f"workers: {self.workers} given with batched=true, one call for all; allowed: 1"
            )
        if self.function != MISSING:
            import_function(self.function)

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        function = partial(self._function, **self.arguments)
        if self.batched:
            call = partial(function, list(inputs.completions), list(inputs.examples))
            limit = self.time_limit * max(1, len(inputs))
            return Scores(self._guard.scores(call, len(inputs), limit))
        together = list(zip(inputs.completions, inputs.examples, strict=True))
        if self.workers > 1:
            return Scores(self._at_once(together))
        return Scores([self._guard.score(partial(function, c, e)) for c, e in together])

    def _at_once(self, together: list[tuple[str, Example]]) -> list[float]:
        threads = ThreadPoolExecutor(self.workers)
        try:
            futures = [
                self._ahead.begun(threads, c, e, partial(self._one, c, e)) for c, e in together
            ]
            return [self._guard.score(future.result) for future in futures]
        finally:
            threads.shutdown(cancel_futures=True)

    def _one(self, completion: str, example: Example) -> Any:
        call = partial(self._function, completion, example, **self.arguments)
        return limited(call, self.time_limit)

    def looks_ahead(self, elsewhere: bool) -> bool:
        """Where it is called in threads."""
        return self.workers > 1

    def ahead(
        self, completions: Sequence[str], examples: Sequence[Example], elsewhere: bool
    ) -> None:
        """Calls the function."""
        for completion, example in zip(completions, examples, strict=True):
            self._ahead.begin(completion, example, partial(self._one, completion, example))

    def forget(self) -> None:
        self._ahead.forget()

    @cached_property
    def _ahead(self) -> Ahead[Any]:
        return Ahead(self.workers)

    @cached_property
    def _function(self) -> Callable[..., Any]:
        return import_function(self.function)

    @cached_property
    def _guard(self) -> Guard:
        # in threads each call has its own limit; to wait for its turn has none
        limit = None if self.workers > 1 else self.time_limit
        return Guard(f"{self.name} ({self.function})", limit)


def import_function(target: str) -> Callable[..., Any]:
    """The function that `module:function` names.

    Raises:
        ValueError: beginning with the setting's name, for another form, a module that cannot be
            imported, a missing attribute or one that cannot be called.
    """
    module_name, colon, path = target.partition(":")
    if not (colon and module_name and path):
        raise ValueError(f"function: {target!r} has no such form; allowed: module:function")
    try:
        found: Any = importlib.import_module(module_name)
    except Exception as error:  # a user's module may raise anything
        raise ValueError(
            f"function: {target!r}: cannot import {module_name} ({type(error).__name__}: {error}); "
            "allowed: a module that Python finds (installed, or its folder in PYTHONPATH)"
        ) from error
    for attribute in path.split("."):
        if not hasattr(found, attribute):
            raise ValueError(
                f"function: {target!r}: {module_name} has no {path}; allowed: "
                f"{', '.join(_callables(found)) or 'a function that it defines'}"
            )
        found = getattr(found, attribute)
    if not callable(found):
        raise ValueError(
            f"function: {target!r} is a {type(found).__name__}; allowed: something to call"
        )
    return found  # type: ignore[no-any-return]


def _callables(owner: Any) -> list[str]:
    return [n for n, value in vars(owner).items() if callable(value) and not n.startswith("_")]
