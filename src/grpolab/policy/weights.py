"""Whether a folder holds whole weights, from the headers of its safetensors files alone."""

from __future__ import annotations

import json
from pathlib import Path

from grpolab.component import ConfigError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"


def check_weights(folder: Path, name: str, key: str = "model.name") -> None:
    """Refuses a model folder whose weights are missing, cut off or no safetensors.

    Raises:
        ConfigError: with the file and what is wrong.
    """
    for path in _files(folder, name, key):
        problem = header_problem(path)
        if problem:
            raise ConfigError(f"{key}: {path} {problem}; allowed: whole safetensors weights.")


def _files(folder: Path, name: str, key: str) -> list[Path]:
    if (folder / INDEX).exists():
        try:
            listed = json.loads((folder / INDEX).read_text())["weight_map"].values()
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise ConfigError(
                f"{key}: {folder / INDEX} is no index of weights ({type(error).__name__}); "
                "allowed: whole safetensors weights."
            ) from error
        return [folder / file for file in sorted(set(listed))]
    if not (folder / SINGLE).exists():
        raise ConfigError(
            f"{key}: {name!r} has no {SINGLE}; allowed: a folder with safetensors weights "
            "(pickled ones are never loaded)."
        )
    return [folder / SINGLE]


def header_problem(path: Path) -> str | None:
    """What keeps a file from being whole safetensors, if anything.

    The format: 8 bytes with the header's length, the header as JSON, then the tensors, whose ends
    the header names.
    """
    try:
        with path.open("rb") as file:
            size = path.stat().st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                return f"is cut off after {size} bytes"
            header = json.loads(file.read(length))
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    except ValueError:
        return "is no safetensors file"
    ends = [t["data_offsets"][1] for key, t in header.items() if key != "__metadata__"]
    whole = 8 + length + max(ends, default=0)
    return f"is cut off: {size} of {whole} bytes" if size < whole else None
