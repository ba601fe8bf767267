"""Transformers' own `generate`: the independent check of `static`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from grpolab.rng import global_stream
from grpolab.sampling.base import Draw, Sampler, Samples, finish, pad_left, token_logp
from grpolab.sampling.stops import Stops

if TYPE_CHECKING:
    from grpolab.policy.policy import Policy


@dataclass(frozen=True)
class HF(Sampler):
    """`model.generate`, with the log-probs computed from the scores it returns.

    Its noise is torch's global generator (put on the same named stream, and restored), so samples
    differ from those of `static` though their distribution does not. `generate` works on logits in
    float32.
    """

    name: ClassVar[str] = "hf"

    @torch.no_grad()
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        from transformers import GenerationConfig

        ids, mask = pad_left(prompts, policy.pad_id)
        ids = ids.repeat_interleave(draw.samples, 0).to(policy.device)
        mask = mask.repeat_interleave(draw.samples, 0).to(policy.device)
        config = GenerationConfig(
            max_new_tokens=self.max_new_tokens,
            do_sample=not draw.greedy,
            eos_token_id=policy.end_ids,
            pad_token_id=policy.pad_id,
            output_scores=True,
            output_logits=True,
            return_dict_in_generate=True,
            **({} if draw.greedy else warpers(self)),
        )
        stops = Stops(self.stop, policy.encoder.tokenizer, len(ids)) if self.stop else None
        model = policy.sampling_model
        with global_stream(draw.seed, "sampling", *draw.indices), plain_defaults(model):
            output = model.generate(
                input_ids=ids,
                attention_mask=mask,
                generation_config=config,
                stopping_criteria=None if stops is None else stopping_criteria(stops),
            )
        tokens = output.sequences[:, ids.shape[1] :]
        valid, truncated = finish(
            tokens,
            torch.tensor(policy.end_ids, device=policy.device),
            None if stops is None else stops.places(policy.device),
        )
        zero = torch.zeros(tokens.shape, device=policy.device)
        sampled, evaluated = zero.clone(), zero.clone()
        for t, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True)):
            chosen = tokens[:, t]
            sampled[:, t] = 0.0 if draw.greedy else token_logp(scores, chosen)
            evaluated[:, t] = token_logp(self.evaluate(logits, chosen)[0], chosen)
        return Samples(
            tokens.where(valid, policy.pad_id),
            valid,
            truncated,
            sampled.where(valid, zero),
            evaluated.where(valid, zero),
        )


def warpers(sampler: Sampler) -> dict[str, float | int | None]:
    """The settings of `generate` that make its distribution the sampler's."""
    return {
        "temperature": sampler.temperature,
        "top_k": sampler.top_k,  # 0 switches off; None would be the default of 50
        "top_p": sampler.top_p,
        "min_p": sampler.min_p or None,
    }


def stopping_criteria(stops: Stops) -> Any:
    """Ends rows of `generate` at stop strings; Transformers' own criterion reads the vocabulary
    instead of the text, and knows nothing of what its decoder does to spaces."""
    from transformers import StoppingCriteria, StoppingCriteriaList

    class AtStops(StoppingCriteria):  # type: ignore[misc]  # Transformers is untyped
        def __call__(self, input_ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
            newest = input_ids[:, -1].tolist()
            ended = [stops.feed(row, [token]) for row, token in enumerate(newest)]
            return torch.tensor(ended, device=input_ids.device)

    return StoppingCriteriaList([AtStops()])


@contextmanager
def plain_defaults(model: Any) -> Iterator[None]:
    """`generate` fills in what its configuration leaves open from the model's own
    generation_config.json, a repetition penalty for one: here that file counts for nothing."""
    from transformers import GenerationConfig

    own = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own
