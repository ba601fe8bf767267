"""Which GPU each worker of the local launcher is given, of GPUs that need not be there."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any, ClassVar

import pytest

from grpolab.sweep.launchers.local import Local

JOBS = 8


class Recorded:
    """A process that ends at once, and whose environment is kept."""

    visible: ClassVar[list[str | None]] = []

    def __init__(self, *_: object, env: dict[str, str], **__: object) -> None:
        self.visible.append(env.get("CUDA_VISIBLE_DEVICES"))
        self.stdin, self.stdout, self.returncode = io.BytesIO(), io.BytesIO(), 0

    def wait(self, timeout: float | None = None) -> int:
        return 0


@pytest.mark.parametrize(
    ("settings", "device", "outside", "expected"),
    [
        ({}, "cuda", None, ["0", "1", "2"]),
        ({}, "auto", "5,3,7", ["3", "5", "7"]),
        ({"jobs_per_gpu": 2}, "auto", None, ["0", "0", "1", "1", "2", "2"]),
        ({"gpus": [2, 0]}, "cuda", "5,3,7", ["5", "7"]),
        ({"gpus": [1], "jobs_per_gpu": 3}, "cuda", None, ["1", "1", "1"]),
        ({"workers": 4}, "cuda", None, ["0", "0", "1", "2"]),
        ({"workers": 2}, "cpu", None, [None, None]),
    ],
)
def test_gpus_are_dealt_to_workers(
    settings: dict[str, Any],
    device: str,
    outside: str | None,
    expected: list[str | None],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Three GPUs are visible; each worker sees its own."""
    monkeypatch.setattr("torch.cuda.device_count", lambda: 3)
    monkeypatch.setattr("grpolab.sweep.launchers.local.subprocess.Popen", Recorded)
    monkeypatch.setattr(Recorded, "visible", [])
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if outside is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", outside)
    raws = [{"hardware": {"device": device, "threads": 1}}] * JOBS
    launcher = Local(**settings)
    launcher.check(raws)
    pool = launcher._processes(raws, tmp_path)
    assert pool.size == len(expected)
    pool.prepare(len(raws))
    pool.close()
    assert sorted(Recorded.visible, key=str) == expected
