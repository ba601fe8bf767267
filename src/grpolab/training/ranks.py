"""The processes that train one run together: what they share out, and what they tell each other.

`torchrun --nproc-per-node 2 -m grpolab train …` starts one process per device. Prompts are split
over them, each group whole; every rank then holds all rollouts and computes whatever follows from
the whole batch itself, so that formulas see the global batch and need to know nothing of ranks.
Gradients are parts of one global loss: they are summed, not averaged.

One exchange of bytes is behind everything. It says first whether its rank is well, and no transfer
between devices begins without one: an error anywhere reaches all ranks at the same place, and none
waits for one that is gone. What is exchanged is JSON and safetensors, never a pickle.
"""

from __future__ import annotations

import json
import os
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, NoReturn

import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.training.failures import RankFailed, RankLost, TrainingFailed
from grpolab.training.launched import world_size

TIMEOUT_SECONDS = 1800.0
"""How long a rank waits for another one; GRPOLAB_RANK_TIMEOUT changes it."""
BUCKET = 2**26  # numbers that are summed in one transfer


class Ranks:
    """One process alone: every method hands back what it was given."""

    rank = 0
    size = 1

    @property
    def alone(self) -> bool:
        """Whether there is no other rank."""
        return self.size == 1

    @property
    def first(self) -> bool:
        """Whether this is the rank that writes."""
        return self.rank == 0

    # -- what is split -------------------------------------------------------------------------

    def part(self, count: int) -> slice:
        """This rank's neighbours among `count` things: all ranks' parts in a row are the whole."""
        return slice(self.rank * count // self.size, (self.rank + 1) * count // self.size)

    def share(self, sizes: Sequence[int]) -> list[int]:
        """The places of this rank's things, so that every rank has about as much to do: the largest
        first, each to whoever has least."""
        loads = [0] * self.size
        own = []
        for place in sorted(range(len(sizes)), key=lambda p: (-sizes[p], p)):
            rank = loads.index(min(loads))
            loads[rank] += max(1, sizes[place])
            if rank == self.rank:
                own.append(place)
        return sorted(own)

    # -- what is exchanged: every rank calls these in the same order ---------------------------

    def gather(self, value: Any) -> list[Any]:
        """Every rank's value (as JSON knows them, and NaN), by rank."""
        return [value]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        """Every rank's tensors, by rank; those of other ranks on the CPU."""
        return [dict(tensors)]

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over the ranks into each tensor; same shapes on all ranks."""

    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Sums `grad` over the ranks; a rank without one adds nothing."""

    # -- an engine whose transfers are its own --------------------------------------------------

    def mesh(self, device: str) -> Any:
        """All ranks as a one-dimensional `DeviceMesh`."""
        raise ValueError("one process alone has no mesh")

    @contextmanager
    def transfer(self) -> Iterator[None]:
        """Around a transfer that every rank takes part in: it begins where all are well."""
        yield

    # -- how it ends ---------------------------------------------------------------------------

    @contextmanager
    def shared_fate(self) -> Iterator[None]:
        """An error in the block ends the block of every rank."""
        yield

    def last_word(self, word: str | None = None) -> str | None:
        """What the first rank has to say in the end; None where it is not there to say it."""
        return word


ALONE = Ranks()


class Group(Ranks):
    """The processes of a torch.distributed process group."""

    def __init__(self) -> None:
        from torch import distributed

        self.rank, self.size = distributed.get_rank(), distributed.get_world_size()
        self._over = self._lost = False

    def gather(self, value: Any) -> list[Any]:
        return [json.loads(data) for data in self._exchange(json.dumps(value).encode())]

    def gather_tensors(self, tensors: Mapping[str, Tensor]) -> list[dict[str, Tensor]]:
        from safetensors.torch import load, save

        own = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        return [load(data) for data in self._exchange(save(own))]

    def mesh(self, device: str) -> Any:
        from torch.distributed.device_mesh import init_device_mesh

        return init_device_mesh(device, (self.size,))

    @contextmanager
    def transfer(self) -> Iterator[None]:
        self._exchange(b"")
        with self._listening():
            yield

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        self._exchange(b"")
        self._sum(tensors)

    @torch.no_grad()
    def sum_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        parameters = list(parameters)
        have = self._exchange(bytes(p.grad is not None for p in parameters))
        gradients = []
        for parameter, known in zip(parameters, zip(*have, strict=True), strict=True):
            if any(known):
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
                gradients.append(parameter.grad)
        self._sum(gradients)

    def _sum(self, tensors: Sequence[Tensor]) -> None:
        """Some at a time, joined into one vector of float32 at least."""
        from torch import distributed

        with self._listening():
            for some in buckets(tensors):
                wide = torch.promote_types(some[0].dtype, torch.float32)
                flat = torch.cat([t.reshape(-1).to(wide) for t in some])
                distributed.all_reduce(flat)
                parts = torch.split(flat, [t.numel() for t in some])
                for tensor, summed in zip(some, parts, strict=True):
                    tensor.copy_(summed.view_as(tensor))

    # -- errors --------------------------------------------------------------------------------

    @contextmanager
    def shared_fate(self) -> Iterator[None]:
        try:
            yield
        except BaseException as error:
            if not self._over:
                self._announce(error)
            raise

    def last_word(self, word: str | None = None) -> str | None:
        if self._lost:
            return None
        with suppress(RankFailed, RankLost, TrainingFailed, ConfigError):
            found: str | None = self.gather(word)[0]
            return found
        return None

    def _announce(self, error: BaseException) -> None:
        """Takes part in the exchange that the others are waiting in, with the bad news."""
        news = {
            "kind": next((k for k, cls in KINDS.items() if isinstance(error, cls)), "other"),
            "text": str(error) if isinstance(error, tuple(KINDS.values())) else named(error),
            "traceback": "".join(traceback.format_exception(error)),
        }
        self._over = True
        with suppress(RankLost):
            self._exchange(json.dumps(news).encode(), failed=True)

    def _exchange(self, data: bytes, *, failed: bool = False) -> list[bytes]:
        """Every rank's bytes, by rank.

        Raises:
            RankFailed, TrainingFailed, ConfigError: another rank met an error.
            RankLost: another rank is gone.
        """
        with self._listening():
            heads = [h.tolist() for h in gathered(torch.tensor([len(data), int(failed)]))]
            width = max(size for size, _ in heads)
            body = torch.zeros(width, dtype=torch.uint8)
            if data:
                body[: len(data)] = torch.frombuffer(bytearray(data), dtype=torch.uint8)
            bodies = gathered(body) if width else [body] * self.size
        found = [b[:size].numpy().tobytes() for b, (size, _) in zip(bodies, heads, strict=True)]
        ill = next((rank for rank, (_, bad) in enumerate(heads) if bad), None)
        if ill is not None and not failed:
            self._over = True
            raise_elsewhere(ill, json.loads(found[ill]))
        return found

    @contextmanager
    def _listening(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # all that the backends raise
            self._over = self._lost = True
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            raise RankLost(f"another rank is gone or does not answer ({reason})") from error


KINDS: dict[str, type[Exception]] = {"training": TrainingFailed, "config": ConfigError}
"""Errors that mean the same on every rank; the others become a `RankFailed`."""


def raise_elsewhere(rank: int, news: Mapping[str, str]) -> NoReturn:
    """Raises another rank's error here, with its traceback as a note."""
    error = KINDS.get(news["kind"], RankFailed)(f"rank {rank}: {news['text']}")
    error.add_note(f"On rank {rank}:\n{news['traceback']}")
    raise error


def named(error: BaseException) -> str:
    """An error's type and text."""
    return f"{type(error).__name__}: {error}"


def gathered(own: Tensor) -> list[Tensor]:
    """Every rank's CPU tensor of one shape."""
    from torch import distributed

    found = [torch.empty_like(own) for _ in range(distributed.get_world_size())]
    distributed.all_gather(found, own)
    return found


def buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Tensors in order, of one dtype and up to `BUCKET` numbers at a time."""
    some: list[Tensor] = []
    count = 0
    for tensor in tensors:
        full = count + tensor.numel() > BUCKET
        if some and (full or some[0].dtype != tensor.dtype):
            yield some
            some, count = [], 0
        some.append(tensor)
        count += tensor.numel()
    if some:
        yield some


# -- joining ---------------------------------------------------------------------------------------


@contextmanager
def joined(device: str) -> Iterator[Ranks]:
    """The ranks that the environment names, as torchrun sets it; one process alone costs nothing.

    Args:
        device: `hardware.device`. With CUDA each rank takes the device of its LOCAL_RANK and
            gradients go through nccl; ranks that share one device, and CPUs, use gloo.
    """
    if world_size() == 1:
        yield ALONE
        return
    from torch import distributed

    missing = [n for n in ("RANK", "MASTER_ADDR", "MASTER_PORT") if not os.environ.get(n)]
    if missing:
        raise ConfigError(
            f"WORLD_SIZE: {world_size()} given in the environment without {', '.join(missing)}; "
            "allowed: what torchrun sets, or no WORLD_SIZE."
        )
    seconds = float(os.environ.get("GRPOLAB_RANK_TIMEOUT") or TIMEOUT_SECONDS)
    distributed.init_process_group(backend(device), timeout=timedelta(seconds=seconds))
    try:
        yield Group()
    finally:
        distributed.destroy_process_group()


def backend(device: str) -> str:
    """What carries the tensors; on CUDA this rank's device is chosen on the way."""
    cuda = device == "cuda" or (device == "auto" and torch.cuda.is_available())
    if not cuda:
        if device == "mps" or (device == "auto" and torch.backends.mps.is_available()):
            raise ConfigError(
                f"hardware.device: {device} given with {world_size()} ranks, which MPS cannot "
                "connect; allowed: cpu or cuda."
            )
        return "gloo"
    count = torch.cuda.device_count()
    torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")) % count)
    shared = int(os.environ.get("LOCAL_WORLD_SIZE") or 1) > count
    return "gloo" if shared else "cpu:gloo,cuda:nccl"
