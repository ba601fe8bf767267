"""GSM8K: word problems of primary school with whole-number answers (arXiv 2110.14168)."""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from grpolab.objective.settings import setting
from grpolab.tasks.base import Example, Examples, Task, TaskError
from grpolab.tasks.numbers import first_number, last_number
from grpolab.tasks.tables import cell, check_column, held_out_count, read_rows, split

HUB_ID = "openai/gsm8k"
MARK = "####"
_BOXED = "\\boxed{"
_ENDINGS = (".jsonl", ".json", ".parquet", ".csv")


@dataclass(frozen=True)
class Gsm8k(Task):
    r"""GSM8K from the hub (`openai/gsm8k`, config main), or from a local file or folder.

    The gold answer is the number after `####`. A completion is right (1.0, else 0.0) where its
    number equals it: the number after the last `####` if there is one, else the last number inside
    the last `\boxed{}`, else its last number. lm-evaluation-harness's strict match reads the `####`
    form only.

    The held-out half is GSM8K's test half. From a single local file it is drawn from that file with
    `data_seed`. A question that is in both halves is dropped from the training half.

    Raises (from `load`):
        TaskError: the hub cannot be reached, a file is missing or malformed, an answer has no
            number after `####`.
    """

    name: ClassVar[str] = "gsm8k"

    path: str | None = setting(
        None, "A local file, or a folder with train and test files; null: from the hub."
    )
    revision: str = setting("main", "Revision of the data set on the hub; not with path.")
    train_size: int | None = setting(None, "First so many training examples; null: all.", ge=1)
    held_out_size: int | None = setting(
        None,
        "First so many test examples, null: all; of a single file: drawn, null: a tenth.",
        ge=0,
    )
    data_seed: int = setting(0, "Seed of the draw from a single file; the run's plays no part.")
    template: str = setting("{question}", "The prompt; {question} is the word problem.")

    def __post_init__(self) -> None:
        if "{question}" not in self.template:
            raise ValueError(f"template: {self.template!r} lacks {{question}}, which it must hold")
        if self.path is not None and self.revision != "main":
            raise ValueError(
                f"revision: {self.revision!r} does not apply with path={self.path!r}; allowed: main"
            )

    def load(self) -> Examples:
        """Read both halves; TaskError names the file and the row."""
        if self.path is None:
            return self._from_hub()
        path = Path(self.path).expanduser()
        return self._from_folder(path) if path.is_dir() else self._from_file(self.path)

    def verify(self, completion: str, example: Example) -> float:
        """1.0 where the completion's number is the gold number, else 0.0."""
        given = final_number(completion)
        return float(given is not None and given == last_number(example.answer))

    def _from_hub(self) -> Examples:
        datasets: Any = importlib.import_module("datasets")  # slow to import, and untyped
        try:
            halves = {
                half: datasets.load_dataset(HUB_ID, "main", split=half, revision=self.revision)
                for half in ("train", "test")
            }
        except Exception as error:
            raise TaskError(
                f"task.path=null: cannot read {HUB_ID} (revision {self.revision}) from the hub "
                f"({' '.join(str(error).split())[:200]}); allowed without a connection: task.path="
                "a local file or folder with train and test files, one JSON object a line with "
                "question and answer"
            ) from error
        train, held_out = (
            self._examples(halves[half], f"{HUB_ID} {half}") for half in ("train", "test")
        )
        return self._halves(train, held_out, f"{HUB_ID}@{self.revision} (main)")

    def _from_folder(self, folder: Path) -> Examples:
        train, held_out = (
            [
                example
                for file in _files(folder, half)
                for example in self._examples(read_rows(str(file), "task.path"), str(file))
            ]
            for half in ("train", "test")
        )
        return self._halves(train, held_out, str(folder))

    def _halves(
        self, train: Sequence[Example], held_out: Sequence[Example], source: str
    ) -> Examples:
        # The test half stays as published: a question on both sides leaves the training half.
        held = {example.prompt for example in held_out}
        train = [example for example in train if example.prompt not in held]
        if not train:
            raise TaskError(f"{source}: every training question is a test question too")
        return Examples(train[: self.train_size], held_out[: self.held_out_size], source)

    def _from_file(self, path: str) -> Examples:
        where = f"task.path={path!r}"
        examples = self._examples(read_rows(path, "task.path"), where)
        count = held_out_count(self.held_out_size, len(examples), where)
        train, held_out = split(examples, count, self.data_seed)
        source = f"{path}, {len(held_out)} held out with data_seed {self.data_seed}"
        return Examples(train[: self.train_size], held_out, source)

    def _examples(self, rows: Iterable[Mapping[str, Any]], where: str) -> list[Example]:
        table = [dict(row) for row in rows]
        for column in ("question", "answer"):
            check_column(table, column, f"column {column}", where)
        return [
            self._example(row, f"{where} row {number}") for number, row in enumerate(table, start=1)
        ]

    def _example(self, row: dict[str, Any], place: str) -> Example:
        question, solution = cell(row, "question", place), cell(row, "answer", place)
        _, mark, answer = solution.rpartition(MARK)
        if not mark or last_number(answer) is None:
            raise TaskError(
                f"{place}: column 'answer' has no number after {MARK!r} ({solution[-60:]!r}); "
                f"allowed: a solution that ends in '{MARK} 42'"
            )
        prompt = self.template.replace("{question}", question)
        return Example(prompt, answer.strip(), {"source": place, "solution": solution})


def final_number(completion: str) -> float | None:
    r"""The number a completion settles on: after its last `####`, else in its last `\boxed{}`,
    else its last number. A mark without a number counts as absent."""
    _, mark, answer = completion.rpartition(MARK)
    if mark and (found := first_number(answer)) is not None:
        return found
    boxed = last_boxed(completion)
    if boxed is not None and (found := last_number(boxed)) is not None:
        return found
    return last_number(completion)


def last_boxed(text: str) -> str | None:
    r"""What stands in the last `\boxed{…}` (braces may nest), None where there is none closed."""
    start = text.rfind(_BOXED)
    if start < 0:
        return None
    depth, begin = 1, start + len(_BOXED)
    for position in range(begin, len(text)):
        depth += {"{": 1, "}": -1}.get(text[position], 0)
        if depth == 0:
            return text[begin:position]
    return None


def _files(folder: Path, half: str) -> Sequence[Path]:
    """The files of one half in a folder, or in its subfolder main or data."""
    for place in (folder, folder / "main", folder / "data"):
        for ending in _ENDINGS:
            found = sorted(place.glob(f"{half}{ending}")) or sorted(place.glob(f"{half}-*{ending}"))
            if found:
                return found
    raise TaskError(
        f"task.path={str(folder)!r}: no {half} file in the folder; allowed: "
        f"{', '.join(half + ending for ending in _ENDINGS)}, also in its folder main or data"
    )
