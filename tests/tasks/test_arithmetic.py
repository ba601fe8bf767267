"""The arithmetic task: its draw, its split, its verifier and its gold solutions."""

from __future__ import annotations

import random
from dataclasses import fields
from pathlib import Path

import pytest

from grpolab.tasks.arithmetic import Arithmetic, columns, last_number, solution
from grpolab.tasks.base import Example, TaskError

CONFIG = Path(__file__).parents[2] / "conf" / "task" / "arithmetic.yaml"


def example(answer: str) -> Example:
    return Example("?", answer)


def test_single_digits_split_80_and_20() -> None:
    task = Arithmetic(
        digits_max=1,
        train_size=80,
        held_out_size=20,
        template="What is {a} + {b}? Answer with the number.",
    )
    examples = task.load()
    assert len(examples.train) == 80
    assert len(examples.held_out) == 20
    everything = {(e.meta["a"], e.meta["b"]) for e in [*examples.train, *examples.held_out]}
    assert everything == {(a, b) for a in range(10) for b in range(10)}
    first = examples.train[0]
    a, b = first.meta["a"], first.meta["b"]
    assert first.prompt == f"What is {a} + {b}? Answer with the number."
    assert first.answer == str(a + b)


@pytest.mark.parametrize("operation", ["add", "sub", "mul", "mixed"])
def test_train_and_held_out_prompts_are_disjoint_and_right(operation: str) -> None:
    task = Arithmetic(operation=operation, digits_max=3, train_size=300, held_out_size=100)  # type: ignore[arg-type]
    examples = task.load()
    train = {e.prompt for e in examples.train}
    held_out = {e.prompt for e in examples.held_out}
    assert len(train) == 300
    assert len(held_out) == 100
    assert not train & held_out
    for e in [*examples.train, *examples.held_out]:
        # Safe: the prompts are our own, "12*34=" and the like.
        assert eval(e.prompt.rstrip("=")) == int(e.answer)
        assert task.verify(e.answer, e) == 1.0


def test_mixed_draws_every_operation() -> None:
    drawn = Arithmetic(operation="mixed").load().train
    assert {e.meta["operation"] for e in drawn} == {"add", "sub", "mul"}


def test_operands_have_the_digits_asked_for() -> None:
    drawn = Arithmetic(digits_min=2, digits_max=3, train_size=2000).load().train
    lengths = {len(str(e.meta[name])) for e in drawn for name in ("a", "b")}
    assert lengths == {2, 3}


def test_nine_digits_are_drawn_without_listing_them_all() -> None:
    assert len(Arithmetic(digits_max=9, train_size=5).load().train) == 5


def test_the_draw_depends_on_data_seed_alone() -> None:
    random.seed(1)
    first = Arithmetic().load()
    random.seed(2)
    state = random.getstate()
    assert Arithmetic().load() == first
    assert random.getstate() == state, "the global generator was used"
    assert Arithmetic(data_seed=1).load() != first


def test_the_draw_is_pinned() -> None:
    """A changed draw would silently change what every stored result was measured on."""
    examples = Arithmetic().load()
    assert [e.prompt for e in examples.train[:3]] == PINNED_TRAIN
    assert [e.prompt for e in examples.held_out[:3]] == PINNED_HELD_OUT


PINNED_TRAIN = ["63+11=", "68+90=", "6+63="]
PINNED_HELD_OUT = ["76+54=", "55+35=", "48+55="]


def test_too_many_prompts_name_the_setting_what_was_given_and_what_is_allowed() -> None:
    with pytest.raises(TaskError, match=r"task\.train_size=81 .*: at most 80$"):
        Arithmetic(digits_max=1, train_size=81, held_out_size=20).load()
    with pytest.raises(TaskError, match=r"task\.held_out_size=200.*lower task\.held_out_size"):
        Arithmetic(digits_max=1, train_size=1, held_out_size=200).load()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"digits_min": 3, "digits_max": 2}, r"task\.digits_min=3"),
        ({"template": "What is {A} + {b}?"}, r"task\.template=.* lacks \{a\}"),
        ({"template": "nothing"}, r"lacks \{a\} and \{b\}"),
        ({"template": "{a} {b}", "operation": "mixed"}, r"lacks \{op\}"),
        ({"template": "{a}{b}=", "train_size": 5000}, r"same prompt"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(TaskError, match=message):
        Arithmetic(**settings).load()  # type: ignore[arg-type]


def test_a_template_may_hold_other_braces() -> None:
    template = '{"q": "{a}{op}{b}", "x": {}} {{a}}'
    first = Arithmetic(template=template).load().train[0]
    a, b = first.meta["a"], first.meta["b"]
    assert first.prompt == f'{{"q": "{a}+{b}", "x": {{}}}} {{{a}}}'


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("7", "7"),
        ("7.", "7"),
        ("**7**", "7"),
        ("7.0", "7"),
        ("007", "7"),
        ("+7", "7"),
        ("The answer is 7!\n", "7"),
        (r"so $\boxed{7}$.", "7"),
        ("12;13;132", "132"),
        ("1,234", "1234"),
        ("1,234,567.", "1234567"),
        ("1,23", "23"),
        ("1,2345", "2345"),
        ("12, 34", "34"),
        ("3-7", "7"),
        ("3 - 7", "7"),
        ("(3)-7", "7"),
        ("x-7", "7"),
        ("=-7", "-7"),
        ("is -7.", "-7"),
        ("\u22127", "-7"),
        ("**-7**", "-7"),
        ("-0", "0"),
        ("2.5", "2.5"),
        ("7 and then some words", "7"),
        ("", None),
        ("seven", None),
        ("-", None),
        ("\u0667", None),
    ],
)
def test_last_number(completion: str, number: str | None) -> None:
    assert last_number(completion) == number


def test_verify_scores_the_last_number() -> None:
    task = Arithmetic()
    assert task.verify("12;13;132", example("132")) == 1.0
    assert task.verify("132, no: 131", example("132")) == 0.0
    assert task.verify("12;13;231", example("132")) == 0.0
    assert task.verify("", example("132")) == 0.0
    assert task.verify("132.5", example("132")) == 0.0
    assert task.verify("1,320", example("1320")) == 1.0
    assert task.verify("-5", example("-5")) == 1.0
    assert task.verify("5", example("-5")) == 0.0


def test_verify_survives_absurdly_long_numbers() -> None:
    """int() refuses more than 4300 digits; a policy that loops may well write that many."""
    assert Arithmetic().verify("9" * 10_000, example("9")) == 0.0
    assert Arithmetic().verify("1,111" * 5_000, example("9")) == 0.0


def test_columns_carry() -> None:
    assert columns(47, 85) == [12, 13]
    assert columns(5, 999) == [14, 10, 10]
    assert columns(0, 0) == [0]
    assert columns(47, 85, skips_carry=lambda: True) == [12, 12]


def test_solution_ends_in_the_answer() -> None:
    task = Arithmetic(digits_max=3)
    for e in task.load().train:
        assert task.verify(solution(e), e) == 1.0
    e = Example("47+85=", "132", {"a": 47, "b": 85, "operation": "add"})
    assert solution(e) == "12;13;132"
    e = Example("4*3=", "12", {"a": 4, "b": 3, "operation": "mul"})
    assert solution(e) == "12"


def test_the_config_file_holds_the_defaults() -> None:
    yaml = pytest.importorskip("yaml")
    config = yaml.safe_load(CONFIG.read_text())
    defaults = {f.name: f.default for f in fields(Arithmetic)}
    assert config == {"name": "arithmetic", **defaults}
