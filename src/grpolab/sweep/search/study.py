"""Optuna's study in its own sqlite file: asked for trials, told how they went.

A trial's draws come from (sampler seed, trial number, key), never from a stream that a process
would have to carry on: a study taken up again goes on as if nobody had stopped.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from grpolab.component import ConfigError
from grpolab.sweep.search.prune import Hyperband
from grpolab.sweep.search.settings import Optuna
from grpolab.sweep.search.space import Choices, Dimension

if TYPE_CHECKING:
    import optuna


def require_optuna() -> None:
    """Refuses a search where the package is not installed; does not import it."""
    if importlib.util.find_spec("optuna") is None:
        raise ConfigError(
            "search: optuna given, which needs the package optuna; allowed once it is installed: "
            "pip install 'grpolab[search]'."
        )


class Study:
    """A search's trials.

    Args:
        path: of the sqlite file; made, whole, where it is not there yet.
        key: of the search, by which Hyperband's brackets go.
        settings: of the search.
        space: its dimensions.
        steps: of a run.
        first: steps to the first evaluation.
    """

    def __init__(
        self,
        path: Path,
        key: str,
        settings: Optuna,
        space: Mapping[str, Dimension],
        *,
        steps: int,
        first: int,
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(logging.WARNING)
        self.settings, self.space, self.steps = settings, space, steps
        self._optuna = optuna
        directions = [g.direction for g in settings.goals]
        if not path.exists():
            make(path, key, directions)
        self.study = optuna.load_study(
            study_name=key, storage=_storage(path), sampler=_sampler(settings)
        )
        self.pruner: Hyperband | None = None
        if settings.pruner == "hyperband":
            self.pruner = Hyperband(
                key, first, steps * len(settings.seeds), settings.reduction,
                directions[0] == "maximize",
            )  # fmt: skip

    def trials(self) -> list[optuna.trial.FrozenTrial]:
        """All trials, by number."""
        found: list[optuna.trial.FrozenTrial] = self.study.get_trials(deepcopy=False)
        return found

    def left(self) -> int:
        """Trials that have not been drawn yet."""
        return max(0, self.settings.trials - len(self.trials()))

    def begun(self) -> list[int]:
        """Numbers of the trials that are under way, or were when a process was killed."""
        running = self._optuna.trial.TrialState.RUNNING
        return [t.number for t in self.trials() if t.state == running]

    def draw(self) -> int:
        """The number of a new trial."""
        return int(self.study.ask().number)

    def overrides(self, number: int) -> dict[str, str]:
        """A trial's values as texts of overrides; what a kill kept from being drawn is drawn."""
        trial = self._trial(number)
        found = {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            for key, dim in self.space.items():
                found[key] = dim.text(_suggested(trial, key, dim))
        return found

    def overrides_of(self, number: int) -> dict[str, str]:
        """The values that a finished trial had."""
        params = self.trials()[number].params
        return {key: dim.text(params[key]) for key, dim in self.space.items()}

    def pruned(self) -> dict[str, str]:
        """{job: why} of the runs at which trials were pruned."""
        state = self._optuna.trial.TrialState.PRUNED
        found = [t.user_attrs for t in self.trials() if t.state == state]
        return {own["pruned_job"]: own["reason"] for own in found}

    def report(self, number: int, resource: int, value: float) -> bool:
        """Notes a value, each resource once; whether the trial ends there."""
        if self.pruner is None:
            return False
        known = self.trials()[number].intermediate_values
        if known and resource < max(known):
            return False  # decided before
        if resource not in known:
            self._trial(number).report(value, resource)
        return self.pruner.ends(number, {t.number: t.intermediate_values for t in self.trials()})

    def note(self, number: int, key: str, value: Any) -> None:
        """Keeps something with a trial."""
        self._trial(number).set_user_attr(key, value)

    def complete(self, number: int, values: list[float]) -> None:
        """A trial's values."""
        self.study.tell(number, values)

    def prune(self, number: int, reason: str) -> None:
        """A trial that ends early."""
        self.note(number, "reason", reason)
        self.study.tell(number, state=self._optuna.trial.TrialState.PRUNED)

    def fail(self, number: int, reason: str) -> None:
        """A trial without a value."""
        self.note(number, "reason", reason)
        self.study.tell(number, state=self._optuna.trial.TrialState.FAIL)

    def best(self) -> list[optuna.trial.FrozenTrial]:
        """The best trial, or those of the Pareto front; none before one is complete."""
        state = self._optuna.trial.TrialState.COMPLETE
        if not any(t.state == state for t in self.trials()):
            return []
        if len(self.settings.goals) > 1:
            return sorted(self.study.best_trials, key=lambda t: t.number)
        return [self.study.best_trial]

    def _trial(self, number: int) -> optuna.trial.Trial:
        # `ask` alone gives Trial objects; one of a process that is gone is had by its id
        return self._optuna.trial.Trial(self.study, self.trials()[number]._trial_id)


def _storage(path: Path) -> Any:
    from optuna.storages import RDBStorage

    return RDBStorage(
        f"sqlite:///{path.absolute()}", engine_kwargs={"connect_args": {"timeout": 60}}
    )


def make(path: Path, key: str, directions: list[Any]) -> None:
    """The file with an empty study; it is there whole or not at all."""
    import optuna

    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    scratch.unlink(missing_ok=True)
    storage = _storage(scratch)
    optuna.create_study(study_name=key, storage=storage, directions=directions)
    storage.remove_session()
    storage.engine.dispose()
    scratch.replace(path)


def _suggested(trial: Any, key: str, dim: Dimension) -> Any:
    if isinstance(dim, Choices):
        return trial.suggest_categorical(key, dim.texts)
    if dim.whole:
        return trial.suggest_int(key, dim.low, dim.high, step=int(dim.step or 1), log=dim.log)
    return trial.suggest_float(key, dim.low, dim.high, step=dim.step, log=dim.log)


def derived(*parts: object) -> int:
    """A seed of 32 bits from whatever names a draw."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _sampler(settings: Optuna) -> Any:
    """TPE or random draws, seeded anew for each trial and key."""
    from optuna.samplers import BaseSampler, RandomSampler, TPESampler

    def made(*names: object) -> Any:
        seed = derived(settings.seed, *names)
        if settings.sampler == "random":
            return RandomSampler(seed=seed)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Optuna calls experimental
            return TPESampler(
                seed=seed, n_startup_trials=settings.startup, multivariate=True, constant_liar=True
            )

    class Seeded(BaseSampler):  # type: ignore[misc]
        def infer_relative_search_space(self, study: Any, trial: Any) -> Any:
            return made(trial.number).infer_relative_search_space(study, trial)

        def sample_relative(self, study: Any, trial: Any, search_space: Any) -> Any:
            return made(trial.number).sample_relative(study, trial, search_space)

        def sample_independent(
            self, study: Any, trial: Any, param_name: str, param_distribution: Any
        ) -> Any:
            sampler = made(trial.number, param_name)
            return sampler.sample_independent(study, trial, param_name, param_distribution)

    return Seeded()
