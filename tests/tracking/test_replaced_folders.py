"""A folder that is written anew is there whole or not at all."""

from __future__ import annotations

import errno
import subprocess
import sys
from pathlib import Path

import pytest

from grpolab.tracking.disk import is_disk_full, replaced


def content(folder: Path) -> dict[str, str]:
    """{path: text} of everything below a folder."""
    files = (p for p in folder.rglob("*") if p.is_file())
    return {str(p.relative_to(folder)): p.read_text() for p in files}


def write(folder: Path, text: str) -> None:
    (folder / "deeper").mkdir()
    (folder / "weights").write_text(text)
    (folder / "deeper" / "config").write_text(text)


WHOLE = {"model/weights": "old", "model/deeper/config": "old"}


def test_the_new_one_takes_the_place_of_the_old_one(tmp_path: Path) -> None:
    for text in ("old", "new"):
        with replaced(tmp_path / "runs" / "model") as scratch:
            write(scratch, text)
            (scratch / text).write_text(text)
    assert content(tmp_path) == {
        "runs/model/weights": "new", "runs/model/deeper/config": "new", "runs/model/new": "new",
    }  # fmt: skip


@pytest.mark.parametrize("before", [True, False])
def test_a_disk_that_is_full_half_way_leaves_the_old_one_or_none(
    tmp_path: Path, before: bool
) -> None:
    if before:
        with replaced(tmp_path / "model") as scratch:
            write(scratch, "old")
    with pytest.raises(OSError, match="No space") as raised:
        half(tmp_path / "model")
    assert is_disk_full(raised.value)
    assert content(tmp_path) == (WHOLE if before else {})
    assert [p.name for p in tmp_path.iterdir()] == (["model"] if before else [])


def half(folder: Path) -> None:
    """The disk is full when a part has been written."""
    with replaced(folder) as scratch:
        (scratch / "weights").write_text("ne")
        raise OSError(errno.ENOSPC, "No space left on device")


KILLED = """
import os, signal, sys
from pathlib import Path
from grpolab.tracking.disk import replaced
with replaced(Path(sys.argv[1])) as scratch:
    (scratch / "weights").write_text("ne")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_kill_half_way_leaves_the_old_one_and_the_next_one_is_whole(tmp_path: Path) -> None:
    with replaced(tmp_path / "model") as scratch:
        write(scratch, "old")
    subprocess.run([sys.executable, "-c", KILLED, str(tmp_path / "model")], check=False)
    assert content(tmp_path / "model") == content_of(WHOLE)
    assert (tmp_path / "model.new").exists()
    with replaced(tmp_path / "model") as scratch:
        write(scratch, "new")
    assert content(tmp_path) == dict.fromkeys(WHOLE, "new")


def content_of(files: dict[str, str]) -> dict[str, str]:
    """As seen from inside the folder."""
    return {name.removeprefix("model/"): text for name, text in files.items()}
