"""What tests share is made once, and anew after an attempt that failed; no test is lost or torn
from its file when slow files are dealt out."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from filelock import Timeout

from tests.conftest import HERE, SLOWEST_FIRST, dealt
from tests.sharing import folder_of, lock, once


def test_it_is_made_once(tmp_path_factory: pytest.TempPathFactory) -> None:
    calls = []

    def make(folder: Path) -> dict[str, Path]:
        assert list(folder.iterdir()) == []
        (folder / "part").touch()
        calls.append(folder)
        if len(calls) == 1:
            raise OSError("half-way")
        return {"found": folder / "part"}

    with pytest.raises(OSError, match="half-way"):
        once(tmp_path_factory, "shared-by-a-test", make)
    found = [once(tmp_path_factory, "shared-by-a-test", make) for _ in range(2)]
    assert len(calls) == 2
    assert found[0] == found[1] == {"found": folder_of(tmp_path_factory, "shared-by-a-test/part")}


def test_one_at_a_time(tmp_path_factory: pytest.TempPathFactory) -> None:
    with lock(tmp_path_factory, "locked-by-a-test"), pytest.raises(Timeout):
        lock(tmp_path_factory, "locked-by-a-test").acquire(timeout=0)


@pytest.mark.parametrize("workers", [2, 3, 4])
def test_every_worker_begins_with_whole_slow_files(workers: int) -> None:
    assert all((HERE / name).exists() for name in SLOWEST_FIRST)
    names = [*sorted(SLOWEST_FIRST)] * 3 + ["objective/test_kl.py"] * 901
    items = cast(Any, [SimpleNamespace(path=HERE / name) for name in names])
    found = dealt(items, workers)
    assert sorted(map(id, found)) == sorted(map(id, items))
    at = 0
    for worker in range(workers):
        count = (len(items) - at) // (workers - worker)
        part = [item.path.relative_to(HERE).as_posix() for item in found[at : at + count]]
        slow = [name for name in part if name in SLOWEST_FIRST]
        assert part[: len(slow)] == slow
        assert all(part.count(name) == 3 for name in slow)
        assert len(set(slow)) >= len(SLOWEST_FIRST) // workers - 1
        at += count


@pytest.mark.parametrize("count", [0, 1, 5])
def test_few_tests_stay_all_of_them(count: int) -> None:
    items = cast(Any, [SimpleNamespace(path=HERE / SLOWEST_FIRST[0]) for _ in range(count)])
    assert dealt(items, 3) == items
