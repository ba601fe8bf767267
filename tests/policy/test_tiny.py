"""The embedded model: its folder, its tokenizer, its accuracy, and the recipe that rebuilds it."""

from __future__ import annotations

import hashlib
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpolab.policy import warm_start
from grpolab.policy.warm_start import EMBEDDED, MAX_NEW_TOKENS, Accuracy, Recipe
from grpolab.tasks.arithmetic import Arithmetic, solution

MEBIBYTE = 2**20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(EMBEDDED)


@pytest.fixture(scope="module")
def model() -> Any:
    return AutoModelForCausalLM.from_pretrained(EMBEDDED).eval()


@pytest.fixture(scope="module")
def accuracy(model: Any, tokenizer: Any) -> Accuracy:
    task = Arithmetic()
    return warm_start.measure(model, tokenizer, task, task.load().held_out)


def test_folder_holds_a_whole_small_model() -> None:
    names = {path.name for path in EMBEDDED.iterdir()}
    assert names >= {"config.json", "generation_config.json", "model.safetensors", "README.md"}
    assert names >= {"tokenizer.json", "tokenizer_config.json"}
    assert sum(path.stat().st_size for path in EMBEDDED.iterdir()) <= 6 * MEBIBYTE


def test_model_has_one_to_two_million_float32_parameters(model: Any) -> None:
    assert 1_000_000 <= sum(p.numel() for p in model.parameters()) <= 2_000_000
    assert {p.dtype for p in model.parameters()} == {torch.float32}


def test_generation_samples_the_whole_distribution(model: Any, tokenizer: Any) -> None:
    config = model.generation_config
    assert (config.do_sample, config.temperature, config.top_k, config.top_p) == (True, 1.0, 0, 1.0)
    assert config.eos_token_id == tokenizer.eos_token_id == model.config.eos_token_id
    assert config.pad_token_id == tokenizer.pad_token_id == model.config.pad_token_id
    assert len({tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id}) == 3
    assert len(tokenizer) == model.config.vocab_size


def test_tokenizer_round_trips_every_character(tokenizer: Any) -> None:
    text = warm_start.CHARACTERS
    ids = tokenizer(text)["input_ids"]
    assert len(ids) == len(set(ids)) == len(text)
    assert tokenizer.unk_token_id not in ids
    assert tokenizer.decode(ids) == text
    question = "What is 4 + 5? Answer with the number."
    assert tokenizer.decode(tokenizer(question)["input_ids"]) == question


def test_tokenizer_round_trips_prompts_and_solutions(tokenizer: Any) -> None:
    for example in Arithmetic().load().held_out:
        text = example.prompt + solution(example)
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_unknown_characters_become_one_unknown_token_each(tokenizer: Any) -> None:
    assert tokenizer("1\u00e92\u4e2d")["input_ids"].count(tokenizer.unk_token_id) == 2


def test_tokenizer_pads_left_and_adds_nothing(tokenizer: Any) -> None:
    batch = tokenizer(["1+2=", "12+34="], padding=True)
    assert batch["attention_mask"] == [[0, 0, 1, 1, 1, 1], [1] * 6]
    assert batch["input_ids"][0][:2] == [tokenizer.pad_token_id] * 2


def test_warm_start_leaves_room_to_learn(accuracy: Accuracy) -> None:
    assert 0.20 <= accuracy.pass_1 <= 0.40
    assert accuracy.pass_8 >= 0.80
    assert accuracy.greedy <= 0.45


def test_completions_vary_in_length_and_end(accuracy: Accuracy) -> None:
    assert 6 <= accuracy.tokens <= MAX_NEW_TOKENS
    assert accuracy.truncated <= 0.02


def test_the_worked_example_has_something_to_learn(model: Any, tokenizer: Any) -> None:
    """Groups of four first tokens must hold right and wrong ones, or every advantage is 0."""
    path = Path(__file__).parents[2] / "conf" / "experiment" / "seed_example.yaml"
    example: Any = OmegaConf.to_container(OmegaConf.load(path))
    assert example["task"] | {"tolerance": 0} == {
        "prompts": [warm_start.WORKED_PROMPT],
        "answers": ["5"],
        "tolerance": 0,
    }
    sampler = example["sampler"]
    ids = tokenizer(warm_start.WORKED_PROMPT, return_tensors="pt")["input_ids"]
    assert tokenizer.unk_token_id not in ids
    with torch.no_grad():
        logits = model(input_ids=ids).logits[0, -1]
    top = (logits / sampler["temperature"]).topk(sampler["top_k"])
    right = (top.indices == tokenizer.convert_tokens_to_ids("5")).double()
    assert 0.25 <= float((top.values.double().softmax(dim=0) * right).sum()) <= 0.65


def test_measure_repeats_and_leaves_torch_as_it_was(model: Any, tokenizer: Any) -> None:
    task = Arithmetic()
    examples = task.load().held_out[:8]
    threads, state = torch.get_num_threads(), torch.random.get_rng_state()
    first = warm_start.measure(model, tokenizer, task, examples, samples=8, seed=3)
    assert warm_start.measure(model, tokenizer, task, examples, samples=8, seed=3) == first
    assert torch.get_num_threads() == threads
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not torch.are_deterministic_algorithms_enabled()


def test_the_readme_states_the_measured_accuracy(accuracy: Accuracy) -> None:
    card = (EMBEDDED / "README.md").read_text()
    # Other machines round other sums: the stated shares are held to a few points, not digits.
    for label, value in [("pass@1", accuracy.pass_1), ("pass@8", accuracy.pass_8)]:
        row = next(line for line in card.splitlines() if line.startswith(f"| {label} "))
        assert abs(float(row.split("|")[2].strip(" %")) / 100 - value) < 0.03


def test_recipe_writes_the_same_bytes_twice(tmp_path: Path) -> None:
    recipe = Recipe(steps=3, batch=8)
    digests = []
    for name, global_seed in (("first", 1), ("second", 2)):
        random.seed(global_seed)
        torch.manual_seed(global_seed)
        warm_start.write(tmp_path / name, recipe)
        digests.append(folder_digests(tmp_path / name))
    assert digests[0] == digests[1]
    assert "model.safetensors" in digests[0]
    warm_start.write(tmp_path / "other", replace(recipe, seed=1))
    assert folder_digests(tmp_path / "other") != digests[0]


def test_embedded_tokenizer_is_the_recipe_s(tmp_path: Path, tokenizer: Any) -> None:
    assert warm_start.build_tokenizer().get_vocab() == tokenizer.get_vocab()


def folder_digests(folder: Path) -> dict[str, str]:
    return {p.name: hashlib.sha256(p.read_bytes()).hexdigest() for p in folder.iterdir()}


def test_held_out_prompts_are_never_trained_on() -> None:
    task = Arithmetic()
    trained = {example.prompt for example in warm_start.training_pairs(task)}
    assert not trained & {example.prompt for example in task.load().held_out}
    assert len(trained) == 100 * 100 - 128


def test_attempts_without_mistakes_are_the_gold_solutions() -> None:
    faultless = Recipe(skips_carry=0, drops_top=0, reverses=0, guesses=0, repeats=0)
    for example in Arithmetic().load().train:
        a, b = example.meta["a"], example.meta["b"]
        assert warm_start.attempt(a, b, faultless, random.Random(0)) == solution(example)


@pytest.mark.parametrize(
    ("mistake", "text"),
    [
        ({"skips_carry": 1}, "12;12;122"),
        ({"drops_top": 1}, "12;13;32"),
        ({"reverses": 1}, "12;13;231"),
        ({"repeats": 1}, "12;13;12;13;12;13;132"),
    ],
)
def test_each_mistake(mistake: dict[str, float], text: str) -> None:
    none = {"skips_carry": 0, "drops_top": 0, "reverses": 0, "guesses": 0, "repeats": 0}
    recipe = Recipe(**{**none, **mistake})  # type: ignore[arg-type]
    assert warm_start.attempt(47, 85, recipe, random.Random(0)) == text


def test_guesses_are_short_and_wrong() -> None:
    rng = random.Random(0)
    for a, b in [(0, 0), (5, 5), (0, 5), (99, 99)]:
        for _ in range(50):
            text = warm_start.attempt(a, b, Recipe(guesses=1.0), rng)
            assert text.isdigit()
            assert int(text) != a + b


def test_pass_at_k_is_unbiased() -> None:
    assert warm_start.pass_at(1, 4, 16) == pytest.approx(0.25)
    assert warm_start.pass_at(8, 0, 16) == 0.0
    assert warm_start.pass_at(8, 9, 16) == 1.0
    assert warm_start.pass_at(2, 1, 4) == pytest.approx(0.5)


@pytest.mark.parametrize("arguments", [[], ["out="], ["help"], ["out=a", "check=b"]])
def test_wrong_arguments_get_the_usage(
    arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert warm_start.main(arguments) == 2
    assert "usage:" in capsys.readouterr().err
