"""This project's sampler: each prompt is prefilled once for its whole group, the cache is
allocated once, finished rows leave the batch, and log-probs are captured while sampling."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, Protocol

import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.rng import generator
from grpolab.sampling.base import Draw, Sampler, Samples, choose, finish, token_logp
from grpolab.sampling.stops import Stops

if TYPE_CHECKING:
    from grpolab.policy.policy import Policy

COMPACT_BELOW = 0.75  # rows alive / rows run, below which a cache is rebuilt without the rest
SIZES = {"cpu": 16}
"""Numbers of rows that a call runs through where dropping one is cheap: at each new one oneDNN
compiles its kernels, which took a third of a small model's first steps. Elsewhere: any."""
CHECK_EVERY = {"cpu": 1}  # elsewhere asking how many rows are alive waits for the device: every 8


class Engine(Protocol):
    """Prefill and decode steps of one call."""

    moves_cheaply: bool
    """Whether dropping a row costs less than running it."""

    def prefill(self) -> Tensor:
        """Logits [N, V] after the prompts, N = P·samples, prompt-major."""

    def decode(self, tokens: Tensor) -> Tensor:
        """Logits [R, V] after the next token of every running row [R]."""

    def keep(self, rows: Tensor) -> None:
        """Only these rows [R'], in this order, go on."""


@dataclass(frozen=True)
class Static(Sampler):
    """Prefill once per group, one allocated cache, finished rows leave, log-probs on the way."""

    name: ClassVar[str] = "static"
    splits: ClassVar[bool] = True

    cuda_graphs: bool = setting(
        False, "decode steps of fixed shapes, which CUDA replays as graphs; slower elsewhere"
    )

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        return _Decoding(self, policy, prompts, draw).run()


def make_engine(
    policy: Policy,
    prompts: Sequence[Sequence[int]],
    samples: int,
    *,
    room: int,
    recorded: bool = False,
) -> Engine:
    """Our own decoder where the family is known, Transformers' forward for all others.

    Args:
        recorded: fixed shapes, as CUDA graphs where there is CUDA; our own decoder alone.

    Raises:
        ConfigError: recorded, and not our own decoder.
    """
    decoder = policy.decoder
    if decoder is not None:
        from grpolab.sampling.decoding import DecoderEngine
        from grpolab.sampling.recorded import RecordedEngine

        kind = RecordedEngine if recorded else DecoderEngine
        return kind(decoder, prompts, samples=samples, room=room, dtype=policy.dtype)
    if recorded:
        settings = policy.encoder.settings
        raise ConfigError(
            f"sampler.cuda_graphs: true given with model.name={settings.name}, which runs through "
            "Transformers' own forward here; allowed: false."
        )
    from grpolab.sampling.cached import CacheEngine

    return CacheEngine(
        policy.sampling_model,
        prompts,
        samples=samples,
        room=room,
        pad_id=policy.pad_id,
        device=policy.device,
    )


class _Decoding:
    """The state of one call: rows still running, the engine that runs them, and what was written
    so far."""

    def __init__(
        self, sampler: Static, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw
    ) -> None:
        self.sampler, self.policy, self.draw = sampler, policy, draw
        self.device = policy.device
        n, width = len(prompts) * draw.samples, sampler.max_new_tokens
        source = generator(draw.seed, "sampling", *draw.indices)
        whole = (draw.total or len(prompts)) * draw.samples
        start = draw.first * draw.samples
        uniforms = torch.rand((whole, width), generator=source)[start : start + n]
        self.uniforms = uniforms.to(self.device)
        self.end_ids = torch.tensor(policy.end_ids, device=self.device)
        self.ids = torch.full((n, width), policy.pad_id, device=self.device)
        dtype = torch.promote_types(policy.dtype, torch.float32)
        self.logps = torch.zeros((n, width), dtype=dtype, device=self.device)
        self.policy_logps = torch.zeros_like(self.logps)
        self.rows = torch.arange(n, device=self.device)  # output row of each running row
        self.alive = torch.ones(n, dtype=torch.bool, device=self.device)
        self.told = torch.zeros_like(self.alive)  # rows whose end was said
        self.stops: Stops | None = None
        if sampler.stop:
            self.stops = Stops(sampler.stop, policy.encoder.tokenizer, n)
        self.searched = 0  # tokens of every running row that were searched for stop strings
        self.engine = make_engine(
            policy, prompts, draw.samples, room=width, recorded=sampler.cuda_graphs
        )

    def run(self) -> Samples:
        logits = self.engine.prefill()
        check_every = CHECK_EVERY.get(self.device.type, 8)
        for t in range(self.sampler.max_new_tokens):
            tokens = self._choose(logits, t)
            last = t + 1 == self.sampler.max_new_tokens
            if last or (t + 1) % check_every == 0:
                self._search(t + 1)
                if not last:
                    self._tell(t + 1)
                    tokens = self._compact(tokens)
            if last or not len(tokens):
                break
            logits = self.engine.decode(tokens)
        stopped = None if self.stops is None else self.stops.places(self.device)
        mask, truncated = finish(self.ids, self.end_ids, stopped)
        width = int(mask.sum(dim=1).max())
        mask = mask[:, :width]
        return Samples(
            self.ids[:, :width].where(mask, self.policy.pad_id),
            mask,
            truncated,
            self.logps[:, :width].where(mask, 0.0),
            self.policy_logps[:, :width].where(mask, 0.0),
        )

    def _choose(self, logits: Tensor, t: int) -> Tensor:
        """Picks and records token t of every running row [n]."""
        if self.draw.greedy:
            tokens = logits.argmax(dim=-1)
        else:
            warped = self.sampler.warp(logits)
            tokens, logps = choose(warped, self.uniforms[self.rows, t])
            self.logps[self.rows, t] = logps
        if self.sampler.matched and not self.draw.greedy:
            self.policy_logps[self.rows, t] = self.logps[self.rows, t]
        else:
            evaluated, _ = self.sampler.evaluate(logits, tokens)
            self.policy_logps[self.rows, t] = token_logp(evaluated, tokens)
        self.ids[self.rows, t] = tokens
        self.alive &= ~torch.isin(tokens, self.end_ids)
        return tokens

    def _search(self, seen: int) -> None:
        """Ends the rows whose newest tokens, of `seen` in all, complete a stop string."""
        if self.stops is None:
            return
        new = self.ids[self.rows, self.searched : seen].tolist()
        rows = zip(self.rows.tolist(), new, strict=True)
        ended = [self.stops.feed(row, tokens) for row, tokens in rows]
        self.alive &= ~torch.tensor(ended, device=self.device)
        self.searched = seen

    def _tell(self, seen: int) -> None:
        """Says which completions, of `seen` tokens at most, have ended since it last did."""
        if self.draw.finished is None:
            return
        over = self.rows[~self.alive & ~self.told[self.rows]]
        if not len(over):
            return
        self.told[over] = True
        stopped = None if self.stops is None else self.stops.places(self.device)[over]
        ids = self.ids[over, :seen]
        mask, _ = finish(ids, self.end_ids, stopped)
        first = self.draw.first * self.draw.samples
        self.draw.finished([first + row for row in over.tolist()], ids, mask)

    def _compact(self, tokens: Tensor) -> Tensor:
        """Drops finished rows once enough have finished; the tokens of those that go on."""
        count = int(self.alive.sum())
        if count == 0:
            return tokens[:0]
        stay = self._staying(count, len(tokens))
        if stay == len(tokens):
            return tokens
        fills = (~self.alive).cumsum(0) <= stay - count  # finished ones that make up the number
        keep = running_first(self.alive | fills)
        self.engine.keep(keep)
        self.rows, self.alive = self.rows[keep], self.alive[keep]
        return tokens[keep]

    def _staying(self, alive: int, running: int) -> int:
        """How many of the running rows stay, of which so many are alive."""
        if self.engine.moves_cheaply:
            most = SIZES.get(self.device.type, len(self.ids))
            size = -(-len(self.ids) // most)
            return min(running, -(-alive // size) * size)
        return alive if alive <= COMPACT_BELOW * running else running


def running_first(alive: Tensor) -> Tensor:
    """[R'] the rows that go on, moving as few as possible: each hole is filled from the end."""
    count = int(alive.sum())
    rows = torch.arange(count, device=alive.device)
    rows[~alive[:count]] = alive[count:].nonzero().squeeze(1) + count
    return rows
