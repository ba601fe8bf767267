"""What a launcher is to the sweep's driver: places where jobs run, told what to do by messages."""

from __future__ import annotations

import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from grpolab.component import ConfigError

DIED = "died"
"""The state of a job whose process ended without saying how it went."""


@dataclass(frozen=True)
class Ended:
    """A job that a pool has given up."""

    key: str
    state: str
    """What `run_job` returned (done, failed, busy, interrupted), or `died`."""
    reason: str | None = None


class Pool(Protocol):
    """Places where jobs run, `size` at once. All results go through the run folders; what comes
    back here only says that a job has ended."""

    size: int

    def prepare(self, jobs: int) -> None:
        """So many jobs will come: processes for them may start now and pay for their imports."""

    def submit(self, key: str, raw: Mapping[str, Any]) -> None:
        """Starts a job; called while fewer than `size` are running."""

    def wait(self, seconds: float) -> list[Ended]:
        """Jobs that have ended, after at most so many seconds without one."""

    def stop(self, keys: Sequence[str]) -> None:
        """Asks running jobs to finish their step, checkpoint and end."""

    def close(self, *, kill: bool = False) -> None:
        """Ends all processes: when they are idle, or at once."""


class EarlyPool(Pool, Protocol):
    """A pool whose processes start while a sweep is still being checked, before it has a folder:
    what they import for that serves their jobs, too."""

    def passes(
        self, raws: Sequence[Mapping[str, Any]], meanwhile: Callable[[], None] = lambda: None
    ) -> bool:
        """Whether the processes find nothing to refuse in these configurations; `meanwhile` is done
        here while they look."""

    def move_in(self, scratch: Path) -> None:
        """From now on the sweep has a folder for the pool's own files."""


class Launcher(ABC):
    """A choice of `hydra/launcher`: its settings, and the pool they give."""

    @property
    def in_process(self) -> bool:
        """Whether jobs run in the driver's process, which then shows each job's own progress."""
        return False

    def check(self, raws: Sequence[Mapping[str, Any]]) -> None:
        """Refuses, before anything is written, what these configurations cannot have.

        Raises:
            ConfigError: with the key.
        """
        return

    def early_pool(self, raws: Sequence[Mapping[str, Any]]) -> EarlyPool | None:
        """A pool that can start before anything may be written; None: there is only `pool`."""
        return None

    @abstractmethod
    def pool(self, raws: Sequence[Mapping[str, Any]], scratch: Path) -> Pool:
        """Places for these resolved configurations; `scratch` is a folder for its own files."""


def require(package: str, launcher: str) -> None:
    """Refuses a launcher whose package is not installed; does not import it.

    Args:
        package: what is imported.
        launcher: its name, which is that of the extra, too.
    """
    if importlib.util.find_spec(package) is None:
        raise ConfigError(
            f"hydra/launcher: {launcher} given, which needs the package {package}; allowed once it "
            f"is installed: pip install 'grpolab[{launcher}]'."
        )
