"""Checkpoints on a disk that may be cut off, full or rotten at any moment."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from grpolab.training import checkpoint


def optimizer_of(weight: torch.nn.Parameter) -> torch.optim.AdamW:
    optimizer = torch.optim.AdamW([weight], lr=0.1)
    weight.grad = torch.ones_like(weight)
    optimizer.step()
    return optimizer


def write(folder: Path, step: int) -> torch.Tensor:
    """A checkpoint of that step; its weights."""
    weight = torch.nn.Parameter(torch.full((64,), float(step)))
    checkpoint.save(
        folder, {"w": weight}, optimizer_of(weight), {"step": step},
        extra={"replay": {"x": torch.arange(step + 1)}},
    )  # fmt: skip
    return weight.detach()


def read(folder: Path) -> tuple[dict[str, Any] | None, torch.Tensor]:
    weight = torch.nn.Parameter(torch.zeros(64))
    state = checkpoint.load(folder, {"w": weight}, torch.optim.AdamW([weight]))
    return state, weight.detach()


def files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


DAMAGE: dict[str, Callable[[Path], None]] = {
    "bit": flip_a_bit, "cut": truncate, "empty": empty,
    "gone": Path.unlink,
}  # fmt: skip
PARTS = ("weights", "optimizer", "state", "replay", "sums")


def test_the_newest_is_read(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        expected = write(tmp_path, step)
    state, weight = read(tmp_path)
    assert state is not None
    assert state["step"] == 3
    assert torch.equal(weight, expected)
    assert torch.equal(state["extra"]["replay"]["x"], torch.arange(4))


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("damage", list(DAMAGE))
def test_a_damaged_one_is_noticed_and_the_one_before_used(
    damage: str, part: str, tmp_path: Path
) -> None:
    expected = write(tmp_path, 1)
    write(tmp_path, 2)
    (path,) = [p for p in files(tmp_path / "checkpoint") if p.stem == part]
    DAMAGE[damage](path)
    if (damage, part) == ("gone", "sums"):  # as a kill before the end of writing leaves it
        state, weight = read(tmp_path)
    else:
        with pytest.warns(UserWarning, match="damaged"):
            state, weight = read(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert torch.equal(weight, expected)


def test_two_damaged_ones_are_none(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    for folder in ("checkpoint", "checkpoint.old"):
        flip_a_bit(tmp_path / folder / "weights.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        state, weight = read(tmp_path)
    assert state is None
    assert not weight.any()


def test_damage_after_a_good_look_is_noticed_too(tmp_path: Path) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    assert checkpoint.find(tmp_path) == tmp_path / "checkpoint"
    flip_a_bit(tmp_path / "checkpoint" / "optimizer.safetensors")
    with pytest.warns(UserWarning, match="damaged"):
        assert checkpoint.find(tmp_path) == tmp_path / "checkpoint.old"


class Killed(BaseException):
    """Nothing in the process runs after this."""


@pytest.mark.parametrize("moment", range(12))
def test_a_kill_while_writing_leaves_a_whole_one(
    moment: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    write(tmp_path, 2)
    calls = 0

    def killed_at(work: Callable[..., Any], *, quiet: bool = False) -> Callable[..., Any]:
        def wrapped(*arguments: Any, **named: Any) -> Any:
            nonlocal calls
            calls += 1
            if calls <= moment:
                return work(*arguments, **named)
            if not quiet or calls == moment + 1:
                raise Killed
            return None  # tidying up behind the kill does not happen

        return wrapped

    survived = False
    with monkeypatch.context() as patched:
        patched.setattr(Path, "rename", killed_at(Path.rename))
        patched.setattr(checkpoint, "to_disk", killed_at(checkpoint.to_disk))
        patched.setattr(shutil, "rmtree", killed_at(shutil.rmtree, quiet=True))
        with contextlib.suppress(Killed):
            write(tmp_path, 3)
            survived = True
    state, _ = read(tmp_path)
    assert state is not None
    assert state["step"] in ((3,) if survived else (2, 3))
    assert survived == (calls <= moment)


def test_a_full_disk_leaves_the_last_one_and_no_half_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(tmp_path, 1)
    before = files(tmp_path)

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "to_disk", full)
        with pytest.raises(OSError, match="No space left"):
            write(tmp_path, 2)
    assert files(tmp_path) == before
    state, _ = read(tmp_path)
    assert state is not None
    assert state["step"] == 1
    assert json.loads((tmp_path / "checkpoint" / "state.json").read_text())["step"] == 1


def test_no_more_than_two_are_kept(tmp_path: Path) -> None:
    rng = random.Random(0)
    for step in range(rng.randint(4, 7)):
        write(tmp_path, step)
    assert {p.name for p in tmp_path.iterdir()} == {"checkpoint", "checkpoint.old"}
    checkpoint.remove(tmp_path)
    assert list(tmp_path.iterdir()) == []
