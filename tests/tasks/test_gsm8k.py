"""GSM8K from local copies, its answers, and a hub that cannot be reached."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from datasets import Dataset

from grpolab.tasks.base import Example, TaskError
from grpolab.tasks.gsm8k import Gsm8k, final_number, last_boxed


def rows(start: int, count: int) -> str:
    return "".join(
        json.dumps({"question": f"What is {i}?", "answer": f"It is <<{i}={i}>>{i}.\n#### {i:,}"})
        + "\n"
        for i in range(start, start + count)
    )


@pytest.mark.parametrize("inside", [".", "main", "data"])
def test_a_folder_with_both_halves(tmp_path: Path, inside: str) -> None:
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "train.jsonl").write_text(rows(995, 10))
    (tmp_path / inside / "test.jsonl").write_text(rows(5000, 4))
    examples = Gsm8k(path=str(tmp_path)).load()
    assert (len(examples.train), len(examples.held_out)) == (10, 4)
    assert examples.train[6].answer == "1,001"
    assert examples.train[0].prompt == "What is 995?"
    fewer = Gsm8k(path=str(tmp_path), train_size=3, held_out_size=0).load()
    assert (len(fewer.train), len(fewer.held_out)) == (3, 0)


def test_a_folder_as_the_hub_stores_it(tmp_path: Path) -> None:
    (tmp_path / "main").mkdir()
    for half, start in (("train", 0), ("test", 100)):
        table = Dataset.from_list([json.loads(line) for line in rows(start, 5).splitlines()])
        table.to_parquet(tmp_path / "main" / f"{half}-00000-of-00001.parquet")
    examples = Gsm8k(path=str(tmp_path)).load()
    assert (len(examples.train), len(examples.held_out)) == (5, 5)


def test_a_test_question_leaves_the_training_half(tmp_path: Path) -> None:
    (tmp_path / "train.jsonl").write_text(rows(0, 10))
    (tmp_path / "test.jsonl").write_text(rows(8, 4))
    examples = Gsm8k(path=str(tmp_path)).load()
    assert (len(examples.train), len(examples.held_out)) == (8, 4)


def test_a_single_file_is_split(tmp_path: Path) -> None:
    file = tmp_path / "mine.jsonl"
    file.write_text(rows(0, 20))
    examples = Gsm8k(path=str(file), template="Q: {question}\nA:").load()
    assert (len(examples.train), len(examples.held_out)) == (18, 2)
    assert examples.train[0].prompt.startswith("Q: What is ")


def test_errors(tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="no train file in the folder"):
        Gsm8k(path=str(tmp_path)).load()
    with pytest.raises(TaskError, match="no such file"):
        Gsm8k(path=str(tmp_path / "no.jsonl")).load()
    file = tmp_path / "a.jsonl"
    file.write_text(rows(0, 2) + json.dumps({"question": "?", "answer": "It is 3."}) + "\n")
    with pytest.raises(TaskError, match="row 3: column 'answer' has no number after '####'"):
        Gsm8k(path=str(file)).load()
    file.write_text(json.dumps({"questions": "?", "answer": "#### 3"}))
    with pytest.raises(TaskError, match=r"no such column.*did you mean questions\?"):
        Gsm8k(path=str(file)).load()
    with pytest.raises(ValueError, match=r"^template: "):
        Gsm8k(template="no question")
    with pytest.raises(ValueError, match=r"^revision: "):
        Gsm8k(path="x", revision="abc")


def test_a_hub_out_of_reach_is_one_sentence_with_the_way_out(tmp_path: Path) -> None:
    code = (
        "from grpolab.tasks.gsm8k import Gsm8k\n"
        "from grpolab.tasks.base import TaskError\n"
        "try: Gsm8k().load()\n"
        "except TaskError as error: print(error)\n"
    )
    # A process of its own: the libraries read these when they are imported.
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert "task.path=null: cannot read openai/gsm8k" in done.stdout
    assert "allowed without a connection: task.path=" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.parametrize(
    ("completion", "number"),
    [
        ("3 + 4 = 7", 7),
        ("so 7 apples\n#### 7", 7),
        ("#### 7\nThat is 2 more than 5.", 7),
        ("#### 6\nno, #### $1,007.00", 1007),
        ("\\boxed{7} since 5 + 2", 7),
        ("\\boxed{\\text{about {7}}} of 9", 7),
        ("\\boxed{3} or \\boxed{7}, see 2", 7),
        ("\\boxed{none}, 7", 7),
        ("7 #### ?", 7),
        ("\\boxed{7", 7),
        ("", None),
    ],
)
def test_final_number(completion: str, number: float | None) -> None:
    assert final_number(completion) == number
    expected = 0.0 if number is None else float(number == 7)
    assert Gsm8k().verify(completion, Example("?", "7")) == expected


def test_last_boxed() -> None:
    assert last_boxed("\\boxed{a{b}c} d") == "a{b}c"
    assert last_boxed("none") is None
