"""What a full disk looks like, whichever library met it, and files that it leaves whole or not at
all."""

from __future__ import annotations

import errno
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

WORDS = ("no space left on device", "os error 28", "disk quota exceeded", "disk is full")


def is_disk_full(error: BaseException | None) -> bool:
    """Whether an error, or what caused it, is the lack of disk space. Safetensors and SQLite say so
    in words alone."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if any(words in str(error).lower() for words in WORDS):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def replaced(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder` that takes its place, whole and on the disk, when the block
    ends well. Where it fails, `folder` is as it was; a kill leaves the old one, the new one, or
    none, and never a part of one."""
    new, old = (folder.with_name(f"{folder.name}.{end}") for end in ("new", "old"))
    shutil.rmtree(new, ignore_errors=True)
    try:
        new.mkdir(parents=True)
        yield new
        for path in filter(Path.is_file, new.rglob("*")):
            to_disk(path)
        shutil.rmtree(old, ignore_errors=True)
        if folder.exists():
            folder.rename(old)
        new.rename(folder)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # half of one takes up room, and is good for nothing
        raise
    shutil.rmtree(old, ignore_errors=True)


def to_disk(path: Path) -> None:
    """A file is on the disk when this returns."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A scratch folder beside `folder`. Its files go to their places in `folder` when the block
    ends well; where it fails, `folder` is as it was."""
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".", dir=folder.parent) as scratch:
            yield Path(scratch)
            files = [p for p in Path(scratch).rglob("*") if p.is_file()]
            places = {path: folder / path.relative_to(scratch) for path in files}
            for place in places.values():  # all folders first: they need room, renaming does not
                place.parent.mkdir(parents=True, exist_ok=True)
            for path, place in places.items():
                path.replace(place)
    except BaseException:
        for path in made:
            with suppress(OSError):  # something else lies in it by now
                path.rmdir()
        raise
