"""What Hydra is given to run: apart from `job`, so that its help and completion load no torch."""

from __future__ import annotations

from typing import Any


def hydra_job(config: Any) -> str:
    """The task function of a Hydra multirun: its state as text."""
    from omegaconf import OmegaConf

    from grpolab.sweep.job import run_job

    raw = OmegaConf.to_container(config, resolve=True)
    assert isinstance(raw, dict)
    return run_job({str(k): v for k, v in raw.items()})
