"""Transformers' side of a benchmark: `model.generate` on the same prompts."""

from __future__ import annotations

import time
from pathlib import Path

import torch

from grpolab.bench import recipe
from grpolab.bench.channel import Line, peak_gib, wait_for, work_of
from grpolab.policy.loading import end_tokens, load_model
from grpolab.policy.policy import Encoder, pick_device, pick_dtype
from grpolab.sampling.base import pad_left
from grpolab.training.loop import prepare_torch


class Generate:
    """The model in the benchmark's dtype, and `generate` as a user would call it."""

    def __init__(self, spec: Line) -> None:
        from transformers import GenerationConfig

        self.work = work = work_of(spec)
        self.run = run = recipe.bind(work, spec["overrides"], Path(spec["folder"]))
        prepare_torch(run)
        torch.use_deterministic_algorithms(False)
        torch.manual_seed(work.seed)
        encoder = Encoder(run.model)
        self.device = pick_device(run.hardware.device)
        dtype = pick_dtype(work.dtype, self.device)
        self.model = load_model(encoder, dtype, run.seed).to(self.device).eval()
        ends = end_tokens(self.model, encoder.tokenizer)
        pad = encoder.tokenizer.pad_token_id
        self.pad_id, self.end_ids = ends[0] if pad is None else pad, ends
        self.config = GenerationConfig(
            max_new_tokens=work.max_new_tokens,
            min_new_tokens=work.max_new_tokens if work.forced else None,
            do_sample=True,
            temperature=run.sampler.temperature,
            top_k=0,
            top_p=1.0,
            eos_token_id=ends,
            pad_token_id=self.pad_id,
        )
        examples = recipe.load_examples(run, work, encoder)
        drawn = recipe.step_examples(run, examples, work.steps + 1)
        self.texts = [e.prompt for e in drawn]
        self.prompts = encoder.encode(self.texts)
        self.wait = wait_for(self.device.type) or (lambda: None)
        self.done = 0

    def about(self) -> Line:
        """What the first reply says."""
        return {"device": self.device.type}

    @torch.no_grad()
    def step(self) -> Line:
        """Samples a group for each prompt of the next step."""
        rows = slice(self.done * self.work.prompts, (self.done + 1) * self.work.prompts)
        self.done += 1
        prompts = self.prompts[rows]
        began = time.perf_counter()
        ids, mask = pad_left(prompts, self.pad_id)
        ids = ids.repeat_interleave(self.work.group_size, 0).to(self.device)
        mask = mask.repeat_interleave(self.work.group_size, 0).to(self.device)
        output = self.model.generate(
            input_ids=ids, attention_mask=mask, generation_config=self.config
        )
        self.wait()
        seconds = time.perf_counter() - began
        return {
            "seconds": seconds,
            "phases": {"sample": seconds},
            "lengths": self._lengths(output[:, ids.shape[1] :]),
            "prompt_lengths": [len(p) for p in prompts],
            "prompts": self.texts[rows],
            "peak_gib": peak_gib(),
        }

    def _lengths(self, tokens: torch.Tensor) -> list[int]:
        """[N] tokens up to and with each row's end, of [N, T]."""
        ends = torch.isin(tokens, torch.tensor(self.end_ids, device=tokens.device))
        open_ = (ends.long().cumsum(dim=1) - ends.long()) == 0
        return [int(n) for n in open_.sum(dim=1)]
