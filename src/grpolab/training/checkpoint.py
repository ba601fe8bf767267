"""Checkpoints: everything that a resumed run needs to end bit-identical to an undisturbed one.

Random streams are derived from (seed, name, step), so there is no generator state to keep. Weights
and optimizer state are safetensors; nothing is pickled. A reference that never moves is not kept:
it is the start weights, which the run loads anyway. The folder is swapped in by renames, so a kill
at any moment leaves a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = "checkpoint"
EXTRA = "extra"


def save(
    run_folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
    *,
    reference: Mapping[str, Tensor] | None = None,
    extra: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> None:
    """Writes a checkpoint beside the last one, then takes its place.

    Args:
        run_folder: of the run.
        parameters: what the optimizer trains, by name.
        optimizer: whose state is kept.
        state: the rest, as JSON.
        reference: the reference's parameters by name, where it moves.
        extra: further tensors by name and key; `load` returns them, on the CPU, as
            state["extra"].
    """
    from safetensors.torch import save_file

    new, old, final = (run_folder / f"{FOLDER}{end}" for end in (".new", ".old", ""))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(_plain(parameters), new / "weights.safetensors")
    save_file(_optimizer_tensors(parameters, optimizer), new / "optimizer.safetensors")
    if reference:
        save_file(_plain(reference), new / "reference.safetensors")
    for name, tensors in (extra or {}).items():
        (new / EXTRA).mkdir(exist_ok=True)
        save_file(_plain(tensors), new / EXTRA / f"{name}.safetensors")
    (new / "state.json").write_text(json.dumps(state))
    for path in filter(Path.is_file, new.rglob("*")):
        _sync(path)
    shutil.rmtree(old, ignore_errors=True)
    if final.exists():
        final.rename(old)
    new.rename(final)
    shutil.rmtree(old, ignore_errors=True)


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
            optimizer.state[parameter] = found
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
    state["extra"] = {p.stem: load_file(p) for p in (folder / EXTRA).glob("*.safetensors")}
    return state


def find(run_folder: Path) -> Path | None:
    """The newest whole checkpoint: the swap may have been cut between its two renames."""
    for end in ("", ".old"):
        folder = run_folder / f"{FOLDER}{end}"
        if (folder / "state.json").exists():
            return folder
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
        tensor.copy_(saved[name])


def _optimizer_tensors(
    parameters: dict[str, torch.nn.Parameter], optimizer: torch.optim.Optimizer
) -> dict[str, Tensor]:
    return {
        f"{name}|{key}": value.detach().contiguous()
        for name, parameter in parameters.items()
        for key, value in optimizer.state.get(parameter, {}).items()
        if isinstance(value, Tensor)
    }


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
