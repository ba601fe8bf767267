"""What a full disk looks like, whichever library met it, and files that it leaves whole or not at
all."""

from __future__ import annotations

import errno
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
