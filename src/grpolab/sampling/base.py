"""What a sampler is: prompts in, G completions each out, with the log-probs they were drawn at;
and the distribution the trainer evaluates those completions under."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from grpolab.objective.masked import precise
from grpolab.objective.settings import setting
from grpolab.policy.evaluation import Evaluation

if TYPE_CHECKING:
    from grpolab.policy.policy import Policy


Finished = Callable[[list[int], Tensor, Tensor], None]
"""(places [R] among all completions of a call, tokens [R, T], mask [R, T]) of some that ended."""


@dataclass(frozen=True)
class Draw:
    """One request: which random stream, how many completions per prompt, greedy or sampled."""

    seed: int
    indices: tuple[int, ...]
    """Indices of the "sampling" stream, such as (step, round)."""
    samples: int
    greedy: bool = False
    first: int = 0
    """Place of the first prompt among those of the whole call, where others sample the rest."""
    total: int | None = None
    """Prompts of the whole call; None: those given."""
    finished: Finished | None = None
    """Told of completions as they end, by a sampler that knows (static); not of those that the
    token limit ends. A call that begins again tells again."""


@dataclass
class Samples:
    """N = P·samples completions, prompt-major, padded on the right; on the policy's device."""

    completion_ids: Tensor
    """[N, T]"""
    mask: Tensor
    """[N, T] bool"""
    truncated: Tensor
    """[N] bool: neither an end token nor a stop string within the limit."""
    sampler_logps: Tensor
    """[N, T] under the distribution sampled from (0 where greedy)."""
    policy_logps: Tensor
    """[N, T] under the distribution the trainer evaluates (`Sampler.evaluate`): by default the
    untempered policy over the whole vocabulary."""


@dataclass(frozen=True)
class Sampler(ABC):
    """Base: the settings all samplers share, and the distribution the trainer evaluates.

    The distribution sampled from is softmax(z / temperature) after the filters, in the order of
    Transformers' `generate`, each on what those before it left: top-k, then top-p, then min-p.
    Ties at the k-th place all stay; the likeliest token always does.

    stop: a completion ends with the token that completes a stop string. The token stays, whole,
    even where text follows the string inside it: the trainer sees what was sampled. The text
    searched is the completion's alone (a string that begins in the prompt does not count), special
    tokens included, so that "<|im_end|>" can be one. Such a completion counts as ended, not as
    truncated.

    What the trainer evaluates (log-probs, ratios, entropy), z its own current logits:
        default: softmax(z), the policy itself, whatever it was sampled at. Its ratio to the
            sampler's distribution is what `correction` weighs.
        match_temperature: softmax(z / temperature), the reference and the KL included. TRL and verl
            do so, without a choice.
        match_support: softmax over the tokens that the filters keep. They are applied anew to the
            trainer's logits over the temperature, and the sampled token is kept whatever they say.
            The gradient runs through the renormalised log-softmax; which tokens are kept has none.
            KL and reference stay on the whole vocabulary. NeMo-RL recomputes the support too, but
            takes a sampled token that fell out of it off the loss; slime stores the sampler's;
            Unsloth restricts it; TRL and verl do not (TRL issue 6789).
            Without top_k, top_p and min_p it changes nothing.
    With both, log-probs of unchanged weights are those the sampler drew at. After updates a token
    can leave the trainer's support: being kept, its log-prob stays finite. A KL weighed by the
    ratio (weighted_k2, weighted_k3) then divides π over the whole vocabulary by the old policy on
    its support, as NeMo-RL does: a token's weight begins at the probability that the filters keep.
    """

    group: ClassVar[str] = "sampler"
    name: ClassVar[str]
    splits: ClassVar[bool] = False
    """Draws a part of a call (`Draw.first`, `Draw.total`) as if it drew the whole: its noise is a
    function of the row's place. Where not, every rank samples the whole call."""

    group_size: int = setting(8, "G, completions per prompt", ge=1)
    temperature: float = setting(1.0, "logits are divided by it", gt=0)
    top_k: int = setting(0, "only the k likeliest tokens; 0: all", ge=0)
    top_p: float = setting(1.0, "only the likeliest tokens that sum to p; 1: all", gt=0, le=1)
    min_p: float = setting(
        0.0, "only tokens at least so likely relative to the likeliest; 0: all", ge=0, lt=1
    )
    max_new_tokens: int = setting(64, "token limit of a completion", ge=1)
    stop: list[str] = setting([], "texts that end a completion; each stays in it")
    match_temperature: bool = setting(
        False, "the trainer divides its logits by the temperature too, the reference's included"
    )
    match_support: bool = setting(
        False, "the trainer applies top_k, top_p and min_p to its logits too; the KL does not"
    )

    def __post_init__(self) -> None:
        if "" in self.stop:
            raise ValueError(f"stop: {self.stop} given; allowed: texts of one character or more.")

    @abstractmethod
    def __call__(self, policy: Policy, prompts: Sequence[Sequence[int]], draw: Draw) -> Samples:
        """Completions of each prompt's tokens."""

    @property
    def truncates(self) -> bool:
        """Whether some tokens cannot be drawn."""
        return self.top_k > 0 or self.top_p < 1 or self.min_p > 0

    @property
    def plain(self) -> bool:
        """Whether the distribution sampled from is the policy itself."""
        return not self.truncates and self.temperature == 1

    @property
    def evaluates_policy(self) -> bool:
        """Whether the trainer evaluates the policy itself."""
        tempers = self.match_temperature and self.temperature != 1
        return not tempers and not (self.match_support and self.truncates)

    @property
    def matched(self) -> bool:
        """Whether the trainer evaluates the very distribution sampled from."""
        tempered = self.match_temperature or self.temperature == 1
        return tempered and (self.match_support or not self.truncates)

    def warp(self, logits: Tensor) -> Tensor:
        """Logits [..., V] of the distribution sampled from, float32 at least, −inf where a token
        cannot be drawn."""
        logits = precise(logits)
        if self.temperature != 1:
            logits = logits / self.temperature
        if 0 < self.top_k < logits.shape[-1]:
            kth = logits.topk(self.top_k, dim=-1).values[..., -1:]
            logits = logits.masked_fill(logits < kth, -torch.inf)
        if self.top_p < 1:
            logits = keep_top_p(logits, self.top_p)
        if self.min_p > 0:
            probabilities = logits.softmax(dim=-1)
            floor = self.min_p * probabilities.amax(dim=-1, keepdim=True)
            logits = logits.masked_fill(probabilities < floor, -torch.inf)
        return logits

    def evaluate(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """(logits the trainer evaluates, the same over the whole vocabulary) [..., V] each; one
        tensor where the support is whole. The gradient of `logits` runs through both.

        Args:
            logits: [..., V].
            tokens: [...], the sampled ones.
        """
        whole, _ = self.evaluate_whole(logits, tokens)
        if not (self.match_support and self.truncates):
            return whole, whole
        return whole.masked_fill(self.outside(logits, tokens), -torch.inf), whole

    def evaluate_whole(self, logits: Tensor, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """The same with the whole vocabulary as support, for the reference."""
        logits = precise(logits)
        if self.match_temperature and self.temperature != 1:
            logits = logits / self.temperature
        return logits, logits

    def evaluation(self, *, whole: bool = False) -> Evaluation:
        """What the trainer evaluates; with `whole`, over the whole vocabulary in any case. Either
        way through the same kernels, so that equal weights have equal log-probs to the last bit."""
        partial = self.match_support and self.truncates
        scale = 1 / self.temperature if self.match_temperature else 1.0
        evaluate = self.evaluate if partial and not whole else self.evaluate_whole
        return Evaluation(scale, evaluate, scales=not partial)

    @torch.no_grad()
    def outside(self, logits: Tensor, tokens: Tensor) -> Tensor:
        """[..., V] bool: where the filters leave nothing, the tokens [...] themselves excepted.
        Some rows at a time, since sorting takes several times the memory of the logits."""
        flat = logits.detach().reshape(-1, logits.shape[-1])
        rows = max(1, FILTERED_AT_ONCE // logits.shape[-1])
        parts = [self.warp(part) == -torch.inf for part in torch.split(flat, rows)]
        outside = torch.cat(parts).reshape(logits.shape)
        return outside.scatter(-1, tokens.unsqueeze(-1), False)


FILTERED_AT_ONCE = 2**24  # logits


def keep_top_p(logits: Tensor, top_p: float) -> Tensor:
    """Masks all but the smallest set of likeliest tokens whose probability reaches top_p."""
    ordered, order = logits.sort(dim=-1, descending=False)
    below = ordered.softmax(dim=-1).cumsum(dim=-1) <= 1 - top_p
    below[..., -1] = False  # the likeliest token always stays
    return logits.masked_fill(below.scatter(-1, order, below), -torch.inf)


BLOCK = 128
"""Tokens whose probabilities are summed before the running sum, which no processor does fast."""


def choose(logits: Tensor, uniforms: Tensor) -> tuple[Tensor, Tensor]:
    """(tokens [n], their log-probs [n]): one per row by inverse CDF of softmax(logits [n, V]) at
    uniforms [n].

    0.9 ms where torch.multinomial takes 30 ms (32 × 49,152), and the token is a function of a
    number that was drawn beforehand: devices and batch layouts cannot change the noise. The running
    sum is of blocks first and then within the block that is hit. A token of probability 0 is never
    chosen.
    """
    logits = precise(logits)
    n, vocabulary = logits.shape
    top = logits.amax(dim=-1, keepdim=True)
    weights = (logits - top).exp_()
    blocks = torch.nn.functional.pad(weights, (0, -vocabulary % BLOCK)).view(n, -1, BLOCK)
    running = blocks.sum(dim=-1).cumsum(dim=-1)
    total = running[:, -1:]
    target = below(uniforms.unsqueeze(1).to(running) * total, total)
    block = torch.searchsorted(running, target, right=True)  # the first sum *above* the target
    before = torch.nn.functional.pad(running, (1, 0)).gather(1, block)
    chosen = blocks.gather(1, block.unsqueeze(2).expand(-1, -1, BLOCK)).squeeze(1)
    inside = before + chosen.cumsum(dim=-1)
    # the block's sum may round to less here than there
    place = torch.searchsorted(inside, below(target, inside[:, -1:]), right=True)
    tokens = (block * BLOCK + place).squeeze(1)
    logps = (logits.gather(1, tokens.unsqueeze(1)) - top - total.log()).squeeze(1)
    return tokens, logps


def below(target: Tensor, bound: Tensor) -> Tensor:
    """The target, or the largest number under the bound."""
    return torch.minimum(target, torch.nextafter(bound, torch.zeros_like(bound)))


def token_logp(logits: Tensor, tokens: Tensor) -> Tensor:
    """[...] log-probability of tokens [...] under softmax(logits [..., V])."""
    logits = precise(logits)
    return logits.gather(-1, tokens.unsqueeze(-1)).squeeze(-1) - logits.logsumexp(dim=-1)


def finish(ids: Tensor, end_ids: Tensor, stopped: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """(mask [N, T] up to and including each row's end, truncated [N]: rows without one).

    Args:
        ids: [N, T].
        end_ids: tokens that end a completion.
        stopped: [N] place of the token that completes a stop string, −1 where none does.
    """
    ends = torch.isin(ids, end_ids)
    if stopped is not None:
        ends |= torch.arange(ids.shape[1], device=ids.device) == stopped.unsqueeze(1)
    before = ends.long().cumsum(dim=1) - ends.long()  # ends strictly before a position
    return before == 0, ~ends.any(dim=1)


def pad_left(prompts: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """(ids [P, S], mask [P, S]) with the padding on the left, as decoding needs it."""
    width = max(len(p) for p in prompts)
    ids = torch.full((len(prompts), width), pad_id)
    mask = torch.zeros((len(prompts), width), dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, width - len(prompt) :] = torch.tensor(list(prompt))
        mask[row, width - len(prompt) :] = 1
    return ids, mask
