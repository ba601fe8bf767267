"""Checkpoints: everything that a resumed run needs to end bit-identical to an undisturbed one.

Random streams are derived from (seed, name, step), so there is no generator state to keep. Weights
and optimizer state are safetensors; nothing is pickled. The folder is swapped in by renames, so a
kill at any moment leaves a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

FOLDER = "checkpoint"


def save(
    run_folder: Path,
    parameters: dict[str, torch.nn.Parameter],
    optimizer: torch.optim.Optimizer,
    state: dict[str, Any],
) -> None:
    """Writes a checkpoint beside the last one, then takes its place."""
    from safetensors.torch import save_file

    new, old, final = (run_folder / f"{FOLDER}{end}" for end in (".new", ".old", ""))
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir(parents=True)
    save_file(
        {n: p.detach().contiguous() for n, p in parameters.items()}, new / "weights.safetensors"
    )
    save_file(_optimizer_tensors(parameters, optimizer), new / "optimizer.safetensors")
    (new / "state.json").write_text(json.dumps(state))
    for path in new.iterdir():
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
) -> dict[str, Any] | None:
    """Restores weights and optimizer in place; the saved state, or None without a checkpoint."""
    from safetensors.torch import load_file

    folder = find(run_folder)
    if folder is None:
        return None
    device = str(next(iter(parameters.values())).device)
    weights = load_file(folder / "weights.safetensors", device=device)
    with torch.no_grad():
        for name, parameter in parameters.items():
            parameter.copy_(weights[name])
    tensors = load_file(folder / "optimizer.safetensors", device=device)
    for name, parameter in parameters.items():
        found = {k[len(name) + 1 :]: v for k, v in tensors.items() if k.rsplit("|", 1)[0] == name}
        if found:
            optimizer.state[parameter] = found
    state: dict[str, Any] = json.loads((folder / "state.json").read_text())
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
