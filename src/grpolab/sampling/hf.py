"""Transformers' own `generate`: the independent check of `static`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

import torch

from grpolab.policy.policy import Policy
from grpolab.rng import global_stream
from grpolab.sampling.base import Draw, Sampler, Samples, finish, pad_left, token_logp


@dataclass(frozen=True)
class HF(Sampler):
    """`model.generate`, with the log-probs computed from the scores it returns.

    Its noise is torch's global generator (put on the same named stream, and restored), so samples
    differ from those of `static` though their distribution does not.
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
            **({} if draw.greedy else self._warpers()),
        )
        model = policy.sampling_model
        with global_stream(draw.seed, "sampling", *draw.indices), plain_defaults(model):
            output = model.generate(input_ids=ids, attention_mask=mask, generation_config=config)
        tokens = output.sequences[:, ids.shape[1] :]
        valid, truncated = finish(tokens, torch.tensor(policy.end_ids, device=policy.device))
        zero = torch.zeros(tokens.shape, device=policy.device)
        sampled, plain = zero.clone(), zero.clone()
        for t, (scores, logits) in enumerate(zip(output.scores, output.logits, strict=True)):
            sampled[:, t] = 0.0 if draw.greedy else token_logp(scores, tokens[:, t])
            plain[:, t] = token_logp(logits, tokens[:, t])
        return Samples(
            tokens.where(valid, policy.pad_id),
            valid,
            truncated,
            sampled.where(valid, zero),
            plain.where(valid, zero),
        )

    def _warpers(self) -> dict[str, float | int | None]:
        return {
            "temperature": self.temperature,
            "top_k": self.top_k,  # 0 switches off; None would be the default of 50
            "top_p": self.top_p,
            "min_p": self.min_p or None,
        }


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
