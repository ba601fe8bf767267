"""What Hydra is given to run: apart from `job`, so that its help and completion load no torch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any


def hydra_job(config: Any) -> str:
    """The task function of a Hydra multirun: its state as text."""
    from omegaconf import OmegaConf

    from grpolab.cli.streams import impatient
    from grpolab.sweep.job import run_job

    impatient()
    raw = OmegaConf.to_container(config, resolve=True)
    assert isinstance(raw, dict)
    return run_job({str(k): v for k, v in raw.items()})


@contextmanager
def jobs_of_hydra(jobs: Sequence[Sequence[str]]) -> Iterator[None]:
    """Within the block Hydra's sweeper launches these lists of overrides, in place of the product
    that it would make itself: its plugins get the jobs of our designs."""
    from hydra._internal.core_plugins.basic_sweeper import BasicSweeper

    own = [[o for o in job if not o.lstrip("+~").startswith("hydra")] for job in jobs]

    def split(overrides: Any, max_batch_size: int | None) -> list[list[list[str]]]:
        size = max_batch_size or max(1, len(own))
        return [own[i : i + size] for i in range(0, len(own), size)]

    sweeper: Any = BasicSweeper
    before = sweeper.split_arguments
    sweeper.split_arguments = staticmethod(split)
    try:
        yield
    finally:
        sweeper.split_arguments = staticmethod(before)
