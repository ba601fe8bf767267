"""The exported model is the trained one: it loads without this package and says the same."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from grpolab.config import Run, bind_run
from grpolab.policy.policy import Policy
from grpolab.sampling.base import Draw
from grpolab.sweep.compose import Command, expand
from grpolab.sweep.preflight import Ready, check
from grpolab.tracking.folder import RunFolder
from grpolab.training.collect import CORRECT, encode_examples
from grpolab.training.draw import sample_rollouts
from grpolab.training.loop import Trainer

if TYPE_CHECKING:
    from tests.end_to_end import launching
else:
    import launching

PROMPTS = 12


@pytest.fixture(scope="module", autouse=True)
def _torch_as_it_was() -> Iterator[None]:
    threads, strict = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(strict)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Ready, Policy, RunFolder]:
    """Four steps at a learning rate that shows."""
    out = tmp_path_factory.mktemp("export")
    overrides = [*launching.SMALL, "steps=4", f"eval.prompts={PROMPTS}", "eval.samples=0",
                 "tracking=jsonl", f"output_dir={out}", "optimizer.lr=2e-3"]  # fmt: skip
    (job,) = expand(Command(overrides)).jobs
    run = bind_run(job.raw)
    ready, folder = check(run), RunFolder(out / "run")
    folder.path.mkdir()
    trainer = Trainer(run, ready.encoder, ready.examples, folder)
    trainer.fit(folder.append_metrics)
    trainer.policy.save(folder.path / "model")
    return run, ready, trainer.policy, folder


@pytest.fixture(scope="module")
def texts(trained: tuple[Run, Ready, Policy, RunFolder]) -> list[str]:
    """Greedy completions of the held-out prompts by Transformers' own generate."""
    run, ready, _, folder = trained
    return generate(folder.path / "model", run, [e.prompt for e in ready.examples.held_out])


def generate(folder: Path, run: Run, prompts: list[str]) -> list[str]:
    model: Any = AutoModelForCausalLM.from_pretrained(folder).eval()
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts[:PROMPTS]:
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        made = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, top_k=None,
            max_new_tokens=run.sampler.max_new_tokens,
        )  # fmt: skip
        texts.append(tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True))
    return texts


def test_greedy_completions_are_those_of_the_trained_policy(
    trained: tuple[Run, Ready, Policy, RunFolder], texts: list[str]
) -> None:
    run, ready, policy, _ = trained
    encoded = encode_examples(policy.encoder, list(ready.examples.held_out)[:PROMPTS])
    draw = Draw(run.seed, (-1, 0), 1, greedy=True)
    assert sample_rollouts(run.sampler, policy, encoded, draw).texts == texts


def test_the_last_evaluation_is_theirs(
    trained: tuple[Run, Ready, Policy, RunFolder], texts: list[str]
) -> None:
    run, ready, _, folder = trained
    held_out = list(ready.examples.held_out)[:PROMPTS]
    right = [run.task.verify(t, e) >= CORRECT for t, e in zip(texts, held_out, strict=True)]
    assert folder.metrics()[-1][1]["eval/accuracy"] == sum(right) / PROMPTS


def test_training_changed_what_the_model_says(
    trained: tuple[Run, Ready, Policy, RunFolder], texts: list[str]
) -> None:
    run, ready, policy, _ = trained
    prompts = [e.prompt for e in ready.examples.held_out]
    assert generate(Path(policy.encoder.path), run, prompts) != texts
