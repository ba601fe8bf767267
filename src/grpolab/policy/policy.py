"""The trained language model: loading, text ↔ tokens, and log-probabilities of given tokens."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpolab.component import ConfigError
from grpolab.config import Hardware, Model
from grpolab.policy.decoder import Decoder
from grpolab.policy.evaluation import Evaluate, Evaluation
from grpolab.policy.head import token_head
from grpolab.policy.layers import hidden_states
from grpolab.policy.loading import end_tokens, frozen, load_model, quiet, with_lora
from grpolab.policy.locate import locate
from grpolab.policy.packing import Packing, join_rows, pack
from grpolab.policy.sharding import Peers, gathered, shard, whole, within

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def pick_device(name: str) -> torch.device:
    """The device of `hardware.device`; auto: CUDA, then MPS, then CPU."""
    if name != "auto":
        available = {"cpu": True, "cuda": torch.cuda.is_available()}
        available["mps"] = torch.backends.mps.is_available()
        if not available[name]:
            usable = ", ".join(d for d, there in available.items() if there)
            raise ConfigError(f"hardware.device: no {name} here; allowed: auto, {usable}.")
        return torch.device(name)
    if torch.cuda.is_available():
        return torch.device("cuda")
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def pick_dtype(name: str, device: torch.device) -> torch.dtype:
    """The dtype of `hardware.dtype`; auto: bfloat16 on CUDA, else float32."""
    if name == "auto":
        name = "bfloat16" if device.type == "cuda" else "float32"
    return DTYPES[name]


@dataclass
class TokenLogps:
    """What a forward pass over given tokens yields; [n, T] each, float32 at least. All but
    `whole` and `logits` are of the distribution evaluated, π."""

    logps: Tensor
    entropy: Tensor
    """Of π at each position; no gradient."""
    logits: Tensor | None = None
    """[n, T, V] over the whole vocabulary, only where asked for."""
    collision: Tensor | None = None
    """[n, T] Σ_v π(v)², only where asked for; no gradient."""
    whole: Tensor | None = None
    """Log-probs over the whole vocabulary where π keeps a part of it; None: `logps` are that."""

    @property
    def kl_logps(self) -> Tensor:
        """[n, T] log-probs over the whole vocabulary, which the KL compares with the
        reference's."""
        return self.logps if self.whole is None else self.whole


class Encoder:
    """A tokenizer with the model's prompt format; needs no weights."""

    def __init__(self, settings: Model) -> None:
        from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

        quiet()
        self.settings = settings
        self.path = locate(settings.name)
        self.config: Any = self._loaded(AutoConfig, "config.json")
        self.tokenizer: Any = self._loaded(AutoTokenizer, "tokenizer")
        if type(self.config) not in AutoModelForCausalLM._model_mapping:
            raise ConfigError(
                f"model.name: {settings.name!r} is of the kind {self.config.model_type}, which "
                "generates no text; allowed: a causal language model."
            )

    def _loaded(self, auto: Any, part: str) -> Any:
        """A part of the model's folder, by Transformers.

        Raises:
            ConfigError: it cannot be loaded.
        """
        try:  # False and not unset: Transformers would ask on the terminal whether to run code
            return auto.from_pretrained(self.path, trust_remote_code=False)
        except Exception as error:  # files from elsewhere; tokenizers raises a bare Exception
            reason = next(iter(str(error).strip().splitlines()), "").rstrip(" .")
            reason += " …" if reason.endswith(":") else ""  # what follows stands on further lines
            if not reason or isinstance(error, KeyError):  # a name alone says nothing
                reason = f"{type(error).__name__} {reason}".strip()
            raise ConfigError(
                f"model.name: cannot load the {part} of {self.settings.name!r} ({reason}); "
                "allowed: tiny, a local folder, a hub id that can be reached, or a name that "
                "`grpolab fetch` has cached."
            ) from error

    @property
    def context(self) -> int:
        """Positions the model was built for."""
        return int(getattr(self.config, "max_position_embeddings", 0) or 1 << 30)

    def encode(self, prompts: Sequence[str]) -> list[list[int]]:
        """The tokens of each prompt, in the model's format."""
        return [self._encode_one(p) for p in prompts]

    def _encode_one(self, prompt: str) -> list[int]:
        use_chat = self.settings.template == "chat" or (
            self.settings.template == "auto" and self.tokenizer.chat_template is not None
        )
        if not use_chat:
            return list(self.tokenizer(prompt)["input_ids"])
        messages = [{"role": "user", "content": prompt}]
        if self.settings.system is not None:
            messages.insert(0, {"role": "system", "content": self.settings.system})
        ids = self.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tokenize=True, return_dict=True
        )["input_ids"]
        return list(ids)

    def decode(self, ids: Tensor, mask: Tensor) -> list[str]:
        """The text of each row's valid tokens, without special tokens."""
        rows = [row[m].tolist() for row, m in zip(ids.cpu(), mask.cpu(), strict=True)]
        return [self.tokenizer.decode(r, skip_special_tokens=True) for r in rows]


class Policy:
    """A causal language model under training.

    Weights stay float32 below a lower `dtype` (autocast) unless `hardware.master_weights` is off;
    the sampler then reads a copy in that dtype, refreshed by `sync` after every update.
    """

    def __init__(
        self, encoder: Encoder, hardware: Hardware, *, seed: int = 0, peers: Peers | None = None
    ) -> None:
        self.encoder, self.seed, self.peers = encoder, seed, peers
        self.device = pick_device(hardware.device)
        self.dtype = pick_dtype(hardware.dtype, self.device)
        self.checkpointing = hardware.gradient_checkpointing
        self.autocasts = hardware.master_weights and self.dtype != torch.float32
        self.stored = torch.float32 if hardware.master_weights else self.dtype
        model = load_model(encoder, self.stored, seed)
        if encoder.settings.lora is not None:
            model = with_lora(model, encoder.settings.lora, seed)
        self.model: Any = model.to(self.device).eval()
        if peers is not None:
            shard(self.model, peers)
        copies = self.autocasts or self.sharded
        self._sampling_model: Any = None if copies else self.model
        self.decoder = Decoder.of(self.model) if hardware.engine == "auto" else None
        self.end_ids = end_tokens(self.model, encoder.tokenizer)

    @property
    def pad_id(self) -> int:
        """What padding holds; masked everywhere, so any token would do."""
        pad = self.encoder.tokenizer.pad_token_id
        return int(pad if pad is not None else self.end_ids[0])

    @property
    def sampling_model(self) -> Any:
        """The model that a sampler runs through Transformers: the trained one, or its copy in a
        lower dtype, which is made when first asked for."""
        if self._sampling_model is None:
            self._sampling_model = self._copy(self.dtype)
            self._refresh()
        return self._sampling_model

    @property
    def sharded(self) -> bool:
        """Whether each rank keeps a part of the weights alone."""
        return self.peers is not None

    @contextmanager
    def whole(self) -> Iterator[None]:
        """The weights as a sampler reads them, whole on every rank, for the length of a block.
        Every rank enters it; inside, none needs the others."""
        if not self.sharded:
            yield
            return
        with whole(self.model):
            self._refresh()
            yield

    def sync(self) -> None:
        """Copies the trained weights into the sampler's copy, where there is one. Where they are
        in parts, `whole` does."""
        if not self.sharded:
            self._refresh()

    def _refresh(self) -> None:
        if self._sampling_model is None or self._sampling_model is self.model:
            return
        with torch.no_grad():
            pairs = zip(self._sampling_model.parameters(), self.model.parameters(), strict=True)
            targets, sources = zip(*pairs, strict=True)
            torch._foreach_copy_(list(targets), list(sources))

    def bytes_per_token(self) -> int:
        """About what a backward pass keeps for each token that runs: the inputs of products, norms
        and nonlinearities of every layer, and for other families whole logits."""
        c = self.encoder.config.get_text_config()
        layers, d = int(c.num_hidden_layers), int(c.hidden_size)
        inner = int(getattr(c, "intermediate_size", None) or 4 * d)
        size = self.dtype.itemsize
        if self.decoder is None:
            return layers * (16 * d + 4 * inner) * max(size, 4) + 3 * 4 * int(c.vocab_size)
        heads = (self.decoder.heads + 2 * self.decoder.kv_heads) * self.decoder.head_dim
        kept = 2 * d * 4 + (2 * d + heads + heads // 2 + 2 * inner) * size
        return 4 * d + (0 if self.checkpointing else layers * kept) + layers * 4 * d

    def trainable(self) -> dict[str, torch.nn.Parameter]:
        """The parameters that learn, by name."""
        return {n: p for n, p in self.model.named_parameters() if p.requires_grad}

    def frozen_copy(self) -> Any:
        """The start weights for a reference: a copy, or None where LoRA's base serves.

        Kept as the policy's are (float32 below autocast): rounded to the lower dtype, they would
        show a KL before anything was learnt.
        """
        if self.encoder.settings.lora is not None:
            return None
        copied = self._copy(torch.float32 if self.autocasts else self.dtype)
        return copied if self.peers is None else shard(copied, self.peers)

    def _copy(self, dtype: torch.dtype) -> Any:
        """A whole copy without gradients. Parts cannot be copied: there it is loaded anew, and has
        the start weights."""
        if not self.sharded:
            return frozen(self.model, dtype)
        return frozen(load_model(self.encoder, self.stored, self.seed), dtype).to(self.device)

    @contextmanager
    def base_weights(self) -> Iterator[Any]:
        """The model without its adapters."""
        with self.model.disable_adapter():
            yield self.model

    def precision(self) -> AbstractContextManager[Any]:
        """The autocast of a forward pass of the float32 weights."""
        if not self.autocasts:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.dtype)

    def token_logps(
        self,
        prompt_ids: Tensor,
        prompt_lengths: Tensor,
        completion_ids: Tensor,
        mask: Tensor,
        *,
        model: Any = None,
        groups: Tensor | None = None,
        keep_logits: bool = False,
        collision: bool = False,
        evaluation: Evaluation | None = None,
    ) -> TokenLogps:
        """Log-probabilities of the completions' tokens; gradients flow where enabled.

        Args:
            prompt_ids: [n, S], padded on the right.
            prompt_lengths: [n].
            completion_ids: [n, T], padded on the right.
            mask: [n, T].
            model: whose; the trained policy's by default.
            groups: [n], the same number for neighbours with the same prompt, which is then run
                once where the model's family allows it.
            keep_logits: return [n, T, V] as well.
            collision: return Σ_v π(v)² at each position as well.
            evaluation: which distribution is evaluated; softmax(logits) by default.
        """
        evaluation = evaluation or Evaluation()
        decoder = None
        if self.decoder is not None and not keep_logits and evaluation.scales:
            decoder = self.decoder if model is None else Decoder.of(model)
        if decoder is None:
            return self._plain_logps(
                join_rows(prompt_ids, prompt_lengths, completion_ids, mask, self.pad_id),
                int(prompt_lengths.min()) - 1,
                completion_ids,
                model=model,
                keep_logits=keep_logits,
                collision=collision,
                evaluate=evaluation.evaluate,
            )
        packing = pack(prompt_ids, prompt_lengths, completion_ids, mask, groups)
        logps, entropy, squares = within(
            decoder.module, self._packed_logps, decoder, packing, evaluation.scale, collision
        )
        return TokenLogps(
            scattered(logps, mask),
            scattered(entropy, mask),
            collision=None if squares is None else scattered(squares, mask),
        )

    def _packed_logps(
        self, decoder: Decoder, packing: Packing, scale: float, collision: bool
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """(log-probs, entropy, Σ_v π(v)²) [M] through our own layers."""
        hidden = hidden_states(decoder, packing, self.dtype, checkpointing=self.checkpointing)
        found = token_head(
            hidden,
            decoder.head.weight,
            decoder.head.bias,
            packing.targets,
            scale=scale,
            collision=collision,
        )
        return found.logps, found.entropy, found.collision

    def _plain_logps(
        self,
        joined: tuple[Tensor, Tensor],
        first: int,
        completion_ids: Tensor,
        *,
        model: Any,
        keep_logits: bool,
        collision: bool,
        evaluate: Evaluate | None,
    ) -> TokenLogps:
        """Through Transformers' forward. Rows are laid out as prompt + completion with the padding
        behind, so a causal model needs no attention mask and positions count from 0.

        Args:
            first: the first position whose logits are needed; those of whole prompts are spared.
        """
        ids, positions = joined
        with self.precision():
            output = (model or self.model)(
                input_ids=ids, use_cache=False, logits_to_keep=ids.shape[1] - first
            )
        # position t of a completion is predicted from the token before it: [n, T, V]
        index = (positions - 1 - first).unsqueeze(-1).expand(-1, -1, output.logits.shape[-1])
        logits = output.logits.gather(1, index).to(torch.promote_types(self.dtype, torch.float32))
        evaluated, whole = (
            (logits, logits) if evaluate is None else evaluate(logits, completion_ids)
        )
        normaliser = evaluated.logsumexp(dim=-1)
        squares = None
        if collision:  # Σ π² = exp(logsumexp(2z) − 2·logsumexp(z))
            squares = ((2 * evaluated.detach()).logsumexp(dim=-1) - 2 * normaliser.detach()).exp()
        return TokenLogps(
            picked(evaluated, completion_ids) - normaliser,
            entropies(evaluated.detach(), normaliser.detach()),
            whole if keep_logits else None,
            squares,
            None if evaluated is whole else picked(whole, completion_ids) - whole.logsumexp(dim=-1),
        )

    def save(self, folder: Path) -> None:
        """Exports model and tokenizer: `AutoModelForCausalLM.from_pretrained(folder)` loads it.
        Where the weights are in parts, the other ranks `hand_over` theirs meanwhile."""
        model = self.model
        if self.encoder.settings.lora is not None:
            model = copy.deepcopy(model).merge_and_unload()
        if self.sharded:
            model = load_model(self.encoder, self.stored, self.seed)
            for target, source in zip(model.parameters(), self.hand_over(), strict=True):
                target.data = source
        model.save_pretrained(folder)
        self.encoder.tokenizer.save_pretrained(folder)

    def hand_over(self) -> Iterator[Tensor]:
        """Every parameter whole and on the CPU, one at a time. Every rank runs through them."""
        for parameter in self.model.parameters():
            assert self.peers is not None
            yield from gathered({"": parameter}, self.peers.transfer).values()


def scattered(values: Tensor, mask: Tensor) -> Tensor:
    """[n, T] with values [M] where the mask is true, row by row, and zeros elsewhere."""
    return values.new_zeros(mask.shape).masked_scatter(mask, values)


def picked(logits: Tensor, tokens: Tensor) -> Tensor:
    """[n, T] the logits [n, T, V] of tokens [n, T]."""
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)


ENTROPY_CHUNK = 2**24  # logits whose probabilities are held at once


def entropies(logits: Tensor, normaliser: Tensor) -> Tensor:
    """[n, T] entropy of softmax(logits [n, T, V]) given its logsumexp [n, T], some rows at a time:
    all at once would double the memory of the logits. A logit of −inf adds nothing."""
    rows = max(1, ENTROPY_CHUNK // max(1, logits[0].numel()))
    lowest = torch.finfo(logits.dtype).min  # times a probability of 0, where −inf would give NaN
    parts = [
        z - ((part - z.unsqueeze(-1)).exp() * part.clamp(min=lowest)).sum(dim=-1)
        for part, z in zip(torch.split(logits, rows), torch.split(normaliser, rows), strict=True)
    ]
    return torch.cat(parts)
