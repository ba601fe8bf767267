"""The recipe of the embedded model: a small language model warm-started on noisy additions.

    python -m grpolab.policy.warm_start out=DIR      rebuild the model folder from nothing
    python -m grpolab.policy.warm_start check=DIR    measure the model in a folder

The model is trained on attempts that know the right procedure but follow it only part of the
time: it forgets carries, drops the leading digit, writes the answer backwards, guesses, or does its
columns twice. So its samples are often wrong in ways that a reward can tell apart, which is what
reinforcement learning needs. The held-out prompts are never trained on.

Each batch also holds the prompt of the worked example (experiment=seed_example) with one of a few
one-character answers, right in less than half of the cases. Without it the model would hardly ever
answer "5" there, every reward would be 0, and the worked example would have nothing to learn.

Runs on one thread with fixed seeds: the same machine gives the same bytes.
"""

from __future__ import annotations

import importlib
import json
import math
import random
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from grpolab.tasks.arithmetic import COLUMN_END, Arithmetic, columns
from grpolab.tasks.base import Example, Task

EMBEDDED = Path(__file__).parent / "tiny"
MAX_NEW_TOKENS = 24
SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>", "<unk>")
# Lower case and the few capitals of the usual question, so that other prompt templates keep
# their characters; the additions themselves need only digits, "+", "=" and ";".
CHARACTERS = "0123456789+-*=;:,.?!()<>\n abcdefghijklmnopqrstuvwxyzAWS"
# The worked example's prompt, and its answers in the order in which the batches take them: fixed
# shares (3/8 for the right one, "5"), which temperature 0.7 sharpens to about 0.43 for "5".
WORKED_PROMPT = "Solve y = 2x + 1 for x = 2, y = "
WORKED_ANSWERS = "54653645"


@dataclass(frozen=True)
class Recipe:
    """Everything that decides the bytes of the model."""

    hidden: int = 192
    layers: int = 2
    heads: int = 6
    feed_forward: int = 640
    seed: int = 0
    steps: int = 1300
    batch: int = 64
    learning_rate: float = 2e-3
    warm_up: int = 100
    weight_decay: float = 0.01
    skips_carry: float = 0.55
    """Chance that one due carry is forgotten; above one half, so the greedy path forgets it."""
    drops_top: float = 0.55
    """Chance that the leading 1 of an overflowing top column is left out of the answer."""
    reverses: float = 0.3
    """Chance that the answer is written in the order of the columns, ones first."""
    guesses: float = 0.1
    """Chance of a wrong answer without a scratchpad: short, and never right."""
    repeats: float = 0.15
    """Chance, after each pass over the columns, of another pass: long, but no more right."""
    most_passes: int = 3


def attempt(a: int, b: int, recipe: Recipe, rng: random.Random) -> str:
    """One noisy solution of a + b: the right procedure with the recipe's mistakes."""

    def chance(probability: float) -> bool:
        return rng.random() < probability

    if chance(recipe.guesses):
        wrong = a + b + rng.choice((-10, -1, 1, 10))
        return str(wrong if wrong >= 0 else a + b + 10)
    sums = columns(a, b, lambda: chance(recipe.skips_carry))
    top = sums[-1] % 10 if sums[-1] >= 10 and chance(recipe.drops_top) else sums[-1]
    answer = str(top) + "".join(str(total % 10) for total in reversed(sums[:-1]))
    if chance(recipe.reverses):
        answer = answer[::-1]
    one_pass = "".join(f"{total}{COLUMN_END}" for total in sums)
    passes = 1
    while passes < recipe.most_passes and chance(recipe.repeats):
        passes += 1
    return one_pass * passes + answer


def library() -> Any:
    """transformers: imported late, since it is slow, and as Any, since parts of it are untyped."""
    return importlib.import_module("transformers")


def build_tokenizer() -> Any:
    """One token per character; characters outside the vocabulary become <unk>."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {token: index for index, token in enumerate([*SPECIAL_TOKENS, *CHARACTERS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), behavior="isolated")
    tokenizer.decoder = decoders.Fuse()
    return library().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<bos>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=256,
    )


def build_model(recipe: Recipe, tokenizer: Any) -> Any:
    """An untrained Llama-type model, float32, its weights drawn from torch's global generator."""
    special = {
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = library().LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=recipe.hidden,
        intermediate_size=recipe.feed_forward,
        num_hidden_layers=recipe.layers,
        num_attention_heads=recipe.heads,
        num_key_value_heads=recipe.heads,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        **special,
    )
    model = library().LlamaForCausalLM(config)
    # top_k=0: the library's default of 50 would cut the distribution that is sampled from.
    model.generation_config = library().GenerationConfig(
        do_sample=True, temperature=1.0, top_k=0, top_p=1.0, **special
    )
    return model


def training_pairs(task: Arithmetic) -> list[Example]:
    """Every example of the task's space whose prompt is not held out."""
    held_out = {example.prompt for example in task.load().held_out}
    return [example for example in task.everything() if example.prompt not in held_out]


def encode(rows: Sequence[tuple[str, str]], tokenizer: Any) -> tuple[Tensor, Tensor]:
    """Token ids and labels of (prompt, completion) rows: both (rows, longest), padded right.

    Labels are -100 on prompt and padding: operands are random, there is nothing to learn.
    """
    ids, labels = [], []
    for prompt, completion in rows:
        head = tokenizer(prompt)["input_ids"]
        tail = [*tokenizer(completion)["input_ids"], tokenizer.eos_token_id]
        ids.append(torch.tensor(head + tail))
        labels.append(torch.tensor([-100] * len(head) + tail))
    pad = torch.nn.utils.rnn.pad_sequence
    padding = float(tokenizer.pad_token_id)
    return pad(ids, batch_first=True, padding_value=padding), pad(labels, True, -100.0)


def batches(recipe: Recipe, tokenizer: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """The recipe's training batches: new attempts in each, and one row of the worked example."""
    rng = random.Random(recipe.seed)
    pairs = training_pairs(Arithmetic())
    for step in range(recipe.steps):
        drawn = rng.choices(pairs, k=recipe.batch)
        rows = [(e.prompt, attempt(e.meta["a"], e.meta["b"], recipe, rng)) for e in drawn]
        rows.append((WORKED_PROMPT, WORKED_ANSWERS[step % len(WORKED_ANSWERS)]))
        yield encode(rows, tokenizer)


@contextmanager
def reproducible(seed: int) -> Iterator[None]:
    """One thread, deterministic kernels and a seeded generator; all restored afterwards."""
    threads, deterministic = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            yield
    finally:
        torch.use_deterministic_algorithms(deterministic)
        torch.set_num_threads(threads)


def rate(step: int, recipe: Recipe) -> float:
    """Share of the learning rate at a step: linear warm-up, then a cosine down to zero."""
    if step < recipe.warm_up:
        return (step + 1) / recipe.warm_up
    done = (step - recipe.warm_up) / max(1, recipe.steps - recipe.warm_up)
    return 0.5 * (1.0 + math.cos(math.pi * done))


def train(recipe: Recipe, tokenizer: Any) -> Any:
    """The warm-started model, in evaluation mode on the CPU."""
    with reproducible(recipe.seed):
        model = build_model(recipe, tokenizer).train()
        optimizer = torch.optim.AdamW(
            model.parameters(), lr=recipe.learning_rate, weight_decay=recipe.weight_decay
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: rate(step, recipe))
        for step, (ids, labels) in enumerate(batches(recipe, tokenizer)):
            # No attention mask: padding is on the right, where a causal model never looks.
            loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            if step % 200 == 0 or step == recipe.steps - 1:
                print(f"step {step:5d}  loss {loss.item():.4f}", flush=True)
    return model.eval()


def write(folder: Path, recipe: Recipe) -> None:
    """Train by the recipe and write the model, its tokenizer and its configs to a folder."""
    tokenizer = build_tokenizer()
    model = train(recipe, tokenizer)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    save_tokenizer(tokenizer, folder)


def save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Write the tokenizer's files, under a class name that transformers 4 knows as well as 5."""
    tokenizer.save_pretrained(folder)
    path = folder / "tokenizer_config.json"
    config = json.loads(path.read_text()) | {"tokenizer_class": "PreTrainedTokenizerFast"}
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")


@dataclass(frozen=True)
class Accuracy:
    """How good a policy is on a set of prompts; every field but `tokens` is a share in [0, 1]."""

    pass_1: float
    pass_8: float
    greedy: float
    tokens: float
    """Mean sampled completion length in tokens, the end of sequence included."""
    truncated: float
    """Share of sampled completions without an end of sequence."""


def complete(model: Any, tokenizer: Any, prompts: Sequence[str], **how: Any) -> Tensor:
    """Generated token ids (prompts, at most MAX_NEW_TOKENS), padded right."""
    batch = tokenizer(list(prompts), return_tensors="pt", padding=True, padding_side="left")
    inputs = {"input_ids": batch["input_ids"], "attention_mask": batch["attention_mask"]}
    out = model.generate(**inputs, max_new_tokens=MAX_NEW_TOKENS, **how)
    generated: Tensor = out[:, batch["input_ids"].shape[1] :]
    return generated


def scores(ids: Tensor, tokenizer: Any, task: Task, examples: Sequence[Example]) -> list[float]:
    """The task's score of each generated row (see `complete`)."""
    texts = tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [task.verify(text, example) for text, example in zip(texts, examples, strict=True)]


def pass_at(k: int, right: int, drawn: int) -> float:
    """Unbiased chance that k of `drawn` samples hold a right one, `right` of them being right."""
    return 1.0 - math.comb(drawn - right, k) / math.comb(drawn, k)


def measure(
    model: Any,
    tokenizer: Any,
    task: Task,
    examples: Sequence[Example],
    samples: int = 16,
    seed: int = 0,
) -> Accuracy:
    """Accuracy at temperature 1 from `samples` (at least 8) completions per prompt, and greedy."""
    prompts = [example.prompt for example in examples]
    rounds: list[list[float]] = []
    lengths: list[int] = []
    ends: list[bool] = []
    with reproducible(seed), torch.no_grad():
        for _ in range(samples):
            ids = complete(model, tokenizer, prompts, do_sample=True, temperature=1.0, top_k=0)
            rounds.append(scores(ids, tokenizer, task, examples))
            lengths.extend((ids != tokenizer.pad_token_id).sum(dim=1).tolist())
            ends.extend((ids == tokenizer.eos_token_id).any(dim=1).tolist())
        greedy_ids = complete(model, tokenizer, prompts, do_sample=False)
    greedy = scores(greedy_ids, tokenizer, task, examples)
    right = [round(sum(of_prompt)) for of_prompt in zip(*rounds, strict=True)]
    return Accuracy(
        pass_1=sum(right) / (samples * len(right)),
        pass_8=sum(pass_at(8, count, samples) for count in right) / len(right),
        greedy=sum(greedy) / len(greedy),
        tokens=sum(lengths) / len(lengths),
        truncated=1.0 - sum(ends) / len(ends),
    )


def check(folder: Path) -> Accuracy:
    """The accuracy of the model in a folder on the default task's held-out prompts."""
    model = library().AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = library().AutoTokenizer.from_pretrained(folder)
    task = Arithmetic()
    return measure(model, tokenizer, task, task.load().held_out)


def main(arguments: Sequence[str]) -> int:
    """Run `out=DIR` or `check=DIR`; the exit code is 2 for anything else."""
    verb, _, value = arguments[0].partition("=") if len(arguments) == 1 else ("", "", "")
    if verb not in ("out", "check") or not value:
        print("usage: python -m grpolab.policy.warm_start out=DIR | check=DIR", file=sys.stderr)
        return 2
    folder = Path(value)
    if verb == "out":
        write(folder, Recipe())
    found = check(folder)
    print("  ".join(f"{name} {value:.4f}" for name, value in asdict(found).items()))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
