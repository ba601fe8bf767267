"""AdamW and its learning rate."""

from __future__ import annotations

import math
from typing import Any

import torch

from grpolab.config import Optimizer


def make_optimizer(settings: Optimizer, parameters: list[torch.nn.Parameter]) -> torch.optim.AdamW:
    """AdamW, fused where the device has it."""
    fused = parameters[0].device.type in ("cpu", "cuda")
    spares = settings.decay == "matrices"
    spared = [p for p in parameters if p.dim() < 2 and spares]
    groups: list[dict[str, Any]] = [
        {"params": [p for p in parameters if p.dim() > 1 or not spares]}
    ]
    if spared:
        groups.append({"params": spared, "weight_decay": 0.0})
    return torch.optim.AdamW(
        groups,
        lr=settings.lr,
        betas=(settings.betas[0], settings.betas[1]),
        eps=settings.eps,
        weight_decay=settings.weight_decay,
        fused=fused,
    )


def lr_at(settings: Optimizer, step: int, steps: int) -> float:
    """The learning rate of a step, counted from 0."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, steps - settings.warmup_steps)
    if settings.schedule == "linear":
        return settings.lr * (1 - done)
    if settings.schedule == "cosine":
        return settings.lr * 0.5 * (1 + math.cos(math.pi * done))
    return settings.lr


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """The same learning rate for all parameters."""
    for group in optimizer.param_groups:
        group["lr"] = lr
