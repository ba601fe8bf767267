"""Transformers' continuous batching: a completion that ends makes room for the next one."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.objective.settings import setting
from grpolab.rng import derive, global_stream
from grpolab.sampling.base import Draw, Sampler, Samples, finish
from grpolab.sampling.hf import warpers
from grpolab.sampling.stops import Stops

if TYPE_CHECKING:
    from grpolab.policy.policy import Policy

PAGE = {"cpu": 16}  # tokens of a cache page; elsewhere what paged flash attention wants: 256
SPARE = 1.25  # cache beyond what `rows` completions need: below 15 % free, none is admitted
SCORED_AT_ONCE = 8192  # tokens of a forward pass that scores completions


@dataclass(frozen=True)
class Continuous(Sampler):
    """Transformers' continuous batching (`ContinuousBatchingManager`) over a paged cache.

    `rows` completions run at a time; when one ends, the next takes its place, so that no place
    waits for the longest. Each of a prompt's G completions is a request of its own; whole pages of
    a prompt that an earlier request has filled are shared. The attention is the model's own (sdpa,
    eager or flash_attention_2), put back afterwards. Only with flash attention does a token read
    its own completion alone: sdpa and eager compute every row's scores against every row and mask
    them, at a cost in `rows`², so there this is a check of `static` and no rival.

    Its noise is torch's global generator, on the same named stream, and restored; the requests are
    all queued before the first step, so the same seed gives the same samples on one machine, though
    not those of `static` or `hf`. `sampler_logps` are the engine's own; where the trainer evaluates
    another distribution, a forward pass over the completions adds its log-probs. The manager, its
    cache and its thread last for one call. TRL (use_transformers_continuous_batching) samples so
    too, asks for no log-probs, and lets the requests arrive while the first steps run.
    """

    name: ClassVar[str] = "continuous"

    rows: int = setting(64, "completions that run at once", ge=1)
    batch_tokens: int = setting(1024, "tokens of one step, prompts included", ge=1)

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        outputs = self._run(policy, prompts, draw)
        width = max(len(o.generated_tokens) for o in outputs)
        shape = (len(outputs), width)
        dtype = torch.promote_types(policy.dtype, torch.float32)
        ids = torch.full(shape, policy.pad_id)
        logps = torch.zeros(shape, dtype=dtype)
        stops = Stops(self.stop, policy.encoder.tokenizer, len(outputs)) if self.stop else None
        for row, output in enumerate(outputs):
            tokens = output.generated_tokens
            ids[row, : len(tokens)] = torch.tensor(tokens)
            logps[row, : len(tokens)] = torch.tensor(output.logprobs, dtype=dtype)
            if stops is not None:
                stops.feed(row, tokens)
        ids, logps = ids.to(policy.device), logps.to(policy.device)
        stopped = None if stops is None else stops.places(policy.device)
        mask, truncated = finish(ids, torch.tensor(policy.end_ids, device=policy.device), stopped)
        ids, logps = ids.where(mask, policy.pad_id), logps.where(mask, 0.0)
        # The engine's log-probs are of the policy itself where it is greedy
        if self.evaluates_policy if draw.greedy else self.matched:
            evaluated = logps
        else:
            evaluated = self._scored(policy, prompts, ids, mask).where(mask, 0.0)
        sampled = torch.zeros_like(logps) if draw.greedy else logps
        return Samples(ids, mask, truncated, sampled, evaluated)

    def _run(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> list[Any]:
        """What the engine gives for each of the N completions."""
        from transformers import GenerationConfig

        generation = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=not draw.greedy,
            eos_token_id=policy.end_ids,
            pad_token_id=policy.pad_id,
            **({} if draw.greedy else warpers(self)),
        )
        seed = derive(draw.seed, "sampling", *draw.indices)
        requests = [
            request(str(row), prompts[row // draw.samples], self, policy)
            for row in range(len(prompts) * draw.samples)
        ]
        longest = max(len(p) for p in prompts) + self.max_new_tokens
        engine = engine_config(self, policy.device.type, longest, len(requests), seed)
        stream = global_stream(draw.seed, "sampling", *draw.indices)
        with stream, small_heap(), manager_of(policy, generation, engine) as manager:
            for one in requests:
                manager.input_queue.put(one)
            manager.start()
            return collected(manager, len(requests))

    def _scored(
        self, policy: Policy, prompts: Sequence[Sequence[int]], ids: Tensor, mask: Tensor
    ) -> Tensor:
        """[N, T] log-probs under what the trainer evaluates."""
        lengths = torch.tensor([len(p) for p in prompts])
        padded = torch.full((len(prompts), int(lengths.max())), policy.pad_id)
        for row, prompt in enumerate(prompts):
            padded[row, : len(prompt)] = torch.tensor(list(prompt))
        samples = len(ids) // len(prompts)
        padded = padded.repeat_interleave(samples, 0).to(policy.device)
        lengths = lengths.repeat_interleave(samples).to(policy.device)
        rows = max(1, SCORED_AT_ONCE // (padded.shape[1] + ids.shape[1]))
        parts = [torch.split(part, rows) for part in (padded, lengths, ids, mask)]
        model = policy.sampling_model
        scored = [
            policy.token_logps(*part, model=model, evaluation=self.evaluation()).logps
            for part in zip(*parts, strict=True)
        ]
        return torch.cat(scored)


def request(name: str, prompt: Sequence[int], sampler: Continuous, policy: Policy) -> Any:
    """A request that ends at stop strings too, by the engine's own bookkeeping."""
    from transformers.generation.continuous_batching import RequestState, RequestStatus

    stops = Stops(sampler.stop, policy.encoder.tokenizer, 1) if sampler.stop else None

    class Request(RequestState):  # type: ignore[misc]  # Transformers is untyped
        def update_and_check_completion(self, token_id: int, logprob: float | None) -> bool:
            ended: bool = super().update_and_check_completion(token_id, logprob)
            if not ended and stops is not None and stops.feed(0, [token_id]):
                self.status = RequestStatus.FINISHED
                return True
            return ended

    return Request(
        request_id=name,
        initial_tokens=list(prompt),
        max_new_tokens=sampler.max_new_tokens,
        eos_token_id=policy.end_ids,
    )


def engine_config(sampler: Continuous, device: str, longest: int, requests: int, seed: int) -> Any:
    """The engine's settings: a cache for as many completions of the longest size as run at once."""
    from transformers.generation.configuration_utils import ContinuousBatchingConfig

    page = PAGE.get(device, 256)
    running = min(sampler.rows, requests)
    return ContinuousBatchingConfig(
        page_size=page,
        num_blocks=int(SPARE * running * (-(-longest // page) + 1)) + 1,
        max_batch_tokens=sampler.batch_tokens,
        max_requests_per_batch=running,
        use_cuda_graph=False,  # a graph would have to be captured anew at every call
        use_async_batching=False,
        return_logprobs=True,
        seed=seed,
        auto_switch_to_flash=False,  # may fetch a kernel, and leaves the attention trained with
    )


@contextmanager
def manager_of(policy: Policy, generation: Any, engine: Any) -> Iterator[Any]:
    """The engine on the policy's sampling model, whose attention is put back whatever happens."""
    model = policy.sampling_model
    if policy.encoder.settings.lora is not None:
        model = model.get_base_model()
    attention = model.config._attn_implementation
    log = logging.getLogger("ContinuousBatchingLogger")
    level = log.level
    log.setLevel(logging.CRITICAL)  # what fails is raised; min-p is warned of, and right
    try:
        manager = model.init_continuous_batching(
            generation_config=generation, continuous_batching_config=engine
        )
        try:
            yield manager
        finally:
            manager.stop(block=True, hard_stop=True)
            manager.destroy()
    except (ValueError, MemoryError, NotImplementedError) as error:
        raise refusal(policy, str(error)) from error
    finally:
        log.setLevel(level)
        if model.config._attn_implementation != attention:
            model.set_attn_implementation(attention)


@contextmanager
def small_heap() -> Iterator[None]:
    """The engine collects garbage three times as it stops: over what it made itself, in here,
    instead of over everything that is loaded, which takes seconds."""
    if gc.get_freeze_count():
        yield
        return
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def collected(manager: Any, count: int) -> list[Any]:
    """Outputs of requests "0" … "count − 1", in order, as soon as all have ended."""
    found: dict[str, Any] = {}
    while len(found) < count:
        output = manager.get_result(timeout=1)
        if output is None and not manager.is_running():
            raise ValueError("its thread ended early")
        if output is None:
            continue
        if output.error is not None:
            raise ValueError(output.error)
        found[output.request_id] = output
    return [found[str(row)] for row in range(count)]


def refusal(policy: Policy, reason: str) -> ConfigError:
    """One sentence on why the engine does not run."""
    lines = reason.strip().splitlines() or ["no reason given"]
    settings = policy.encoder.settings
    return ConfigError(
        f"sampler: continuous given with model.name={settings.name} on {policy.device.type}, which "
        f"Transformers' continuous batching does not run ({lines[0]}); allowed: static or hf."
    )
