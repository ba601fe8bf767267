"""A user's own data: one file of prompts and answers, or one for each half."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

from grpolab.objective.settings import setting
from grpolab.tasks.base import Example, Examples, Task, TaskError
from grpolab.tasks.numbers import last_number
from grpolab.tasks.tables import (
    Row,
    cell,
    check_column,
    did_you_mean,
    held_out_count,
    read_rows,
    split,
)

TOLERANCE = 1e-6

# {{ and }} are braces, {name} is a column; any other brace is left as it is.
_PLACEHOLDER = re.compile(r"\{\{|\}\}|\{([^{}\n]+)\}")


@dataclass(frozen=True)
class Jsonl(Task):
    """Prompts and answers from a .jsonl, .json, .csv, .tsv or .parquet file.

    Held-out prompts come from `held_out_path`, or are drawn from `path`: whole prompts, so that
    rows with the same prompt stay on one side. The draw depends on `data_seed` alone.

    The verifier gives 1.0 or 0.0: `exact` compares the whole completion with the answer (space
    around them aside), `numeric` its last number within `tolerance`, and `contains` looks for the
    answer as whole words, in either case.

    Raises (from `load`):
        TaskError: a file that is missing, malformed or has no rows; a column that does not exist;
            an empty prompt or answer; a held-out prompt that is a training prompt too.
    """

    name: ClassVar[str] = "jsonl"

    path: str = setting("???", "File with one example a row: .jsonl, .json, .csv, .tsv, .parquet.")
    prompt_column: str = setting("prompt", "Column with the prompt.")
    answer_column: str = setting("answer", "Column with the gold answer.")
    held_out_path: str | None = setting(
        None, "File with the held-out examples; null: drawn from path."
    )
    held_out_size: int | None = setting(
        None, "Held-out examples drawn from path; null: a tenth. Not with held_out_path.", ge=0
    )
    data_seed: int = setting(
        0, "Seed of the draw of the held-out examples; the run's plays no part."
    )
    template: str = setting(
        "{prompt}", "The prompt; {prompt} and any other column by its name, {{ }} for braces."
    )
    match: Literal["exact", "numeric", "contains"] = setting(
        "exact", "What makes a completion right."
    )
    tolerance: float = setting(
        TOLERANCE, "match=numeric: largest allowed distance to the answer.", ge=0
    )

    def __post_init__(self) -> None:
        if self.held_out_path is not None and self.held_out_size is not None:
            raise ValueError(
                f"held_out_size: {self.held_out_size} does not apply with held_out_path="
                f"{self.held_out_path!r}, which is used whole; allowed: null"
            )
        if self.match != "numeric" and self.tolerance != TOLERANCE:
            raise ValueError(
                f"tolerance: {self.tolerance} does not apply with match={self.match}; allowed: "
                f"{TOLERANCE:g}, or match=numeric"
            )

    def load(self) -> Examples:
        """Read the file(s); TaskError names the config key, the file, the row and the column."""
        train = self._examples(self.path, "task.path")
        if self.held_out_path is not None:
            held_out = self._examples(self.held_out_path, "task.held_out_path")
            self._check_disjoint(train, held_out)
            return Examples(train, held_out, f"{self.path}, held out: {self.held_out_path}")
        count = held_out_count(self.held_out_size, len(train), f"task.path={self.path!r}")
        train, held_out = split(train, count, self.data_seed)
        if not train:  # every prompt fitted into the held-out part: all rows share few prompts
            raise TaskError(
                f"task.held_out_size={count}: task.path={self.path!r} has no more prompts"
            )
        source = f"{self.path}, {len(held_out)} held out with data_seed {self.data_seed}"
        return Examples(train, held_out, source)

    def verify(self, completion: str, example: Example) -> float:
        """1.0 where the completion is right by the rule `match`, else 0.0."""
        if self.match == "numeric":
            return float(self._same_number(completion, example.answer))
        if self.match == "contains":
            return float(contains(completion, example.answer))
        return float(completion.strip() == example.answer.strip())

    def _same_number(self, completion: str, answer: str) -> bool:
        given, gold = last_number(completion), last_number(answer)
        if given is None or gold is None:
            return False
        return abs(given - gold) <= self.tolerance

    def _examples(self, path: str, key: str) -> list[Example]:
        rows, where = read_rows(path, key), f"{key}={path!r}"
        check_column(rows, self.prompt_column, "task.prompt_column", where)
        check_column(rows, self.answer_column, "task.answer_column", where)
        used = self._template_columns(rows, where)
        return [
            self._example(row, used, f"{where} row {number}")
            for number, row in enumerate(rows, start=1)
        ]

    def _example(self, row: Row, used: Sequence[str], place: str) -> Example:
        # The prompt and the answer are checked even where the template leaves the prompt out.
        values = {"prompt": cell(row, self.prompt_column, place)}
        values |= {name: cell(row, name, place) for name in used if name != "prompt"}
        answer = cell(row, self.answer_column, place)
        if self.match == "numeric" and last_number(answer) is None:
            raise TaskError(
                f"{place}: column {self.answer_column!r} holds no number ({answer!r}), "
                "which task.match=numeric needs"
            )
        return Example(self._fill(values), answer, {"source": place})

    def _fill(self, values: dict[str, str]) -> str:
        def replace(found: re.Match[str]) -> str:
            if found[1] is None:
                return found[0][0]
            return values.get(found[1], found[0])

        return _PLACEHOLDER.sub(replace, self.template)

    def _template_columns(self, rows: Sequence[Row], where: str) -> list[str]:
        """The names in braces in the template; TaskError for a typo and for the answer itself."""
        columns = dict.fromkeys(name for row in rows for name in row)
        found = [match[1] for match in _PLACEHOLDER.finditer(self.template) if match[1]]
        for name in found:
            if name == self.answer_column:
                raise TaskError(
                    f"task.template={self.template!r} puts the answer ({{{name}}}) into the "
                    f"prompt; allowed: any other column, or {{{{{name}}}}} for the word in braces"
                )
            if name not in columns and name != "prompt" and name.isidentifier():
                raise TaskError(
                    f"task.template={self.template!r}: {where} has no column {name!r}; allowed: "
                    f"{', '.join(['prompt', *columns])}{did_you_mean(name, ['prompt', *columns])}"
                )
        used = [name for name in found if name in columns or name == "prompt"]
        if not used:
            raise TaskError(
                f"task.template={self.template!r} names no column, so every prompt would be the "
                f"same; allowed: {', '.join(f'{{{c}}}' for c in ['prompt', *columns])}"
            )
        return used

    def _check_disjoint(self, train: Sequence[Example], held_out: Sequence[Example]) -> None:
        first = {example.prompt: example for example in reversed(train)}
        for example in held_out:
            if example.prompt in first:
                raise TaskError(
                    f"{example.meta['source']} has the prompt of "
                    f"{first[example.prompt].meta['source']} ({example.prompt[:80]!r}); "
                    "allowed: held-out prompts that are no training prompts"
                )


def contains(completion: str, answer: str) -> bool:
    """Whether the answer stands in the completion as whole words, in either case.

    "1" is not in "21": a letter or digit of the answer must not go on beyond its ends.
    """
    wanted = re.escape(answer.strip().casefold())
    return re.search(rf"(?<!\w){wanted}(?!\w)", completion.casefold()) is not None
