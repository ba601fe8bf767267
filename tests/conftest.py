"""What concerns all tests: their order where several workers share them, and what they cost."""

from __future__ import annotations

import os
import sys
from itertools import cycle
from pathlib import Path

import pytest

HERE = Path(__file__).parent
# The hundreds of commands that tests start would each compile the package anew without these.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False
SLOWEST_FIRST = tuple(
    f"{name}.py"
    for name in (
        "end_to_end/test_search", "end_to_end/test_slurm", "end_to_end/test_launchers",
        "end_to_end/test_kills", "end_to_end/test_outages", "end_to_end/test_surroundings",
        "end_to_end/test_torchrun", "end_to_end/test_postgres", "end_to_end/test_ray",
        "end_to_end/test_resume", "end_to_end/test_sweep", "bench/test_bench",
        "training/test_ranks", "end_to_end/test_sweep_faults", "end_to_end/test_full_disk",
        "end_to_end/test_recipes", "end_to_end/test_extension", "end_to_end/test_plan_command",
        "end_to_end/test_studies", "end_to_end/test_start_up",
    )
)  # fmt: skip
"""Files of minutes and of tens of seconds, below tests/."""


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Every worker begins with slow files of its own, whole, and ends with quick tests.

    `--dist worksteal` gives each worker a part of the list, in order, and takes from the end of
    another's what an idle one gets: unordered, that would tear files with expensive fixtures apart
    and leave the slowest tests for last.
    """
    workers = int(getattr(config, "workerinput", {}).get("workercount", 1))
    if workers > 1:
        items[:] = dealt(items, workers)


def dealt(items: list[pytest.Item], workers: int) -> list[pytest.Item]:
    """The same tests, as parts of one size, one after the other: slow files are dealt out to the
    parts, and the others fill them up."""
    slow: dict[str, list[pytest.Item]] = {name: [] for name in SLOWEST_FIRST}
    quick: list[pytest.Item] = []
    for item in items:
        slow.get(place_of(item), quick).append(item)
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    there_and_back = [*range(workers), *reversed(range(workers))]
    for part, name in zip(cycle(there_and_back), SLOWEST_FIRST, strict=False):
        parts[part] += slow[name]
    left = len(items)
    found: list[pytest.Item] = []
    for place, part in enumerate(parts):
        wanted = left // (workers - place)  # as xdist cuts the list
        filling = max(0, wanted - len(part))
        found += [*part, *quick[:filling]]
        quick = quick[filling:]
        left -= wanted
    return found + quick


def place_of(item: pytest.Item) -> str:
    """A test's file, below tests/."""
    return item.path.relative_to(HERE).as_posix() if item.path.is_relative_to(HERE) else ""
