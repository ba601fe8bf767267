"""A reward model: any sequence classifier of Transformers."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from grpolab.objective.settings import setting
from grpolab.rewards.ahead import Ahead
from grpolab.rewards.base import Reward, RewardInputs, Scores
from grpolab.rewards.guard import Guard
from grpolab.tasks.base import Example

MISSING = "???"


@dataclass(frozen=True)
class Neural(Reward):
    """The score of an `AutoModelForSequenceClassification`, from the hub or a local folder.

    logits [N, C] → [N]: the logit of `label`, its sigmoid, or its softmax share over the C labels;
    then clipped to `clip`. A prompt and its completion go in as a chat of two messages if the
    model's tokenizer has a chat template, else as prompt + completion. An input that is too long
    loses its beginning, since the completion stands at the end.

    The model is loaded at the first call, once per instance, in evaluation mode and with
    safetensors weights only. Scores do not depend on `batch_size`, up to rounding. On the CPU, with
    a sampler on a GPU, completions are scored as soon as enough for a batch have ended (sampler
    static).

    Raises (at the first call):
        ConfigError: a model that cannot be loaded, has no trained classification head (its scores
            would be random) or has no such label.
    """

    name: ClassVar[str] = "neural"

    model: str = setting(MISSING, "Hub id or local folder of a sequence classifier.")
    revision: str = setting("main", "Revision on the hub.")
    score: Literal["logit", "sigmoid", "softmax"] = setting("logit", "From logits to the score.")
    label: int = setting(0, "Index of the label whose score counts.", ge=0)
    clip: list[float] | None = setting(None, "[low, high] of the score; null: not clipped.")
    batch_size: int = setting(16, "Completions in one forward pass.", ge=1)
    max_length: int | None = setting(None, "Longest input in tokens; null: the model's own.", ge=1)
    device: str = setting("auto", "auto: cuda where there is one; or cpu, cuda, cuda:1, mps, …")
    dtype: Literal["float32", "bfloat16", "float16"] = setting("float32", "Type of the weights.")

    def __post_init__(self) -> None:
        if self.clip is not None and (len(self.clip) != 2 or not self.clip[0] < self.clip[1]):
            raise ValueError(f"clip: {self.clip} is not allowed; allowed: [low, high], low < high")
        if self.device != "auto":
            try:
                torch.device(self.device)
            except RuntimeError as error:
                raise ValueError(
                    f"device: {self.device!r} given; allowed: auto, cpu, cuda, cuda:1, mps, …"
                ) from error

    def __call__(self, inputs: RewardInputs) -> Scores:
        """One score for each of the N completions."""
        classifier = self._classifier  # outside the guard: a model that cannot load ends the run
        pairs = list(zip(inputs.completions, inputs.examples, strict=True))
        texts = [(example.prompt, completion) for completion, example in pairs]
        scores = [math.nan] * len(texts)
        rest = []
        for index, pair in enumerate(pairs):
            begun = self._ahead.take(*pair)
            if begun is None or begun[0].exception() is not None:  # which fails again, or does not
                rest.append(index)
            else:
                scores[index] = begun[0].result()[begun[1]]
        # Alike lengths together: less padding.
        order = sorted(rest, key=lambda index: sum(map(len, texts[index])))
        for start in range(0, len(order), self.batch_size):
            chosen = order[start : start + self.batch_size]
            call = partial(self._batch, classifier, [texts[index] for index in chosen])
            for index, score in zip(chosen, self._guard.scores(call, len(chosen)), strict=True):
                scores[index] = score
        return Scores(scores)

    def looks_ahead(self, elsewhere: bool) -> bool:
        """Where the model has processors that the sampler does not use. On the sampler's own device
        there is nothing to gain."""
        return elsewhere and _device(self.device) == "cpu"

    def ahead(
        self, completions: Sequence[str], examples: Sequence[Example], elsewhere: bool
    ) -> None:
        """Scores every `batch_size` completions in a thread."""
        classifier = self._classifier
        self._waiting.extend(zip(completions, examples, strict=True))
        while len(self._waiting) >= self.batch_size:
            batch = self._waiting[: self.batch_size]
            del self._waiting[: self.batch_size]
            texts = [(example.prompt, completion) for completion, example in batch]
            scores = self._ahead.submit(partial(self._batch, classifier, texts))
            for place, (completion, example) in enumerate(batch):
                self._ahead.put(completion, example, scores, place)

    def forget(self) -> None:
        self._waiting.clear()
        self._ahead.forget()

    @cached_property
    def _waiting(self) -> list[tuple[str, Example]]:
        return []

    @cached_property
    def _ahead(self) -> Ahead[list[float]]:
        return Ahead(1)

    def _batch(self, classifier: Classifier, texts: Sequence[tuple[str, str]]) -> list[float]:
        logits = classifier.logits(texts)  # [B, C]
        if self.score == "softmax":
            logits = logits.softmax(dim=-1)
        scores = logits[:, self.label]  # [B]
        if self.score == "sigmoid":
            scores = scores.sigmoid()
        if self.clip is not None:
            scores = scores.clamp(*self.clip)
        return [float(score) for score in scores]

    @cached_property
    def _classifier(self) -> Classifier:
        return Classifier(self)

    @cached_property
    def _guard(self) -> Guard:
        return Guard(f"{self.name} ({self.model})")


class Classifier:
    """The loaded model and its tokenizer."""

    def __init__(self, settings: Neural) -> None:
        self._lock = threading.Lock()
        device = _device(settings.device)
        self.tokenizer, self.model = _load(settings)
        self.model = self.model.eval().to(device)
        self.model.requires_grad_(False)
        self.tokenizer.truncation_side = "left"
        self.pad_token_id: int | None = getattr(
            self.model.config.get_text_config(), "pad_token_id", None
        )
        _check_label(settings, self.model.config.num_labels)
        self.max_length = settings.max_length or self._own_limit()

    def text(self, prompt: str, completion: str) -> str:
        """What the model reads for one completion."""
        if not self.tokenizer.chat_template:
            return prompt + completion
        chat = [
            {"role": "user", "content": prompt},
            {"role": "assistant", "content": completion},
        ]
        return str(self.tokenizer.apply_chat_template(chat, tokenize=False))

    @torch.inference_mode()
    def logits(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        """B pairs of prompt and completion → float32 logits [B, C] on the CPU, for one thread at a
        time.

        A pair without a single token has no logits: NaN.
        """
        with self._lock:  # a batch's padding token stands in the model's configuration
            return self._logits(texts)

    def _logits(self, texts: Sequence[tuple[str, str]]) -> Tensor:
        tokens = self._tokens([self.text(prompt, completion) for prompt, completion in texts])
        some = [index for index, ids in enumerate(tokens) if ids]
        result = torch.full((len(texts), self.model.config.num_labels), torch.nan)  # [B, C]
        if some:
            result[some] = self._forward([tokens[index] for index in some])
        return result

    def _tokens(self, texts: list[str]) -> list[list[int]]:
        encoded = self.tokenizer(
            texts,
            truncation=self.max_length is not None,
            max_length=self.max_length,
            # A chat template writes its own special tokens.
            add_special_tokens=not self.tokenizer.chat_template,
        )
        return [list(ids) for ids in encoded["input_ids"]]

    def _forward(self, tokens: list[list[int]]) -> Tensor:
        pad = self._padding(tokens)
        for config in (self.model.config, self.model.config.get_text_config()):
            config.pad_token_id = pad
        longest = max(map(len, tokens))
        # On the right: a causal classifier reads its last token that is no padding.
        ids = torch.tensor([row + [pad] * (longest - len(row)) for row in tokens])  # [B, T]
        mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in tokens])
        device = self.model.device
        logits: Tensor = self.model(input_ids=ids.to(device), attention_mask=mask.to(device)).logits
        return logits.float().cpu()  # [B, C]

    def _padding(self, tokens: list[list[int]]) -> int:
        """The model's padding token; one that no input holds if it has none.

        The end token, the usual substitute, would make a causal classifier read another token in a
        batch than it reads for one input alone.
        """
        if self.pad_token_id is not None:
            return self.pad_token_id
        held = {token for row in tokens for token in row}
        return next(token for token in itertools.count() if token not in held)

    def _own_limit(self) -> int | None:
        limits = [
            self.tokenizer.model_max_length,
            getattr(self.model.config.get_text_config(), "max_position_embeddings", None),
        ]
        # Tokenizers without a limit say 10^30.
        known = [limit for limit in limits if limit is not None and 0 < limit < 10**9]
        return min(known) if known else None


def _load(settings: Neural) -> tuple[Any, Any]:
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    from grpolab.component import ConfigError

    where = {"revision": settings.revision, "trust_remote_code": False}
    try:
        tokenizer = AutoTokenizer.from_pretrained(settings.model, **where)
        # New weights, if any are made, come out of a stream of their own.
        with torch.random.fork_rng(devices=[]):
            model, report = AutoModelForSequenceClassification.from_pretrained(
                settings.model,
                use_safetensors=True,
                dtype=getattr(torch, settings.dtype),
                output_loading_info=True,
                **where,
            )
    except Exception as error:
        raise ConfigError(
            f"reward.model={settings.model!r}: cannot be loaded ({' '.join(str(error).split())}); "
            "allowed: a hub id or folder of a sequence classifier with safetensors weights"
        ) from error
    missing = sorted(report["missing_keys"])
    if missing:
        raise ConfigError(
            f"reward.model={settings.model!r}: has no weights for {', '.join(missing[:4])}, so its "
            "scores would be random; allowed: a trained sequence classifier"
        )
    return tokenizer, model


def _device(wanted: str) -> str:
    from grpolab.component import ConfigError

    cuda = torch.cuda.is_available()
    if wanted == "auto":
        return "cuda" if cuda else "cpu"
    if wanted.startswith("cuda") and not cuda:
        raise ConfigError(f"reward.device={wanted}: there is no GPU here; allowed: auto, cpu")
    return wanted


def _check_label(settings: Neural, labels: int) -> None:
    from grpolab.component import ConfigError

    if settings.label >= labels:
        raise ConfigError(
            f"reward.label={settings.label}: {settings.model} has {labels} label(s); "
            f"allowed: 0 to {labels - 1}"
        )
    if settings.score == "softmax" and labels == 1:
        raise ConfigError(
            f"reward.score=softmax: {settings.model} has one label, whose share is always 1; "
            "allowed: logit, sigmoid"
        )
