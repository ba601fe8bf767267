"""FSDP2: a model's parameters, gradients and optimizer state in parts, one on each rank.

PyTorch's `fully_shard` does the work. Each layer is a unit, and what lies around the layers is one
more: its weights are gathered before it runs, forward and backward, and let go afterwards; its
gradients are summed where their part lies. Every rank therefore runs as many passes as the others.
Kernels that read weights without calling the module are run by `within`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from grpolab.component import ConfigError

Result = TypeVar("Result")
RUN = "run_with_whole_weights"
"""The method that a sharded unit is given."""


class Peers(Protocol):
    """The ranks that hold the other parts."""

    def mesh(self, device: str) -> Any:
        """All of them, as a one-dimensional `DeviceMesh`."""

    def transfer(self) -> AbstractContextManager[None]:
        """Around a transfer; begins once every rank has come to it."""


def shard(model: Any, peers: Peers) -> Any:
    """The model, each rank keeping its part of every parameter (of the first dimension).

    Args:
        model: the same on every rank.
        peers: all ranks call this.

    Raises:
        ConfigError: where Transformers does not say what the model's layers are.
    """
    from torch.distributed.fsdp import (
        MixedPrecisionPolicy,
        fully_shard,
        register_fsdp_forward_method,
    )

    kinds = set(getattr(model, "_no_split_modules", None) or [])
    layers = [m for m in model.modules() if type(m).__name__ in kinds]
    if not layers:
        raise ConfigError(
            f"hardware.shard: fsdp2 given with a model of the kind {model.config.model_type}, "
            "whose layers Transformers does not name; allowed: none."
        )
    mesh = peers.mesh(next(model.parameters()).device.type)
    lower = next(model.parameters()).dtype.itemsize < torch.float32.itemsize
    precision = MixedPrecisionPolicy(reduce_dtype=torch.float32 if lower else None)
    units: list[Any] = [*layers, model]  # FSDP2 makes another class of each
    for unit in units:
        fully_shard(unit, mesh=mesh, reshard_after_forward=True, mp_policy=precision)
        unit.set_gradient_divide_factor(1.0)  # parts of one global loss: a sum, no mean
        unit.set_force_sum_reduction_for_comms(True)  # the one that gloo knows
        unit.set_custom_all_gather(Gather(peers))
        unit.set_custom_reduce_scatter(ReduceScatter(peers))
        setattr(unit, RUN, _call)
        register_fsdp_forward_method(unit, RUN)
    return model


class Gather:
    """FSDP2's transfer of weights, for `set_custom_all_gather`."""

    def __init__(self, peers: Peers) -> None:
        self.peers = peers

    def allocate(self, size: Sequence[int], *, dtype: torch.dtype, device: torch.device) -> Tensor:
        """Memory for what arrives."""
        return torch.empty(*size, dtype=dtype, device=device)

    def __call__(
        self, output_tensor: Tensor, input_tensor: Tensor, group: Any, async_op: bool = False
    ) -> Any:
        send = collective("all_gather_single", "all_gather_into_tensor")
        with self.peers.transfer():
            return send(output_tensor, input_tensor, group=group, async_op=async_op)


class ReduceScatter(Gather):
    """FSDP2's transfer of gradients, for `set_custom_reduce_scatter`."""

    def __call__(  # type: ignore[override]  # its protocol has one argument more
        self,
        output_tensor: Tensor,
        input_tensor: Tensor,
        group: Any,
        op: Any,
        async_op: bool = False,
    ) -> Any:
        send = collective("reduce_scatter_single", "reduce_scatter_tensor")
        with self.peers.transfer():
            return send(output_tensor, input_tensor, op=op, group=group, async_op=async_op)


def collective(name: str, before: str) -> Callable[..., Any]:
    """A function of torch.distributed, or the one that it was before PyTorch 2.13."""
    from torch import distributed

    found: Callable[..., Any] = getattr(distributed, name, None) or getattr(distributed, before)
    return found


def _call(function: Callable[..., Result], *arguments: Any) -> Result:
    return function(*arguments)


def within(module: Any, function: Callable[..., Result], *arguments: Any) -> Result:
    """What a function finds that reads the module's own weights (of a unit; not those of the units
    inside it). Where they are in parts, they are whole meanwhile, in the backward pass too."""
    run = getattr(module, RUN, None)
    found: Result = function(*arguments) if run is None else run(function, *arguments)
    return found


@contextmanager
def whole(model: Any) -> Iterator[None]:
    """All weights whole for the length of a block. Every rank enters it; inside, none needs the
    others."""
    from torch.distributed.fsdp import FSDPModule

    units = [m for m in model.modules() if isinstance(m, FSDPModule)]
    for unit in units:
        unit.unshard()
    try:
        yield
    finally:
        for unit in units:
            unit.reshard()


Around = Callable[[], AbstractContextManager[None]]
"""`Peers.transfer`, or nothing where no tensor is in parts."""


@torch.no_grad()
def gathered(tensors: Mapping[str, Tensor], around: Around = nullcontext) -> dict[str, Tensor]:
    """Whole tensors, those in parts gathered onto the CPU one at a time: every rank takes part."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.detach()
        if in_parts(tensor):
            with around():
                found[name] = tensor.detach().full_tensor().cpu()  # type: ignore[attr-defined]
    return found


def in_parts(tensor: Tensor) -> bool:
    """Whether each rank has a part of it."""
    return hasattr(tensor, "full_tensor")  # DTensor, whose import costs what one process spares


def own_part(value: Tensor, like: Tensor) -> Tensor:
    """A whole tensor, or of it what belongs beside this rank's part of `like`; no rank needs the
    others."""
    if not in_parts(like) or value.shape != like.shape:
        return value
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(like, DTensor)
    return distribute_tensor(value, like.device_mesh, like.placements, src_data_rank=None)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of a tensor, as memory that can be written to; a whole one itself."""
    return tensor.to_local() if in_parts(tensor) else tensor  # type: ignore[attr-defined]
