"""Where a run comes from: code, packages, hardware, command."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = (
    "grpolab", "torch", "transformers", "datasets", "mlflow", "hydra-core", "omegaconf",
    "numpy", "pandas", "peft", "tokenizers", "safetensors",
)  # fmt: skip


def provenance(command: str | None = None) -> dict[str, Any]:
    """git sha and diff, package versions, hardware, command; what cannot be had is None.

    Args:
        command: as it was given; null: this process's own.
    """
    import torch

    cuda = torch.cuda.is_available()
    return {
        "command": " ".join(sys.argv) if command is None else command,
        "git_sha": _git("rev-parse", "HEAD"),
        "git_diff": _git("diff", "HEAD"),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "world_size": int(os.environ.get("WORLD_SIZE") or 1),
        "gpu": torch.cuda.get_device_name(0) if cuda else None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


@cache
def _git(*arguments: str) -> str | None:
    """Of the checkout the package lies in; a wheel has none. Asked once per process: what changes
    in the checkout afterwards is not what this process has imported."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=20,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
