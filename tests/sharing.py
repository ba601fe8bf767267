"""What is expensive to make is made once for all of pytest's own workers."""

from __future__ import annotations

import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import pytest
from filelock import FileLock

Made = TypeVar("Made")


def folder_of(factory: pytest.TempPathFactory, name: str) -> Path:
    """The folder of that name, the same in every worker; it need not exist yet."""
    base = factory.getbasetemp()
    return (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / name


def lock(factory: pytest.TempPathFactory, name: str) -> FileLock:
    """Held while something of that name is made, or changed by a test."""
    return FileLock(f"{folder_of(factory, name)}.lock")


def once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], Made]) -> Made:
    """What `make` made of an empty folder, in the worker that came first; the others wait for it.

    Args:
        name: of the folder; unique across tests/.
        make: gets the folder; what it returns must survive pickling.
    """
    folder = folder_of(factory, name)
    kept = folder.with_name(f"{name}.made")
    with lock(factory, name):
        if not kept.exists():
            shutil.rmtree(folder, ignore_errors=True)  # of a worker that failed on the way
            folder.mkdir()
            made = make(folder)
            kept.write_bytes(pickle.dumps(made))
            return made
        found: Made = pickle.loads(kept.read_bytes())
        return found
