"""A user's own file, in every format and with every mistake."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from datasets import Dataset

from grpolab.tasks.base import Example, TaskError
from grpolab.tasks.jsonl import Jsonl, contains

ROWS = [{"prompt": f"{i} + 1 =", "answer": i + 1} for i in range(20)]


def write(path: Path, rows: Sequence[Any]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.fixture
def file(tmp_path: Path) -> str:
    return write(tmp_path / "data.jsonl", ROWS)


def prompts(examples: Sequence[Example]) -> list[str]:
    return [example.prompt for example in examples]


def test_a_tenth_is_held_out(file: str) -> None:
    examples = Jsonl(path=file).load()
    assert (len(examples.train), len(examples.held_out)) == (18, 2)
    together = prompts(examples.train) + prompts(examples.held_out)
    assert sorted(together) == sorted(str(row["prompt"]) for row in ROWS)
    assert file in examples.source


def test_the_split_depends_on_data_seed_alone(file: str) -> None:
    def held(seed: int) -> list[str]:
        return prompts(Jsonl(path=file, held_out_size=5, data_seed=seed).load().held_out)

    assert held(1) == held(1)
    assert held(1) != held(2)


def test_every_format_gives_the_same_examples(tmp_path: Path, file: str) -> None:
    lines = [f'"{row["prompt"]}"{{}}{row["answer"]}' for row in ROWS]
    for ending, mark in (("csv", ","), ("tsv", "\t")):
        text = "\n".join([f"prompt{mark}answer", *(line.format(mark) for line in lines)])
        (tmp_path / f"data.{ending}").write_text(text)
    (tmp_path / "data.json").write_text(json.dumps(ROWS))
    Dataset.from_list(ROWS).to_parquet(tmp_path / "data.parquet")
    expected = Jsonl(path=file).load()
    for ending in ("csv", "tsv", "json", "parquet"):
        loaded = Jsonl(path=str(tmp_path / f"data.{ending}")).load()
        for half, wanted in ((loaded.train, expected.train), (loaded.held_out, expected.held_out)):
            assert [(e.prompt, e.answer) for e in half] == [(e.prompt, e.answer) for e in wanted]


def test_answers_keep_their_spelling(tmp_path: Path) -> None:
    given = ["007", "2024-01-01", "NA", "2.50", "12345678901234567890123", "true"]
    lines = [f'{{"prompt": "p{i}", "answer": "{a}"}}' for i, a in enumerate(given[:3])]
    lines += [f'{{"prompt": "q{i}", "answer": {a}}}' for i, a in enumerate(given[3:])]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    csv = "prompt,answer\n" + "\n".join(f"p{i},{a}" for i, a in enumerate(given))
    (tmp_path / "a.csv").write_text(csv)
    for ending in ("jsonl", "csv"):
        examples = Jsonl(path=str(tmp_path / f"a.{ending}"), held_out_size=0).load()
        assert [example.answer for example in examples.train] == given


@pytest.mark.parametrize("ending", ["jsonl", "parquet"])
def test_a_changed_file_is_read_again(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a.{ending}"
    for answer in ("1", "2"):
        rows = [{"prompt": "p", "answer": answer}, {"prompt": "q", "answer": answer}]
        if ending == "jsonl":
            write(path, rows)
        else:
            Dataset.from_list(rows).to_parquet(path)
        os.utime(path, (1_000_000_000, 1_000_000_000))  # the same time stamp, the same size
        assert Jsonl(path=str(path), held_out_size=0).load().train[0].answer == answer


def test_duplicate_prompts_stay_on_one_side(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{i % 7}", "answer": i} for i in range(28)]
    path = write(tmp_path / "a.jsonl", rows)
    for seed in range(5):
        examples = Jsonl(path=path, held_out_size=9, data_seed=seed).load()
        assert not set(prompts(examples.train)) & set(prompts(examples.held_out))
        assert len(examples.held_out) == 8  # two prompts of four rows; a third would not fit
        assert len(examples.train) == 20


def test_a_held_out_file_is_used_whole(tmp_path: Path, file: str) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "100 + 1 =", "answer": 101}])
    examples = Jsonl(path=file, held_out_path=held).load()
    assert (len(examples.train), prompts(examples.held_out)) == (20, ["100 + 1 ="])


def test_templates_and_columns(tmp_path: Path) -> None:
    rows = [{"q": "two", "a": "2", "hint": "it's {even}"}, {"q": "one", "a": "1", "hint": "odd"}]
    task = Jsonl(
        path=write(tmp_path / "a.jsonl", rows),
        prompt_column="q",
        answer_column="a",
        template="{prompt}|{q}|{hint}|{{q}}|{1, 2}",
        held_out_size=0,
    )
    assert task.load().train[0].prompt == "two|two|it's {even}|{q}|{1, 2}"


def error(**settings: Any) -> str:
    with pytest.raises(TaskError) as caught:
        Jsonl(**settings).load()
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_errors_name_key_file_row_and_column(tmp_path: Path, file: str) -> None:
    missing = str(tmp_path / "no.jsonl")
    assert f"task.path={missing!r}: no such file" in error(path=missing)
    assert "ending in '.txt'" in error(path=write(tmp_path / "a.txt", ROWS))
    assert "has no rows" in error(path=write(tmp_path / "empty.jsonl", []))
    for name, text in (("empty.csv", ""), ("head.csv", "prompt,answer\n"), ("empty.json", "")):
        (tmp_path / name).write_text(text)
        assert "has no rows" in error(path=str(tmp_path / name))
    message = error(path=file, answer_column="anser")
    assert "task.answer_column='anser'" in message
    assert "allowed: prompt, answer; did you mean answer?" in message
    path = write(tmp_path / "b.jsonl", [*ROWS, {"prompt": "x", "answer": " "}])
    assert f"task.path={path!r} row 21: column 'answer' is empty" in error(path=path)
    path = write(tmp_path / "c.jsonl", [ROWS[0], {"prompt": None, "answer": "1"}])
    assert f"task.path={path!r} row 2: column 'prompt' is empty" in error(path=path)
    path = write(tmp_path / "d.jsonl", [ROWS[0], {"prompt": "x", "answer": [1]}])
    assert "row 2: column 'answer' holds a list" in error(path=path)
    path = write(tmp_path / "e.jsonl", [ROWS[0], {"prompt": "x", "answer": "one"}])
    assert "row 2: column 'answer' holds no number" in error(path=path, match="numeric")
    assert "leaves none to train on; allowed: at most 19" in error(path=file, held_out_size=20)


def test_malformed_files_are_refused_with_the_row(tmp_path: Path) -> None:
    def broken(name: str, text: str | bytes) -> str:
        path = tmp_path / name
        path.write_bytes(text.encode() if isinstance(text, str) else text)
        return error(path=str(path))

    assert "row 2 is no valid JSON" in broken("a.jsonl", '{"prompt": 1, "answer": 1}\n{"prompt"\n')
    assert "row 1 is no JSON object" in broken("b.jsonl", "[1, 2]\n")
    assert "the file holds a dict" in broken("c.json", "{}")
    assert "row 2 has more cells" in broken("d.csv", "prompt,answer\n1,2\n1,2,3\n")
    assert "row 1: column 'answer' is empty" in broken("e.csv", "prompt,answer\n1\n")
    assert "utf-8" in broken("f.jsonl", b"\xff\xfe\xfa")
    assert "cannot be read as parquet" in broken("g.parquet", "no parquet")


def test_a_byte_order_mark_and_blank_lines_do_no_harm(tmp_path: Path) -> None:
    row = json.dumps(ROWS[0])
    (tmp_path / "a.jsonl").write_text(f"\ufeff{row}\n\n{row}\n", encoding="utf-8")
    assert len(Jsonl(path=str(tmp_path / "a.jsonl"), held_out_size=0).load().train) == 2


def test_overlapping_files_are_refused_with_both_rows(tmp_path: Path, file: str) -> None:
    held = write(tmp_path / "held.jsonl", [{"prompt": "new", "answer": 1}, ROWS[4]])
    message = error(path=file, held_out_path=held)
    assert (
        f"task.held_out_path={held!r} row 2 has the prompt of task.path={file!r} row 5" in message
    )


def test_template_mistakes_are_refused(file: str) -> None:
    assert "did you mean prompt?" in error(path=file, template="{promt}")
    assert "puts the answer" in error(path=file, template="{prompt} \\boxed{answer}")
    assert "names no column" in error(path=file, template="What?")
    assert len(Jsonl(path=file, template="{prompt} \\boxed{{answer}}").load().train) == 18


def test_settings_that_do_not_apply_are_refused(file: str) -> None:
    with pytest.raises(ValueError, match=r"^held_out_size: 3 does not apply"):
        Jsonl(path=file, held_out_path=file, held_out_size=3)
    with pytest.raises(ValueError, match=r"^tolerance: 0.1 does not apply"):
        Jsonl(path=file, tolerance=0.1)


@pytest.mark.parametrize(
    ("match", "completion", "answer", "score"),
    [
        ("exact", " 42\n", "42", 1.0),
        ("exact", "It is 42", "42", 0.0),
        ("numeric", "6 * 7 = 42.0.", "42", 1.0),
        ("numeric", "42 or 43", "42", 0.0),
        ("numeric", "no idea", "42", 0.0),
        ("contains", "It's PARIS!", "Paris", 1.0),
        ("contains", "Parisian", "Paris", 0.0),
    ],
)
def test_verify(match: Any, completion: str, answer: str, score: float) -> None:
    assert Jsonl(path="any", match=match).verify(completion, Example("p", answer)) == score


def test_contains_looks_for_whole_words() -> None:
    assert contains("a (1) b", "1")
    assert not contains("21", "1")
    assert contains("C++ it is", "c++")
