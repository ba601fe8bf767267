"""Checkpoints: everything that a resumed run needs to end bit-identical to an undisturbed one.

Random streams are derived from (seed, name, step), so there is no generator state to keep. Weights
and optimizer state are safetensors; nothing is pickled. A reference that never moves is not kept:
it is the start weights, which the run loads anyway. The folder is swapped in by renames, so a kill
at any moment leaves a whole checkpoint, and the one before is kept: each file's checksum stands in
sums.json, and where a disk has changed a bit or cut a file, the older checkpoint is used.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpolab.policy.sharding import Around, gathered, local, own_part
from grpolab.tracking.disk import to_disk as to_disk

FOLDER = "checkpoint"
EXTRA = "extra"
PARTS = (FOLDER, f"{FOLDER}.old")
"""The last one, and the one before."""
SUMS = "sums.json"
"""SHA-256 of every other file, by its path in the checkpoint."""


Kept = dict[str, dict[str, Tensor]]
"""Tensors by name, by the file that holds them."""


def kept(
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    reference: Mapping[str, Tensor] | None = None,
    around: Around = nullcontext,
) -> Kept:
    """What a checkpoint holds of weights and optimizer. Where they are in parts, whole and on the
    CPU, so that any number of ranks goes on from it: every rank calls this.

    Args:
        parameters: what the optimizer trains, by name.
        optimizer: whose state is kept.
        reference: the reference's parameters by name, where it moves.
        around: each transfer between ranks.
    """
    found: dict[str, Mapping[str, Tensor]] = {
        "weights": parameters,
        "optimizer": _optimizer_tensors(parameters, optimizer),
    }
    if reference:
        found["reference"] = reference
    return {file: gathered(tensors, around) for file, tensors in found.items()}


def save(
    run_folder: Path,
    parameters: Mapping[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    reference: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
    around: Around = nullcontext,
) -> None:
    """Writes a checkpoint beside the last one, then takes its place. Where weights are in parts,
    the other ranks call `kept` meanwhile.

    Args:
        run_folder: of the run.
        parameters: what the optimizer trains, by name.
        optimizer: whose state is kept.
        state: the rest, as JSON.
        reference: the reference's parameters by name, where it moves.
        extra: further tensors by name and key; `load` returns them, on the CPU, as
            state["extra"].
        around: each transfer between ranks.
    """
    tensors = kept(parameters, optimizer, reference, around)
    new, old, final = (run_folder / f"{FOLDER}{end}" for end in (".new", ".old", ""))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    try:
        _write(new, tensors, state, extra)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)  # half of one takes up room, and is good for nothing
        raise
    if final.exists():
        shutil.rmtree(old, ignore_errors=True)
        final.rename(old)
    new.rename(final)


def _write(
    new: Path,
    kept: Kept,
    state: dict[str, Any],
    extra: Mapping[str, Mapping[str, Tensor]] | None,
) -> None:
    """All files, on the disk when this returns."""
    from safetensors.torch import save_file

    for name, own in kept.items():
        save_file(_plain(own), new / f"{name}.safetensors")
    for name, tensors in (extra or {}).items():
        (new / EXTRA).mkdir(exist_ok=True)
        save_file(_plain(tensors), new / EXTRA / f"{name}.safetensors")
    (new / "state.json").write_text(json.dumps(state))
    (new / SUMS).write_text(json.dumps(_sums(new), indent=2))
    for path in filter(Path.is_file, new.rglob("*")):
        to_disk(path)


def _sums(folder: Path) -> dict[str, str]:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    return {str(p.relative_to(folder)): _sum(p) for p in files}


def _sum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def load(
    run_folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    *,
    reference: Mapping[str, Tensor] | None = None,
) -> dict[str, Any] | None:
    """Restores weights, optimizer and a moving reference in place; the saved state, or None
    without a checkpoint."""
    from safetensors.torch import load_file

    folder = find(run_folder)
    if folder is None:
        return None
    device = str(next(iter(parameters.values())).device)
    _restore(parameters, load_file(folder / "weights.safetensors", device=device))
    if reference:
        _restore(reference, load_file(folder / "reference.safetensors", device=device))
    tensors = load_file(folder / "optimizer.safetensors", device=device)
    for name, parameter in parameters.items():
        found = {k[len(name) + 1 :]: v for k, v in tensors.items() if k.rsplit("|", 1)[0] == name}
        if found:
            optimizer.state[parameter] = {k: own_part(v, parameter) for k, v in found.items()}
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    state["extra"] = {p.stem: load_file(p) for p in (folder / EXTRA).glob("*.safetensors")}
    return state


def find(run_folder: Path) -> Path | None:
    """The newest checkpoint whose files are what was written; None without one.

    A damaged one is passed over, with a warning. Looking at the files again is left out where
    nothing has changed since the last time.
    """
    for part in PARTS:
        folder = run_folder / part
        if not (folder / SUMS).exists():
            continue
        file = damaged(folder)
        if file is None:
            return folder
        warnings.warn(
            f"{folder / file} is damaged (its checksum has changed); the checkpoint before is "
            "used, or the run begins anew",
            stacklevel=2,
        )
    return None


_verified: dict[Path, tuple[int, ...]] = {}


def damaged(folder: Path) -> str | None:
    """The first file that is not as it was written, if any."""
    try:
        wanted: dict[str, str] = json.loads((folder / SUMS).read_text())
        stamps = tuple((folder / name).stat().st_mtime_ns for name in wanted)
        if _verified.get(folder) == stamps:
            return None
        for name, expected in wanted.items():
            if _sum(folder / name) != expected:
                return name
    except (OSError, ValueError, AttributeError):
        return SUMS
    _verified[folder] = stamps
    return None


def remove(run_folder: Path) -> None:
    """Deletes a run's checkpoints."""
    for end in ("", ".old", ".new"):
        shutil.rmtree(run_folder / f"{FOLDER}{end}", ignore_errors=True)


def _plain(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor.detach().contiguous() for name, tensor in tensors.items()}


@torch.no_grad()
def _restore(tensors: Mapping[str, Tensor], saved: Mapping[str, Tensor]) -> None:
    for name, tensor in tensors.items():
        local(tensor).copy_(local(own_part(saved[name], tensor)))


def _optimizer_tensors(
    parameters: Mapping[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }
