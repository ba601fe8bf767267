"""Reasoning Gym's generators, its verifiers, and what they must not do."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from grpolab.tasks.base import TaskError
from grpolab.tasks.reasoning_gym import ALPHABETS, REFUSED, ReasoningGym, harmless

reasoning_gym = pytest.importorskip("reasoning_gym", reason="reasoning_gym is not installed")


def small(dataset: str = "chain_sum", **settings: Any) -> ReasoningGym:
    return ReasoningGym(dataset=dataset, **{"train_size": 12, "held_out_size": 6, **settings})


@pytest.mark.parametrize("dataset", ["chain_sum", "list_functions", "acre", "pool_matrix"])
def test_halves_are_disjoint_and_the_same_every_time(dataset: str) -> None:
    random.seed(1)
    first = small(dataset).load()
    random.seed(2)
    second = small(dataset).load()
    train, held_out = ([e.prompt for e in half] for half in (first.train, first.held_out))
    assert (len(set(train)), len(set(held_out))) == (12, 6)
    assert not set(train) & set(held_out)
    assert train == [example.prompt for example in second.train]
    other = small(dataset, data_seed=1).load()
    assert train != [example.prompt for example in other.train]


def test_repetitions_are_drawn_again() -> None:
    config = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}
    examples = small(config=config, train_size=100, held_out_size=20).load()
    assert len({e.prompt for e in [*examples.train, *examples.held_out]}) == 120


def test_too_few_different_questions() -> None:
    config = {"min_terms": 1, "max_terms": 1, "min_digits": 1, "max_digits": 1}
    with pytest.raises(TaskError, match=r"needs 18 different questions, but .* gave 10 in 360"):
        small(config=config).load()


@pytest.mark.parametrize("dataset", ["chain_sum", "list_functions", "pool_matrix"])
def test_the_global_random_streams_are_left_alone(dataset: str) -> None:
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    before = random.getstate(), np.random.get_state()  # noqa: NPY002
    task = small(dataset)
    example = task.load().train[0]
    task.verify(example.answer, example)
    assert random.getstate() == before[0]
    np.testing.assert_equal(np.random.get_state(), before[1])  # noqa: NPY002


def test_its_own_verifier_scores() -> None:
    task = small(extract="last_number")
    example = task.load().train[0]
    assert task.verify(f"The sum is {example.answer}.", example) == 1.0
    assert task.verify("no idea", example) == 0.0
    assert task.verify("The sum is 123456789", example) == 0.0


def test_a_verifier_without_a_stored_answer() -> None:
    task = small("graph_color", extract="full")
    example = task.load().train[0]
    assert example.answer == ""
    assert 0.0 <= task.verify("{}", example) <= 1.0


@pytest.mark.parametrize(
    ("extract", "completion", "answer"),
    [
        ("last_number", "3 + 4 = -7.", "-7"),
        ("last_number", "3 - \u22127", "-7"),
        ("last_number", "1,007, yes", "1,007"),
        ("last_number", "none", None),
        ("last_line", "thoughts\n A B \n\n", "A B"),
        ("last_line", "\n", None),
        ("tags", "<answer>a</answer> <answer>\nb\n</answer>", "b"),
        ("tags", "b", None),
        ("full", " a\nb ", "a\nb"),
    ],
)
def test_extracted(extract: Any, completion: str, answer: str | None) -> None:
    assert small(extract=extract).extracted(completion) == answer


def test_errors() -> None:
    with pytest.raises(TaskError, match=r"task.dataset='chain_sums'.*did you mean chain_sum\?"):
        small("chain_sums").load()
    with pytest.raises(TaskError, match=r"task.config=.*does not take it \(TypeError"):
        small(config={"terms": 3}).load()
    with pytest.raises(TaskError, match=r"task.config=.*\(AssertionError: min_terms"):
        small(config={"min_terms": 0}).load()
    with pytest.raises(ValueError, match=r"^config: seed=3 is not set here; allowed: data_seed"):
        small(config={"seed": 3})


def test_the_missing_package_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "reasoning_gym", None)
    with pytest.raises(TaskError, match=r"pip install 'grpolab\[reasoning-gym\]'$"):
        small().load()


@pytest.mark.parametrize("generator", REFUSED)
def test_verifiers_that_need_code_are_refused(generator: str) -> None:
    with pytest.raises(TaskError, match=r"runs the answer as code"):
        small(generator).load()
    mixed = {"datasets": [{"name": generator, "weight": 1, "config": {}}]}
    with pytest.raises(TaskError):
        small("composite", config=mixed).load()


@pytest.mark.parametrize("generator", sorted(ALPHABETS))
def test_answers_are_never_run(generator: str, tmp_path: Path) -> None:
    task = small(generator, extract="full", train_size=2, held_out_size=0)
    example = task.load().train[0]
    mark = tmp_path / "ran"
    for attack in (f"open({str(mark)!r}, 'w')", "__import__('os').abort()", "().__class__"):
        assert harmless(attack, generator) is None
        assert task.verify(attack, example) < 0.1
    assert not mark.exists()
    gold = task.verify(example.answer, example)
    assert gold == 1.0


def test_powers_do_not_reach_the_arithmetic_verifiers() -> None:
    assert harmless("9**9**9**9", "countdown") is None
    assert harmless("9* *9", "countdown") is None
    assert harmless("(1 + 2) * 3 / 4", "countdown") == "(1 + 2) * 3 / 4"
    assert harmless("9**9", "chain_sum") == "9**9"


def test_no_other_verifier_runs_answers() -> None:
    """A new release with a new eval must be looked at before it is trusted."""
    generation_only = {"basic_arithmetic", "bitwise_arithmetic", "codeio", "number_sorting"}
    known = generation_only | set(ALPHABETS) | set(REFUSED)
    # The formulas of its own word problems, and a parser of its own under the same name.
    known |= {"generators_00_49", "generators_50_99", "propositional_logic"}
    runs = re.compile(r"\beval\(|\bexec\(|\bparse_expr\(|\bsympify\(")
    found = {
        file.stem
        for file in Path(str(reasoning_gym.__file__)).parent.rglob("*.py")
        if runs.search(file.read_text(encoding="utf-8"))
    }
    assert found <= known
